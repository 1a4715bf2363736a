#!/bin/bash
# Builds youki, a third OCI runtime, into critest/bin: with cgroup v1, which its build leaves out by default, and with seccomp,
# without which it would run containers without their filters.
set -eu
TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
VERSION=0.7.0
said=$("$TOP/critest/bin/youki" --version 2>/dev/null || true)
# Of its features it leaves seccomp open; the library that it was built with is named beside the version.
if grep -q "version: $VERSION$" <<<"$said" && grep -q "^libseccomp: " <<<"$said"; then
    exit 0
fi
command -v pkg-config >/dev/null && pkg-config --exists libseccomp || {
    echo "youki.sh: libseccomp-dev and pkg-config are missing" >&2
    exit 1
}
cargo install youki --version "$VERSION" --locked --features v1,seccomp --root "$TOP/target/youki" --target-dir "$TOP/target/youki/build"
mkdir -p "$TOP/critest/bin"
cp "$TOP/target/youki/bin/youki" "$TOP/critest/bin/youki"
rm -rf "$TOP/target/youki"
