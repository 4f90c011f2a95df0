#!/usr/bin/env bash
# Makes a system extension of Larder: one file that systemd-sysext lays over /usr of a system whose /usr is read-only.
#
# usage: ./build.sh PACKAGE [--out FILE]
#
#   PACKAGE   larder_VERSION_ARCHITECTURE.deb, as cross/package.sh packs it
#   --out     larder.raw when not given
#
# On the board:
#
#   cp larder.raw /var/lib/extensions/ && systemd-sysext refresh
#   systemd-sysusers larder.conf && systemctl daemon-reload && systemctl start larder
#
# From then on it starts with the board. An extension holds nothing but /usr: the configuration is in
# /usr/share/larder/larder.toml, and takes effect as /etc/larder/larder.toml.
set -euo pipefail

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

package='' out=larder.raw
while [ $# -gt 0 ]; do
    case $1 in
    --out)
        [ $# -ge 2 ] || die "--out needs a file"
        out=$2
        shift
        ;;
    -*) die "unknown option '$1'" ;;
    *) package=$1 ;;
    esac
    shift
done
[ -f "$package" ] || die "usage: ${0##*/} PACKAGE [--out FILE]; cross/package.sh packs the package"
for tool in dpkg-deb mksquashfs; do
    command -v "$tool" >/dev/null || die "there is no $tool here: apt-get install dpkg squashfs-tools"
done

# As systemd calls it (ConditionArchitecture=).
case $(dpkg-deb --field "$package" Architecture) in
arm64) architecture=arm64 ;;
armhf) architecture=arm ;;
amd64) architecture=x86-64 ;;
*) die "'$package' is for a processor that Larder does not know" ;;
esac

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
dpkg-deb --extract "$package" "$scratch/all"
mkdir "$scratch/extension"
mv "$scratch/all/usr" "$scratch/extension/usr"
usr=$scratch/extension/usr
install -D -m 644 "$scratch/all/etc/larder/larder.toml" "$usr/share/larder/larder.toml"

# It fits every distribution, since the program asks for no library.
mkdir -p "$usr/lib/extension-release.d" "$usr/lib/systemd/system/multi-user.target.d"
printf '%s\n' ID=_any "ARCHITECTURE=$architecture" EXTENSION_RELOAD_MANAGER=1 \
    >"$usr/lib/extension-release.d/extension-release.larder"
# What is enabled in /etc cannot come with an extension; a unit that the target holds up can.
printf '%s\n' '[Unit]' 'Upholds=larder.service' \
    >"$usr/lib/systemd/system/multi-user.target.d/larder.conf"

rm -f "$out"
mksquashfs "$scratch/extension" "$out" -all-root -noappend -quiet -no-progress >&2
printf '%s\n' "$out"
