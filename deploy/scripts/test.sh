#!/bin/bash
# `make test`: every check, one after the other. A failing step does not stop the next. The last line has the counts.
set -u
# shellcheck source=deploy/scripts/toolchain.sh
. "$(dirname "$0")/toolchain.sh"
need_root test || exit 1
"$TOP/deploy/scripts/install.sh" test || exit 1
need_cargo && need_go || exit 1
trap give_back EXIT
cd "$TOP" || exit 1

LOGS=$TOP/target/test-logs
rm -rf "$LOGS"
mkdir -p "$LOGS"
PASSED=0
FAILED=0
STEPS=()

# step NAME KIND COMMAND...: KIND says how to count: `one` is the command's exit, `cargo` sums what test binaries say,
# `counts` takes the line `N passed, N failed, N skipped` that the command ends with.
step() {
    local name=$1 kind=$2 code=0 started=$SECONDS passed=0 failed=0 log
    shift 2
    log=$LOGS/$name.log
    STEPS+=("$name")
    printf '== %-12s ' "$name"
    timeout -k 30 "${STEP_LIMIT:-45m}" "$@" >"$log" 2>&1 </dev/null || code=$?
    case $kind in
    one) if [ $code = 0 ]; then passed=1; else failed=1; fi ;;
    cargo) read -r passed failed < <(awk '/^test result: / { p += $4; f += $6 } END { print p + 0, f + 0 }' "$log") ;;
    counts) read -r passed failed < <(sed -n 's/.* \([0-9]*\) passed, \([0-9]*\) failed, [0-9]* skipped$/\1 \2/p' "$log" | tail -n 1) ;;
    esac
    # A step that did not come to its counting (a build error, a clock that ran out) is a failure of its own.
    [ $code = 0 ] || [ "${failed:-0}" -gt 0 ] || failed=1
    PASSED=$((PASSED + ${passed:-0}))
    FAILED=$((FAILED + ${failed:-0}))
    echo "${passed:-0} passed, ${failed:-0} failed ($((SECONDS - started)) s)"
    if [ "${failed:-0}" -gt 0 ]; then
        grep -nE '^(test .* FAILED|FAIL |error(\[|:)|Diff in|thread .* panicked)' "$log" | head -n 40
        echo "   exit code $code; the end of $log:"
        tail -n 40 "$log" | sed 's/^/   | /'
    fi
}

# Target and name of each test that the unit step ignored because it needs something. One that says what its machine lacks is
# run by nobody, and counts as skipped. Other reasons mark functions that are no tests of their own: some other test starts
# them as a process.
needy() {
    awk '/^ +Running / { target = $2 == "unittests" ? $3 : $2 } /^test .* \.\.\. ignored, needs / { print target, $2 }' "$LOGS/unit.log"
}

# Ignored tests that no step ran afterwards, with the reason that their author gave.
skipped() {
    awk '
        /^ +Running / { binary = $2 == "unittests" ? $3 : $2 }
        /^ +Doc-tests / { binary = "doc " $2 }
        /^test .* \.\.\. ignored(, needs |, lacks |$)/ { line = $0; sub(/^test /, "", line); name = line; sub(/ \.\.\. ignored.*/, "", name)
            reason = line; sub(/.* \.\.\. ignored,? ?/, "", reason); ignored[binary " " name] = reason; next }
        /^test .* \.\.\. / { line = $0; sub(/^test /, "", line); sub(/ \.\.\. .*/, "", line); ran[binary " " line] = 1 }
        END { for (key in ignored) if (!(key in ran)) print key ": " (ignored[key] == "" ? "no reason given" : ignored[key]) }
    ' "$LOGS"/*.log | sort
}

export RUST_LIB_BACKTRACE=0 CARGO_TERM_COLOR=never CARGO_TERM_PROGRESS_WHEN=never
step fmt one cargo fmt --all --check
step clippy one cargo clippy --workspace --all-targets -- -D warnings
step doc one env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items
step unit cargo cargo test --workspace --no-fail-fast
step go one make -C critest vet
step tools one make -C critest tools images
# The tests that a plain run ignores because they need something: by the target that has them, in the lane.
for target in $(needy | cut -d' ' -f1 | sort -u); do
    case $target in
    src/lib.rs) name=lib args=--lib ;;
    src/main.rs) name=bin args=--bins ;;
    tests/*/main.rs) name=$(basename "$(dirname "$target")") args="--test $name" ;;
    *) name=$(basename "$target" .rs) args="--test $name" ;;
    esac
    # shellcheck disable=SC2046,SC2086 # lists of words
    step "root-$name" cargo tests/in-lane.sh cargo test --offline --no-fail-fast $args -- --ignored --exact \
        $(needy | awk -v target="$target" '$1 == target { print $2 }')
done
for runtime in crun runc; do
    step "crictl-$runtime" counts tests/crictl.sh $runtime
done

SKIPPED=$(skipped)
if [ -n "$SKIPPED" ]; then
    echo "skipped:"
    printf '%s\n' "$SKIPPED" | sed 's/^/  /'
fi
echo "$PASSED passed, $FAILED failed, $(printf '%s' "$SKIPPED" | grep -c .) skipped"
[ $FAILED = 0 ]
