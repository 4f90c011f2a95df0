#!/usr/bin/env bash
# Builds one static Larder for one kind of board, the same way for people and for continuous integration.
set -euo pipefail

usage() {
    cat <<'END'
usage: cross/build.sh TARGET [--profile PROFILE] [--tools own|debian] [--manifest FILE]

  TARGET      aarch64   (aarch64-unknown-linux-musl)       Pi 3, 4, 5, Zero 2, Jetson
              armv7     (armv7-unknown-linux-musleabihf)   32-bit systems on a Pi 2 or later
              armv6     (arm-unknown-linux-musleabihf)     Pi 1, Zero
              x86-64    (x86_64-unknown-linux-musl)        anything else
  --profile   a profile of Cargo.toml; release when not given
  --tools     own: the Rust toolchain, zig and cargo-zigbuild of this machine
              debian: Rust from Debian's packages and zig from PyPI, in a folder of their own
              own where it is complete, else debian, when not given
  --manifest  the Cargo.toml of another program to build the same way

The last line printed is the path of the program. All else goes to standard error.
END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(dirname "$here")
# shellcheck source=cross/apt.sh
source "$here/apt.sh"

main() {
    read_arguments "$@"
    [[ $top != *[[:space:]]* ]] || die "compilers are told about '$top', whose name has a space: move it"
    if [ -z "$tools" ]; then
        tools=debian
        if missing=$(missing_of_own_tools); then tools=own; fi
    fi
    case $tools in
    own)
        missing=$(missing_of_own_tools) || die "this machine's own tools cannot build $target: no $missing"
        printf 'build.sh: %s with the tools of this machine\n' "$target" >&2
        ;;
    debian)
        printf 'build.sh: %s with Debian'\''s Rust and zig%s\n' "$target" "${missing:+ (here is no $missing)}" >&2
        install_debian_tools
        use_debian_tools
        ;;
    *) die "--tools is own or debian, not '$tools'" ;;
    esac
    build
}

read_arguments() {
    target='' profile=release tools='' manifest=$top/Cargo.toml missing=''
    while [ $# -gt 0 ]; do
        case $1 in
        -h | --help)
            usage
            exit 0
            ;;
        --profile | --tools | --manifest)
            [ $# -ge 2 ] || die "$1 needs a value"
            printf -v "${1#--}" '%s' "$2"
            shift
            ;;
        -*) die "unknown option '$1'" ;;
        *)
            [ -z "$target" ] || die "one target at a time"
            target=$(full_name "$1") || die "unknown target '$1'"
            ;;
        esac
        shift
    done
    if [ -z "$target" ]; then
        usage >&2
        exit 2
    fi
}

full_name() {
    case $1 in
    aarch64 | aarch64-unknown-linux-musl) echo aarch64-unknown-linux-musl ;;
    armv7 | armv7-unknown-linux-musleabihf) echo armv7-unknown-linux-musleabihf ;;
    armv6 | arm-unknown-linux-musleabihf) echo arm-unknown-linux-musleabihf ;;
    x86-64 | x86_64-unknown-linux-musl) echo x86_64-unknown-linux-musl ;;
    *) return 1 ;;
    esac
}

is_32_bit() {
    [[ $target == arm* ]]
}

# Prints what this machine lacks to build the target by itself; success when it lacks nothing.
missing_of_own_tools() {
    local tool
    for tool in rustc cargo zig cargo-zigbuild; do
        command -v "$tool" >/dev/null || {
            echo "$tool"
            return 1
        }
    done
    if is_32_bit; then
        # The standard library that rustup hands out dates files with 32 bits: it is built from source.
        [ -d "$(rustc --print sysroot)/lib/rustlib/src/rust/library/std" ] || {
            echo "rust-src component"
            return 1
        }
    else
        compgen -G "$(rustc --print target-libdir --target "$target")/libstd-*.rlib" >/dev/null || {
            echo "standard library for $target (rustup target add)"
            return 1
        }
    fi
}

