#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# pipeline: a bash script whose work is a pipeline of unmodified programs.
#
#   pipeline.sh [ROUNDS [NUMBERS]]
#
# Each round shuffles, sorts and compresses 1..NUMBERS; the shuffle's randomness
# comes from /dev/zero, so it is the same every time. The rounds' checksums are
# chained into the result.
set -euo pipefail

rounds=${1:-5} numbers=${2:-20000}
chain=start
for ((round = 1; round <= rounds; round++)); do
    sum=$(seq "$((numbers + round))" | sort -R --random-source=/dev/zero |
        tee >(wc -l >/dev/null) | LC_ALL=C sort -S 8M | xz -6 -c | sha256sum)
    chain=$(sha256sum <<<"$chain ${sum%% *}")
    echo "round $round of $rounds"
done
echo "RESULT pipeline rounds=$rounds numbers=$numbers sha256=${chain:0:32}"
