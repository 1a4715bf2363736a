#!/bin/bash
# `make fuzz`: runs each fuzzing target of fuzz/ (or TARGET) for TIME seconds, one after the other. What it finds is kept in
# fuzz/target/corpus, where the next run goes on; fuzz/corpus is only read. A finding ends the run: its input is in
# fuzz/artifacts/<target>, and belongs into fuzz/corpus/<target> once it is mended.
set -euo pipefail
# shellcheck source=deploy/scripts/toolchain.sh
. "$(dirname "$0")/toolchain.sh"
need_fuzz || exit 1
cd "$TOP"

# The code under test has no unsafe of its own, so no sanitizer by default: that is twice as many inputs. SANITIZER=address
# is for the libraries' sake. Integers that overflow and debug assertions are findings either way.
options=(--sanitizer "${SANITIZER:-none}" --codegen-units 4)
for target in ${TARGET:-$(cargo +nightly fuzz list)}; do
    found=fuzz/target/corpus/$target
    mkdir -p "$found"
    echo "== $target, ${TIME:=60} s"
    cargo +nightly fuzz run "${options[@]}" "$target" "$found" "fuzz/corpus/$target" -- \
        -max_total_time="$TIME" -timeout=10 -rss_limit_mb=1024 -max_len=8192 -print_final_stats=1
done
