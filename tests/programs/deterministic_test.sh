#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Each test program gives one RESULT line, the last, and the same one twice.
#
#   deterministic_test.sh DIRECTORY_OF_PROGRAMS
set -euo pipefail
cd "$1"

same_twice() {
    local first second
    first=$(timeout 60 "$@" 2>/dev/null) || { echo "FAILED: $*"; exit 1; }
    second=$(timeout 60 "$@" 2>/dev/null)
    if [[ $first != "$second" || $(grep -c ^RESULT <<<"$first") != 1 ||
        $(tail -1 <<<"$first") != RESULT* ]]; then
        printf 'not the same twice: %s\n%s\n%s\n' "$*" "$first" "$second"
        exit 1
    fi
    tail -1 <<<"$first"
}

# A line an option must change, or must not.
result() { timeout 60 "$@" 2>/dev/null | tail -1; }
differ() { [[ $1 != "$2" ]] || { echo "the same though it must differ: $1"; exit 1; }; }
agree() { [[ $1 == "$2" ]] || { printf 'differ:\n%s\n%s\n' "$1" "$2"; exit 1; }; }

same_twice ./malloc_and_write --mib 16 --percent 10 --rounds 5
same_twice ./malloc_and_write --mib 1 --percent 100 --rounds 3
same_twice ./mgs --rows 128 --columns 64
same_twice ./fork_sysv --rounds 300
same_twice ./threads_sum --rounds 30
same_twice ./numpy_threads.py --rounds 4
same_twice ./pipeline.sh 2 5000
same_twice ./primes.pl --limit 50000

differ "$(result ./malloc_and_write --mib 4 --seed 1)" "$(result ./malloc_and_write --mib 4 --seed 2)"
differ "$(result ./mgs --rows 64 --columns 8 --seed 1)" "$(result ./mgs --rows 64 --columns 8 --seed 2)"
for how in futex yield sleep; do
    agree "$(result ./mgs --rows 64 --columns 32 --fork 1)" \
        "$(result ./mgs --rows 64 --columns 32 --fork 3 --wait "$how")"
done
[[ $(result ./primes.pl --limit 100000) == *count=9592* ]] || { echo "primes are wrong"; exit 1; }
