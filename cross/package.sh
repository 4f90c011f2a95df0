#!/usr/bin/env bash
# Packs Larder for one kind of board: a Debian package, and a tarball for every other system. Both hold the same files,
# byte for byte the same whenever the same commit is packed (SOURCE_DATE_EPOCH, or the date of the commit).
set -euo pipefail

usage() {
    cat <<'END'
usage: cross/package.sh TARGET [--binary FILE] [--out DIR] [--profile PROFILE] [--tools own|debian]

  TARGET      aarch64   larder_VERSION_arm64.deb         64-bit systems: Pi 3, 4, 5, Zero 2, Jetson
              armv7     larder_VERSION_armhf.deb         32-bit systems on a Pi 2 or later
              armv6     larder_VERSION_armhf-armv6.deb   Raspberry Pi OS on a Pi 1 or Zero
              x86-64    larder_VERSION_amd64.deb         anything else
              and beside each larder-VERSION-TARGET.tar.gz
  --binary    the program, if it is built already; else cross/build.sh builds it
  --out       where to put them; target/packages when not given
  --profile, --tools    as for cross/build.sh

The last two lines printed are the paths of the package and of the tarball. All else goes to standard error.
END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(dirname "$here")
# shellcheck source=cross/apt.sh
source "$here/apt.sh"

main() {
    read_arguments "$@"
    need_tools
    [ -n "$binary" ] || binary=$("$here/build.sh" "$target" "${build_options[@]}")
    [ -x "$binary" ] || die "'$binary' is no program"
    version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$top/Cargo.toml" | head -n 1)
    export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(date_of_commit)}
    umask 022
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    mkdir -p "$out"
    out=$(cd "$out" && pwd)

    stage "$scratch/root"
    pack_deb
    pack_tarball
    printf '%s\n' "$out/$deb" "$out/$tarball"
}

read_arguments() {
    target='' binary='' out=$top/target/packages build_options=()
    while [ $# -gt 0 ]; do
        case $1 in
        -h | --help)
            usage
            exit 0
            ;;
        --binary | --out)
            [ $# -ge 2 ] || die "$1 needs a value"
            printf -v "${1#--}" '%s' "$2"
            shift
            ;;
        --profile | --tools)
            [ $# -ge 2 ] || die "$1 needs a value"
            build_options+=("$1" "$2")
            shift
            ;;
        -*) die "unknown option '$1'" ;;
        *)
            [ -z "$target" ] || die "one target at a time"
            target=$1
            ;;
        esac
        shift
    done
    # Raspberry Pi OS' armhf is ARMv6, Debian's is ARMv7. The older program runs on both, but only by way of instructions
    # that a newer kernel has to emulate, so there are two packages of one name.
    case $target in
    aarch64) triple=aarch64-unknown-linux-musl architecture=arm64 suffix='' needs_armv7=no ;;
    armv7) triple=armv7-unknown-linux-musleabihf architecture=armhf suffix='' needs_armv7=yes ;;
    armv6) triple=arm-unknown-linux-musleabihf architecture=armhf suffix=-armv6 needs_armv7=no ;;
    x86-64) triple=x86_64-unknown-linux-musl architecture=amd64 suffix='' needs_armv7=no ;;
    '')
        usage >&2
        exit 2
        ;;
    *) die "unknown target '$target', only: aarch64 armv7 armv6 x86-64" ;;
    esac
}

need_tools() {
    command -v cargo >/dev/null || die "there is no cargo, which makes the manual pages: install Rust"
    command -v python3 >/dev/null || apt_get install python3
    command -v dpkg-deb >/dev/null || die "there is no dpkg-deb: pack on a Debian machine, or install dpkg"
}

# Of the last commit; of this moment where the source is no repository.
date_of_commit() {
    git -C "$top" log -1 --format=%ct 2>/dev/null || date +%s
}

# Puts every file where it belongs, below the folder $1.
stage() {
    local root=$1 manual=$scratch/manual documents=$1/usr/share/doc/larder file
    cargo run --quiet --locked --manifest-path "$top/Cargo.toml" --example manual -- "$manual" >&2

    put 755 "$binary" "$root/usr/bin/larder"
    put 644 "$top/firmware-config/larder.toml" "$root/etc/larder/larder.toml"
    for file in "$top"/systemd/larder*; do
        put 644 "$file" "$root/usr/lib/systemd/system/${file##*/}"
    done
    put 644 "$top/systemd/sysusers.d/larder.conf" "$root/usr/lib/sysusers.d/larder.conf"
    for file in "$top"/systemd/drop-ins/*.conf; do
        put 644 "$file" "$root/usr/share/larder/drop-ins/${file##*/}"
    done
    for file in "$manual"/*.1; do
        put 644 "$file" "$root/usr/share/man/man1/${file##*/}"
        gzip -9n "$root/usr/share/man/man1/${file##*/}"
    done
    put 644 "$manual/larder.bash" "$root/usr/share/bash-completion/completions/larder"
    put 644 "$manual/_larder" "$root/usr/share/zsh/vendor-completions/_larder"
    put 644 "$manual/larder.fish" "$root/usr/share/fish/vendor_completions.d/larder.fish"

    put 644 "$top/README.md" "$documents/README.md"
    put 644 "$top/CHANGELOG.md" "$documents/changelog"
    gzip -9n "$documents/changelog"
    python3 "$here/package/licences.py" "$top/Cargo.toml" "$triple" >"$scratch/copyright"
    put 644 "$scratch/copyright" "$documents/copyright"
}

put() {
    install -D -m "$1" "$2" "$3"
}

pack_deb() {
    local root=$scratch/deb size script
    deb=larder_${version}_$architecture$suffix.deb
    cp -a "$scratch/root" "$root"
    size=$(find "$root" -type f -printf '%s\n' | awk '{ sum += $1 } END { printf "%d", (sum + 1023) / 1024 }')
    mkdir "$root/DEBIAN"
    cat >"$root/DEBIAN/control" <<END
Package: larder
Version: $version
Architecture: $architecture
Maintainer: The Larder project <larder@localhost>
Section: admin
Priority: optional
Installed-Size: $size
Depends: init-system-helpers (>= 1.54), passwd
Recommends: ca-certificates
Description: container image mirror for boards whose uplink comes and goes
 Larder sits beside containerd or K3s, keeps what was pulled on the board's own
 disk, and keeps answering - tags included - when the registry cannot be
 reached. It is one static program.
END
    echo /etc/larder/larder.toml >"$root/DEBIAN/conffiles"
    for script in preinst postinst prerm postrm; do
        sed -e "s/@NEEDS_ARMV7@/$needs_armv7/" -e "s/@VERSION@/$version/" "$here/package/$script" >"$root/DEBIAN/$script"
        chmod 755 "$root/DEBIAN/$script"
    done
    (cd "$root" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
    find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
    dpkg-deb --root-owner-group -Zxz --build "$root" "$out/$deb" >&2
}

pack_tarball() {
    local name=larder-$version-$target
    tarball=$name.tar.gz
    mv "$scratch/root" "$scratch/$name"
    put 755 "$here/package/install.sh" "$scratch/$name/install.sh"
    put 755 "$here/package/larder.openrc" "$scratch/$name/openrc/larder"
    tar --create --directory "$scratch" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
        "$name" | gzip -9n >"$out/$tarball"
}

main "$@"
