# Sourced: finds cargo and go, also those of the user who called sudo, and says in one line what to install where one is
# missing or too old.
# shellcheck shell=bash

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

for home in "$HOME" "$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)"; do
    if ! command -v cargo >/dev/null && [ -x "$home/.cargo/bin/cargo" ]; then
        PATH=$PATH:$home/.cargo/bin
        export CARGO_HOME=$home/.cargo RUSTUP_HOME=${RUSTUP_HOME:-$home/.rustup}
    fi
done
command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
export PATH

# not_older HAVE WANT: versions, compared as such.
not_older() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

need_cargo() {
    local want have
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$TOP/Cargo.toml" | head -n 1)
    have=$(cargo --version 2>/dev/null | cut -d' ' -f2)
    if [ -z "$have" ] || ! not_older "$have" "$want"; then
        echo "cargo ${have:-is missing, so} is too old: install Rust $want or newer, for example with https://rustup.rs" |
            sed 's/cargo is missing, so is too old/cargo is missing/' >&2
        return 1
    fi
}

need_go() {
    local want have
    want=$(sed -n 's/^go \(.*\)/\1/p' "$TOP/critest/go.mod")
    have=$(go env GOVERSION 2>/dev/null | sed 's/^go//')
    # From 1.21 on an older go fetches the toolchain that a module asks for.
    if [ -z "$have" ] || ! not_older "$have" 1.21; then
        echo "go $have is missing or too old: crictl and the test images are built with Go $want, see https://go.dev/dl" |
            sed 's/  */ /g' >&2
        return 1
    fi
}

need_fuzz() {
    need_cargo || return 1
    if ! cargo +nightly --version >/dev/null 2>&1; then
        echo "there is no nightly toolchain, which libFuzzer's instrumentation needs: rustup toolchain install nightly --profile minimal" >&2
        return 1
    fi
    if ! cargo fuzz --version >/dev/null 2>&1; then
        echo "cargo-fuzz is missing: cargo install cargo-fuzz" >&2
        return 1
    fi
}

need_root() {
    [ "$(id -u)" = 0 ] || { echo "this needs root: sudo make $1" >&2; return 1; }
}

# What root made in the caller's source tree and caches is given back, so that a later build without sudo works.
give_back() {
    [ -n "${SUDO_UID:-}" ] && [ "$SUDO_UID" != 0 ] || return 0
    local folder
    for folder in "$TOP/target" "$TOP/critest" "${CARGO_HOME:-}"; do
        [ -d "$folder" ] && find "$folder" -xdev -user root -exec chown -h "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" {} + 2>/dev/null
    done
    return 0
}
