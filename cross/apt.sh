# shellcheck shell=bash
# Sourced by build.sh and check: how a Debian machine gets what is missing. The mirrors are those of apt's own configuration.

# Says why the script cannot go on, and ends it.
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Runs a command as root, by sudo where we are somebody else.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo -- "$@"
    fi
}

# Calls apt-get quietly and without questions. The index is fetched once for each script.
apt_get() {
    command -v apt-get >/dev/null ||
        die "this machine has no apt-get: install by hand what '$*' would have, see cross/build.sh"
    if [ -z "${apt_is_fresh-}" ]; then
        as_root apt-get update -q >&2
        apt_is_fresh=yes
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -y -q --no-install-recommends "$@" >&2
}
