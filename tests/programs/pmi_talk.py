#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""pmi_talk.py: speaks PMI-1 with its process manager by itself, so that what it asks and when is known.

Each rank puts a key; one barrier. Rank 0 publishes a name, says READY, and waits in a second barrier for the others, who
put another key and come when there is a file "go". Then all ask for all keys, and rank 1 for the name. Rank 0 prints
what it was told, rank 1 the name. Exit: 0; 1 when the manager has gone or says no.
"""

import os
import socket
import sys
import time

MANAGER = socket.socket(fileno=int(os.environ["PMI_FD"]))
LINES = MANAGER.makefile("r", newline="\n")
RANK, SIZE = int(os.environ["PMI_RANK"]), int(os.environ["PMI_SIZE"])


def ask(request, answer):
    MANAGER.sendall(request.encode() + b"\n")
    line = LINES.readline().rstrip("\n")
    if not line.startswith(f"cmd={answer}"):
        print(f"rank {RANK}: {request}: {line!r}", file=sys.stderr, flush=True)
        sys.exit(1)
    return line


def say(text):
    # Behind what others say in the same moment, whole.
    os.write(1, (text + "\n").encode())


ask("cmd=init pmi_version=1 pmi_subversion=1", "response_to_init")
SPACE = ask("cmd=get_my_kvsname", "my_kvsname").rpartition("kvsname=")[2]
ask(f"cmd=put kvsname={SPACE} key=first{RANK} value=card-{RANK}", "put_result")
ask("cmd=barrier_in", "barrier_out")
if RANK == 0:
    ask("cmd=publish_name service=door port=behind", "publish_result")
    say("READY")
else:
    while not os.path.exists("go"):
        time.sleep(0.05)
    ask(f"cmd=put kvsname={SPACE} key=second{RANK} value=late-{RANK}", "put_result")
ask("cmd=barrier_in", "barrier_out")
if RANK == 0:
    names = [f"first{rank}" for rank in range(SIZE)] + [f"second{rank}" for rank in range(1, SIZE)]
    say("KEYS " + "; ".join(ask(f"cmd=get kvsname={SPACE} key={name}", "get_result").partition("value=")[2] for name in names))
if RANK == 1:
    say("NAME " + ask("cmd=lookup_name service=door", "lookup_result"))
ask("cmd=barrier_in", "barrier_out")
ask("cmd=finalize", "finalize_ack")
