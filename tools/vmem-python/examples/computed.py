#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""An array of 1 GiB that is computed where it is read: element i of 2^27 is the square of i, modulo 2^64.

computed.py NAME: serves it as /run/vmem/NAME until Ctrl-C. Any program can map or read that file; in Python, in another process:

    import mmap, struct
    with open("/run/vmem/NAME", "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    print(struct.unpack_from("=Q", memory, 8 * 123456789)[0])

Do not touch a mapping of the region in the process that serves it: a touch holds the interpreter's lock, which read() needs for its answer.
"""

import array
import sys

import vmem

SIZE = 1 << 30
calls = 0


def read(offset, length):
    """The bytes of whole pages."""
    global calls
    calls += 1
    first, count = offset // 8, length // 8
    return array.array("Q", (i * i % 2**64 for i in range(first, first + count))).tobytes()


def main():
    with vmem.Region.create(SIZE, sys.argv[1], mode=0o644) as region:
        print(f"{region.path}: {SIZE >> 20} MiB, none of which is there yet", flush=True)
        try:
            region.serve(read)
        except KeyboardInterrupt:
            pass
        print(f"computed {region.info().present * vmem.PAGE_SIZE >> 10} KiB in {calls} calls")


if __name__ == "__main__":
    main()
