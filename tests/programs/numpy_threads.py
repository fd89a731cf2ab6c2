#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""numpy_threads: numpy arrays worked on by several Python threads, deterministically.

Each thread has a generator and arrays of its own; they meet at a barrier every
round, where thread 0 mixes what all have into one checksum.
"""

import argparse
import hashlib
import threading
import time

import numpy


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--threads", type=int, default=4)
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--round-ms", type=float, default=0, help="pause in each round")
    options.add_argument("--size", type=int, default=200, help="rows and columns of each array")
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()

    digest = hashlib.sha256()
    states = [None] * given.threads
    barrier = threading.Barrier(given.threads)

    def work(me):
        generator = numpy.random.default_rng([given.seed, me])
        state = generator.standard_normal((given.size, given.size))
        counts = numpy.zeros(given.size * given.size, dtype=numpy.int64)
        for number in range(1, given.rounds + 1):
            step = generator.standard_normal((given.size, given.size))
            state = numpy.tanh(state @ step / given.size) + 0.5 * state
            counts += generator.integers(0, 1000, counts.size)
            time.sleep(given.round_ms / 1000)
            states[me] = (state, counts)
            barrier.wait()
            if me == 0:
                for floats, integers in states:
                    digest.update(floats.tobytes())
                    digest.update(integers.tobytes())
                print(f"round {number} of {given.rounds}", flush=True)
            barrier.wait()

    threads = [threading.Thread(target=work, args=(me,)) for me in range(given.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"RESULT numpy_threads rounds={given.rounds} sha256={digest.hexdigest()[:32]}")


if __name__ == "__main__":
    main()
