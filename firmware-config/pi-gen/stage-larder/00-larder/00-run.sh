#!/bin/bash -e
# Installs the package into the image. It lies in files/ beside this script, as cross/package.sh has packed it for the
# architecture of the image, and so does larder.toml if another configuration than the package's own is wanted.

shopt -s nullglob
packages=(files/larder_*.deb)
if [ ${#packages[@]} -ne 1 ]; then
    echo "stage-larder: put one larder_VERSION_ARCHITECTURE.deb into ${PWD}/files, there are ${#packages[@]}" >&2
    exit 1
fi

# The package enables the unit; nothing is started in an image that is being made.
install -m 644 "${packages[0]}" "${ROOTFS_DIR}/tmp/larder.deb"
on_chroot <<END
apt-get install -y --no-install-recommends /tmp/larder.deb
END
rm "${ROOTFS_DIR}/tmp/larder.deb"

if [ -e files/larder.toml ]; then
    install -m 644 files/larder.toml "${ROOTFS_DIR}/etc/larder/larder.toml"
    on_chroot <<END
larder config check
END
fi

# K3s reads this when it starts, if it is installed by another stage or later. Written by the program itself, so that it
# names the registries of this very configuration.
on_chroot <<END
larder config k3s --write
END
