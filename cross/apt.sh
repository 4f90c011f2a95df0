# shellcheck shell=bash
# Sourced by the scripts of cross/ and tests/: how a Debian machine gets what is missing. The mirrors are those of apt's own configuration.

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
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -y -q --no-install-recommends -o DPkg::Lock::Timeout=300 "$@" >&2
}

# Takes PACKAGE:WITNESS pairs and installs each package whose witness, a command or a file, is not there. Services that
# come with a package are not started.
install_absent() {
    local pair absent=()
    for pair in "$@"; do
        command -v "${pair#*:}" >/dev/null || [ -e "${pair#*:}" ] || absent+=("${pair%%:*}")
    done
    [ ${#absent[@]} -eq 0 ] || without_services apt_get install "${absent[@]}"
}

# Runs a command in a shell of its own, while no service can be started by an installation.
without_services() (
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'as_root rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod +x "$policy"
    fi
    "$@"
)
