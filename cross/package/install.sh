#!/bin/sh
# Installs Larder from the folder that this script lies in, on a system with systemd, with OpenRC, or with neither.
#
# usage: ./install.sh [--root DIR] [--no-start]     install, or put a newer version in its place
#        ./install.sh --uninstall [--purge]         remove the program; --purge: images, configuration and user too
#
# --root installs into the image of a system that does not run. A configuration that is there is kept; the new one is
# then put beside it as larder.toml.new.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root='' start=yes what=install purge=no

main() {
    while [ $# -gt 0 ]; do
        case $1 in
        --root)
            [ $# -ge 2 ] || die "--root needs a folder"
            root=${2%/}
            start=no
            shift
            ;;
        --no-start) start=no ;;
        --uninstall) what=uninstall ;;
        --purge) purge=yes ;;
        *) die "unknown argument '$1'; the first lines of this script say how it is used" ;;
        esac
        shift
    done
    [ "$(id -u)" -eq 0 ] || die "installing needs root: sudo $0"
    [ "$purge" = no ] || [ "$what" = uninstall ] || die "--purge goes with --uninstall"
    $what
}

die() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

install() {
    put_files
    if [ -z "$root" ]; then
        "/usr/bin/larder" --version >/dev/null || die "this program does not run on this board: take another tarball"
    fi
    make_user
    case $(init) in
    systemd)
        in_root systemctl enable larder.service
        if [ "$start" = yes ] && [ -d /run/systemd/system ]; then
            systemctl daemon-reload
            systemctl restart larder.service
        fi
        ;;
    openrc)
        copy openrc/larder /etc/init.d/larder
        in_root rc-update add larder default
        if [ "$start" = yes ]; then rc-service larder restart; fi
        ;;
    none) echo "there is neither systemd nor OpenRC here; start it at boot: larder --data-dir /var/lib/larder serve" ;;
    esac
    echo "larder is installed; larder config check looks at its configuration"
}

# Each file goes in under another name first, so that one that is in use is replaced and not written to.
put_files() {
    (cd "$here" && find usr -type f) | while read -r file; do
        copy "$file" "/$file"
    done
    if ! [ -e "$root/etc/larder/larder.toml" ]; then
        copy etc/larder/larder.toml /etc/larder/larder.toml
    elif ! cmp -s "$here/etc/larder/larder.toml" "$root/etc/larder/larder.toml"; then
        copy etc/larder/larder.toml /etc/larder/larder.toml.new
    fi
}

copy() {
    mkdir -p "$root${2%/*}"
    cp "$here/$1" "$root$2.installing"
    if [ -x "$here/$1" ]; then chmod 755 "$root$2.installing"; else chmod 644 "$root$2.installing"; fi
    mv -f "$root$2.installing" "$root$2"
}

make_user() {
    if has systemd-sysusers; then
        in_root systemd-sysusers larder.conf
    elif grep -q '^larder:' "$root/etc/passwd"; then
        :
    elif has useradd; then
        in_root useradd --system --user-group --no-create-home --home-dir /var/lib/larder --shell /sbin/nologin larder
    else
        in_root addgroup -S larder
        in_root adduser -S -D -H -h /var/lib/larder -s /sbin/nologin -G larder larder
    fi
    mkdir -p "$root/var/lib/larder"
    chmod 750 "$root/var/lib/larder"
    in_root chown larder:larder /var/lib/larder
}

uninstall() {
    [ -z "$root" ] || die "--uninstall is for a system that runs"
    case $(init) in
    systemd)
        if [ -d /run/systemd/system ]; then
            systemctl stop larder.socket larder-scrub.timer larder-scrub.service larder-retry.timer larder.service
        fi
        systemctl disable larder.service larder.socket larder-scrub.timer
        ;;
    openrc)
        rc-service --ifstarted larder stop
        rc-update delete larder default
        rm -f /etc/init.d/larder
        ;;
    esac
    (cd "$here" && find usr -type f) | while read -r file; do
        rm -f "/$file"
    done
    rm -rf /usr/share/doc/larder /usr/share/larder
    if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
    if [ "$purge" = yes ]; then
        rm -f /var/lib/systemd/timers/stamp-larder-scrub.timer
        rm -f /var/log/larder.log
        rm -rf /etc/larder /etc/systemd/system/larder.service.d /etc/systemd/system/larder-scrub.service.d
        # The contents first: it may be where a disk is mounted.
        if [ -d /var/lib/larder ]; then
            find /var/lib/larder -xdev -mindepth 1 -delete
            rmdir /var/lib/larder || true
        fi
        if has userdel; then userdel larder; else deluser larder; fi
        if grep -q '^larder:' /etc/group; then
            if has groupdel; then groupdel larder; else delgroup larder; fi
        fi
    fi
    echo "larder is removed"
}

# What starts services there.
init() {
    if [ -z "$root" ] && [ -d /run/systemd/system ]; then
        echo systemd
    elif has rc-update; then
        echo openrc
    elif has systemctl; then
        echo systemd
    else
        echo none
    fi
}

# Whether the system that is installed into has a command.
has() {
    for folder in /usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin; do
        if [ -x "$root$folder/$1" ]; then return 0; fi
    done
    return 1
}

# Runs a command of that system.
in_root() {
    if [ -n "$root" ]; then chroot "$root" "$@"; else "$@"; fi
}

main "$@"
