# SPDX-License-Identifier: Apache-2.0
"""A program that counts, and with ``--save`` asks for its own snapshot once it is warm.

It makes the calls of GKE's documentation: the file is opened once, as text, for reading and
writing; ``1`` goes in, and the answer comes out of the same descriptor when the save is over, in
the Pod that was saved and again in each Pod that is restored from it. The trap: what has to differ
between those Pods must be drawn after the answer.
"""

import argparse
import os
import secrets
import signal
import socket
import time

CHECKPOINT = "/proc/gvisor/checkpoint"
WARM_AFTER = 3
STEP_S = 0.5


def ask() -> str:
    """Ask for a save and return the answer; without snapshots a program has to run all the same."""
    try:
        with open(CHECKPOINT, "r+", encoding="ascii") as file:
            file.write("1")
            file.flush()
            return file.read().strip()
    except FileNotFoundError:
        return "not enabled"
    except OSError as error:
        return f"not possible: {error}"


def main() -> None:
    """Count until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--save", action="store_true")
    is_saving = parser.parse_args().save
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # as PID 1 it would not end by itself
    nonce = secrets.token_hex(8)
    print(f"Started: nonce {nonce}")
    count = 0
    while True:
        count += 1
        print(f"Count: {count}, nonce {nonce}, on {socket.gethostname()}")
        if is_saving and count == WARM_AFTER:
            print(f"GKE Pod Snapshot: {ask()}")
        time.sleep(STEP_S)


if __name__ == "__main__":
    main()
