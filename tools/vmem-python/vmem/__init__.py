# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that can start empty: serve a region from a function, log the writes to memory, read it as it was at one instant.

The kernel module vmem must be loaded, and what serves or tracks memory needs root, for /dev/vmem/control. All offsets and lengths are in bytes. What
the kernel refuses is an OSError with its errno, in the subclass of that errno.
"""

from ._vmem import PAGE_SIZE, Info, Region, Snapshot, Tracking

__all__ = ["PAGE_SIZE", "Info", "Region", "Snapshot", "Tracking"]
