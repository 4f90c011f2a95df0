SUMMARY = "Container image mirror for boards whose uplink comes and goes"
DESCRIPTION = "Larder sits beside containerd or K3s, keeps what was pulled on the board's own disk, and keeps \
               answering when the registry cannot be reached. The program is static and comes ready made from a \
               tarball of cross/package.sh, since it needs a newer Rust than the releases of OpenEmbedded have."
SECTION = "utils"

# Of Larder itself. Those of the crates in the program are listed in the tarball, in usr/share/doc/larder/copyright.
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

# Where cross/package.sh has put the tarballs; local.conf may say otherwise.
LARDER_TARBALLS ?= "${FILE_DIRNAME}/../../../../../target/packages"
LARDER_TARGET = "unknown"
LARDER_TARGET:aarch64 = "aarch64"
LARDER_TARGET:x86-64 = "x86-64"
LARDER_TARGET:arm = "armv6"
LARDER_TARGET:armv7a = "armv7"
LARDER_TARGET:armv7ve = "armv7"

SRC_URI = "file://${LARDER_TARBALLS}/larder-${PV}-${LARDER_TARGET}.tar.gz"

# Where it is unpacked has a name of its own since styhead.
S = "${@d.getVar('UNPACKDIR') or d.getVar('WORKDIR')}/larder-${PV}-${LARDER_TARGET}"

inherit systemd useradd

COMPATIBLE_HOST = "(aarch64|arm|x86_64).*-linux.*"

SYSTEMD_SERVICE:${PN} = "larder.service"

USERADD_PACKAGES = "${PN}"
USERADD_PARAM:${PN} = "--system --user-group --no-create-home --home-dir ${localstatedir}/lib/larder --shell /sbin/nologin larder"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -D -m 0755 ${S}/usr/bin/larder ${D}${bindir}/larder
    install -D -m 0644 ${S}/etc/larder/larder.toml ${D}${sysconfdir}/larder/larder.toml
    for unit in ${S}/usr/lib/systemd/system/larder*; do
        install -D -m 0644 $unit ${D}${systemd_system_unitdir}/${unit##*/}
    done
    install -D -m 0644 ${S}/usr/share/doc/larder/copyright ${D}${datadir}/doc/larder/copyright
}

FILES:${PN} += "${systemd_system_unitdir}"
CONFFILES:${PN} = "${sysconfdir}/larder/larder.toml"
RRECOMMENDS:${PN} = "ca-certificates"

# It is stripped already, and asks for no library.
INHIBIT_PACKAGE_STRIP = "1"
INHIBIT_PACKAGE_DEBUG_SPLIT = "1"
INSANE_SKIP:${PN} = "already-stripped ldflags"
