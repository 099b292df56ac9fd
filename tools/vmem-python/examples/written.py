#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program writes to its shared memory between two instants.

written.py PID MEMORY [SECONDS]: MEMORY is what process PID has open, a file in a tmpfs or a memfd ("/memfd:ram"), or the path of a region. Prints, for each run of
pages that were written in SECONDS (default 1), where it is, and how it begins; all as it was at one instant. The program goes on meanwhile.
"""

import sys
import time

import vmem


def main():
    pid, memory = int(sys.argv[1]), sys.argv[2]
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 1.0
    with vmem.Tracking.open(memory, pid) as tracking:
        tracking.clean()
        time.sleep(seconds)
        with tracking.snapshot(limit=1 << 30) as snapshot:
            written = snapshot.written()
            for offset, length in written:
                print(f"{offset:#x} {length >> 10} KiB {snapshot.read(offset, 16).hex()}")
            snapshot.done()
        total = sum(length for _, length in written)
        print(f"{total >> 10} of {tracking.size >> 10} KiB were written in {seconds} s")


if __name__ == "__main__":
    main()
