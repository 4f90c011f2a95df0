#!/usr/bin/env bash
# Puts Larder into the root of a Jetson before it is flashed, as NVIDIA's own apply_binaries.sh does with its packages.
#
# usage: sudo ./larder-rootfs.sh ROOTFS PACKAGE [CONFIG]
#
#   ROOTFS    Linux_for_Tegra/rootfs
#   PACKAGE   larder_VERSION_arm64.deb, as cross/package.sh packs it
#   CONFIG    takes the place of the package's own larder.toml, such as ../profiles/jetson.toml
#
# The programs in that root are for ARM. On another machine it takes qemu-user-static and binfmt-support, which NVIDIA's
# tools need too.
set -euo pipefail

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

[ $# -eq 2 ] || [ $# -eq 3 ] || die "usage: ${0##*/} ROOTFS PACKAGE [CONFIG]"
rootfs=$(realpath -e "$1") || die "there is no '$1'"
package=$2 config=${3-}

[ "$(id -u)" -eq 0 ] || die "installing needs root: sudo $0"
[ "$rootfs" != / ] || die "'$1' is this machine's own root: give that of the board"
[ -x "$rootfs/usr/bin/dpkg" ] || die "'$rootfs' holds no Debian or Ubuntu: unpack NVIDIA's sample root there first"
[ -f "$package" ] || die "there is no package '$package': cross/package.sh packs it"
[ -z "$config" ] || [ -f "$config" ] || die "there is no configuration '$config'"
architecture=$(dpkg-deb --field "$package" Architecture)
wanted=$(cat "$rootfs/var/lib/dpkg/arch" 2>/dev/null || chroot "$rootfs" dpkg --print-architecture) ||
    die "the programs in '$rootfs' do not run here: apt-get install qemu-user-static binfmt-support"
grep -qx "$architecture" <<<"$wanted" || die "'$package' is for $architecture, and the root is for $wanted"

cleanup() {
    rm -f "$rootfs/tmp/larder.deb"
    umount "$rootfs/dev/pts" "$rootfs/dev" "$rootfs/proc" 2>/dev/null || true
}
trap cleanup EXIT
mount -t proc proc "$rootfs/proc"
mount --bind /dev "$rootfs/dev"
mount --bind /dev/pts "$rootfs/dev/pts"

# The package enables the unit; nothing is started in a root that does not run.
install -m 644 "$package" "$rootfs/tmp/larder.deb"
chroot "$rootfs" env DEBIAN_FRONTEND=noninteractive dpkg --install /tmp/larder.deb
if [ -n "$config" ]; then
    install -m 644 "$config" "$rootfs/etc/larder/larder.toml"
fi
chroot "$rootfs" larder config check