# The folder is complete or absent: it is filled under another name, and its own is that of the recipe. Remove it to take
# newer packages.
install_debian_tools() {
    local root=$top/target/cross-tools recipe lock
    recipe=$({ declare -f fill_debian_tools && cat "$here/requirements.txt"; } | cksum | cut -d' ' -f1)
    debian_tools=$root/$recipe
    mkdir -p "$root"
    exec {lock}>"$root/lock"
    flock "$lock"
    # These can vanish without the folder: a machine may keep its disk and lose its packages.
    install_absent gcc:gcc libc6-dev:/usr/include/stdio.h python3:python3
    if [ ! -d "$debian_tools" ]; then
        fill_debian_tools "$debian_tools.new"
        mv "$debian_tools.new" "$debian_tools"
    fi
    exec {lock}>&-
}

fill_debian_tools() {
    local new=$1 package tool
    rm -rf "$new"
    mkdir -p "$new/debs/partial" "$new/root" "$new/bin" "$new/py"

    python3 -m pip --version >/dev/null 2>&1 || apt_get install python3-pip
    python3 -m pip install -q --no-deps --require-hashes --target "$new/py" -r "$here/requirements.txt" >&2

    # Unpacked beside the system, not installed: it may have another Rust. No version is named, since security updates
    # replace one another on the mirrors.
    apt_get install --download-only --reinstall -o Dir::Cache::archives="$new/debs" \
        rustc-web libstd-rust-web-dev cargo-web rust-web-src
    for package in "$new"/debs/*.deb; do
        dpkg -x "$package" "$new/root"
    done
    as_root rm -rf "$new/debs"

    ln -s ../py/ziglang/zig "$new/bin/zig"
    ln -s ../py/bin/cargo-zigbuild "$new/bin/cargo-zigbuild"
    for tool in rustc cargo rustdoc; do
        cat >"$new/bin/$tool" <<END
#!/bin/sh
root=\$(dirname "\$0")/../root
LD_LIBRARY_PATH="\$root/usr/lib/$(gcc -print-multiarch)" exec "\$root/usr/bin/$tool" "\$@"
END
        chmod +x "$new/bin/$tool"
    done
}

use_debian_tools() {
    export PATH=$debian_tools/bin:$PATH
    export RUSTC=$debian_tools/bin/rustc CARGO=$debian_tools/bin/cargo RUSTDOC=$debian_tools/bin/rustdoc
    unset RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER RUSTUP_TOOLCHAIN
}

build() {
    local name flags=() options=()
    name=${target//-/_}

    flags=(-C link-self-contained=no -C target-feature=+crt-static)
    # What a panic prints names no folder of the machine that built it, so that two machines build the same.
    flags+=("--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo" "--remap-path-prefix=$top=/larder")
    if is_32_bit; then
        # Asks the libc crate, ours and the standard library's, for musl 1.2's 64-bit time_t. The older spelling is an
        # environment variable, the newer a cfg; which of the two a release obeys differs.
        export RUST_LIBC_UNSTABLE_MUSL_V1_2_3=1
        flags+=(--cfg=libc_unstable_musl_v1_2)
    fi
    if is_32_bit || [ "$tools" = debian ]; then
        export RUSTC_BOOTSTRAP=1
        options+=(-Z "build-std=std,panic_abort")
    fi

    # Cargo prefers these two to a target's own flags.
    unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
    export "CARGO_TARGET_${name^^}_RUSTFLAGS=${flags[*]}"
    export "CFLAGS_$name=-include $here/lmdb-robust.h"

    # A folder for each target: cargo locks what it builds in, and they can be built beside each other.
    export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$top/target/cross-$target}
    cargo zigbuild --locked --manifest-path "$manifest" --profile "$profile" --target "$target" "${options[@]}" >&2
    printf '%s\n' "$CARGO_TARGET_DIR/$target/$profile/$(program_name)"
}

program_name() {
    sed -n 's/^name = "\(.*\)"$/\1/p' "$manifest" | head -n 1
}

main "$@"
