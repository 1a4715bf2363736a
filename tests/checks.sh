# Sourced by the scripts that are tests: each check is one line, "ok" or "FAIL" with what was expected; counted in PASSED
# and FAILED. ROUND, when set, is put before each name.
# shellcheck shell=bash

PASSED=0
FAILED=0
ROUND=

good() { PASSED=$((PASSED + 1)); echo "ok    ${ROUND}$1"; }
bad() {
    FAILED=$((FAILED + 1))
    echo "FAIL  ${ROUND}$1"
    printf '%s\n' "$2" | head -c 2000 | sed 's/^/      /'
}
is() { if [ "$2" = "$3" ]; then good "$1"; else bad "$1" "expected: $2"$'\n'"answer:   $3"; fi; }
has() { case $3 in *"$2"*) good "$1" ;; *) bad "$1" "expected in it: $2"$'\n'"answer: $3" ;; esac; }
# holds WHAT COMMAND...: the command succeeds.
holds() {
    local what=$1 text
    shift
    if text=$("$@" 2>&1); then good "$what"; else bad "$what" "$* : exit $?: $text"; fi
}
