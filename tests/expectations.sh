# Sourced: what a run of critest has to skip, and the comparison with what it did.
#
# critest/expected/<lane>-<runtime>.txt has one line for each spec that does not run there: its exact name, ` — `, and why.
# A line `[without NAME]` opens a part that counts only where the machine lacks NAME (see lacks). `[cannot]` opens a part with
# specs at which the runtime itself fails: they are left out of the run, and the reason is the evidence. `[always]` closes a part.
# Lines that begin with `#`, and empty ones, are for the reader. A spec that is skipped and not named fails the run, as does
# one that is named and runs: then the line has to go.
# shellcheck shell=bash

# lacks NAME: whether this machine is without a thing that decides about specs.
lacks() {
    case $1 in
    apparmor) [ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" != Y ] || ! command -v apparmor_parser >/dev/null ;;
    *) echo "expectations: [without $1] is not known" >&2; return 2 ;;
    esac
}

# expected_skips FILE: the names that the file expects here, sorted.
expected_skips() {
    local line counts=yes
    while IFS= read -r line; do
        case $line in
        '' | '#'*) ;;
        '[always]' | '[cannot]') counts=yes ;;
        '[without '*']')
            line=${line#\[without }
            if lacks "${line%\]}"; then counts=yes; else counts=no; fi
            ;;
        *' — '?*) [ $counts = no ] || echo "${line%% — *}" ;;
        *) echo "line without a reason: $line" ;;
        esac
    done <"$1" | LC_ALL=C sort
}

# cannot FILE: a regular expression for the specs of the file's part [cannot], nothing if there are none.
cannot() {
    awk '/^\[(cannot|always|without .*)\]$/ { on = $0 == "[cannot]"; next } on && / — ./ { sub(/ — .*/, ""); print }' "$1" |
        sed -e 's/[][().*+?{}|^$\\]/\\&/g' | paste -sd '|'
}

# specs REPORT STATE_REGEX: the names of the specs that ended so, from ginkgo's JSON report, sorted.
specs() {
    jq -r --arg states "$2" '.[].SpecReports[]? | select(.LeafNodeType == "It" and (.State | test($states))) |
        .ContainerHierarchyTexts + [.LeafNodeText] | join(" ")' "$1" | LC_ALL=C sort
}

# verdict REPORT EXPECTED|- PATTERN: prints what failed and how the skips differ from the file (`-`: they are not compared),
# then the counts. Only specs whose name matches PATTERN count. Fails when anything is not as expected.
verdict() {
    local report=$1 expected=$2 pattern=$3 code=0 failed skipped
    failed=$(specs "$report" '^(failed|panicked|timedout|interrupted|aborted)$' | grep -E -- "$pattern")
    skipped=$(specs "$report" '^(skipped|pending)$' | grep -E -- "$pattern")
    if [ -n "$failed" ]; then
        code=1
        printf '%s\n' "$failed" | sed 's/^/  FAIL  /'
    fi
    # Not every failure is a spec's: a suite that ends early, a node of a parallel run that is lost.
    if ! jq -e 'all(.[]; .SuiteSucceeded)' "$report" >/dev/null; then
        code=1
        jq -r '.[].SpecialSuiteFailureReasons[]?' "$report" | sed 's/^/  FAIL  the suite: /'
    fi
    if [ "$expected" != - ]; then
        if ! diff <(expected_skips "$expected") <(printf '%s\n' "$skipped" | sed '/^$/d') >"$report.diff"; then
            code=1
            echo "  skipped otherwise than $expected says:"
            sed -n -e 's/^< /    expected, but it ran: /p' -e 's/^> /    not expected: /p' "$report.diff"
            # The suite's own reasons, as a start for who edits the file.
            jq -r '.[].SpecReports[]? | select(.State == "skipped" and .Failure.Message) |
                (.ContainerHierarchyTexts + [.LeafNodeText] | join(" ")) + " — " + .Failure.Message' "$report" | sed 's/^/    says: /'
        fi
        rm -f "$report.diff"
    fi
    echo "$(specs "$report" '^passed$' | grep -cE -- "$pattern") passed, $(printf '%s' "$failed" | grep -c .) failed," \
        "$(printf '%s' "$skipped" | grep -c .) skipped"
    return $code
}
