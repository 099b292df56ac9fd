# SPDX-License-Identifier: GPL-2.0-or-later
"""The types of the module vmem, and its reference. Offsets and lengths are in bytes, times in seconds."""

import os
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, final

from typing_extensions import Buffer

PAGE_SIZE: int
"""Bytes in a page: 4096."""

__all__ = ["PAGE_SIZE", "Info", "Region", "Snapshot", "Tracking"]

class _Event(Protocol):
    def is_set(self) -> bool: ...

class _HasFileno(Protocol):
    def fileno(self) -> int: ...

@final
class Info:
    """State and counters of a region at one moment. Pages are of PAGE_SIZE bytes."""

    @property
    def id(self) -> int:
        """Number of the region, never used twice."""
    @property
    def size(self) -> int:
        """Size in bytes, whole pages."""
    @property
    def length(self) -> int:
        """Length in bytes, as the region was created."""
    @property
    def attached(self) -> bool:
        """Whether a daemon is attached."""
    @property
    def ready(self) -> bool:
        """Whether the daemon has declared that it serves."""
    @property
    def plain(self) -> bool:
        """Whether the region has become plain memory."""
    @property
    def present(self) -> int:
        """Pages present."""
    @property
    def unreadable(self) -> int:
        """Pages marked unreadable."""
    @property
    def requested(self) -> int:
        """Absent pages that are requested."""
    @property
    def queued(self) -> int:
        """Requested pages whose request the daemon has not taken."""
    @property
    def waiters(self) -> int:
        """Threads that wait for a page."""
    @property
    def oldest_wait(self) -> float:
        """The longest time that one of them has waited, in seconds."""
    @property
    def faults(self) -> int:
        """Faults on absent pages since creation."""
    @property
    def requests(self) -> int:
        """Requests raised since creation."""
    @property
    def sigbus(self) -> int:
        """Faults answered with SIGBUS since creation."""
    @property
    def mappings(self) -> int:
        """Mappings that are not yet plain, in all processes; 4096 is that many or more."""
    @property
    def backed(self) -> int:
        """Pages read from their backing file since creation."""

@final
class Region:
    """A region: memory of a fixed size whose pages may be absent. A touch of an absent page waits for the region's daemon.

    A process that has it by create() or attach() is its daemon until close(), or the end of the process. A process that has it by open() uses it.
    """

    @staticmethod
    def create(
        size: int,
        name: str | None = None,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        fault_timeout: float | None = None,
        huge: bool = False,
        sigbus_without_daemon: bool = False,
    ) -> Region:
        """Creates a region of `size` bytes, with this process as its daemon.

        With a name (1 to 31 of A-Z a-z 0-9 . _ -), programs open it as the file /run/vmem/NAME, whose file system is mounted there unless it is
        mounted already, and as the node /dev/vmem/NAME. `path` is the one to tell them. Without a name, they get fileno(). `mode` (default 0o600),
        `uid` and `gid` (default: root) are those of the file.

        A touch that has waited for `fault_timeout` seconds gets SIGBUS, and the page is unreadable from then on. With `sigbus_without_daemon`, a touch of
        an absent page while no daemon is attached gets SIGBUS instead of waiting for the next daemon. `huge` allocates huge pages.

        FileExistsError: another region has the name, or something else is in its file's place. FileNotFoundError: the module is not loaded.
        """

    @staticmethod
    def attach(name: str) -> Region:
        """Becomes the daemon of the region with this name, which has lost its own. Requests that were not answered come again.

        FileNotFoundError: there is no such region. OSError with EBUSY: it has a daemon.
        """

    @staticmethod
    def open(path: str | os.PathLike[str], *, writable: bool = True) -> Region:
        """Opens a region to use it: by its name, or by the path of its file or node."""

    @property
    def size(self) -> int:
        """Size in bytes, whole pages."""
    @property
    def length(self) -> int:
        """Length in bytes, as the region was created."""
    @property
    def id(self) -> int:
        """Number of the region, never used twice."""
    @property
    def name(self) -> str | None:
        """Name of the region, if it has one."""
    @property
    def path(self) -> str | None:
        """The path by which programs open the region, if it has a name, or by which open() has opened it."""
    @property
    def closed(self) -> bool:
        """Whether close() was called."""

    def fileno(self) -> int:
        """A descriptor of the region, for mmap.mmap(region.fileno(), region.size) here, or in a process that gets it (pass_fds of subprocess). It can
        map the region, and cannot serve it. It is closed by close(); mappings stay.

        A touch of an absent page in a mapping waits, and holds the interpreter's lock meanwhile: no other thread of this process runs. If the region is
        served by this process, nobody answers, and both wait until the process is killed: touch it from another process, or use read() here. A touch of
        an unreadable page is SIGBUS, which ends the process.
        """

    def info(self) -> Info:
        """State and counters."""

    def absent(self) -> list[tuple[int, int]]:
        """The pages that are absent, as pairs of offset and length in bytes, in order."""

    def read(self, offset: int, length: int) -> bytes:
        """Copies `length` bytes at `offset` out of the region. Waits for absent pages, and lets other threads run meanwhile, also one that serves the region.
        Signals are handled after the copy.

        OSError with EIO: a page is unreadable.
        """

    def fill(self, offset: int, data: bytes | bytearray) -> None:
        """Fills the absent ones of whole pages, before somebody touches them. Pages that are present keep their contents.

        Only the daemon can: PermissionError.
        """

    def serve(
        self,
        read: Callable[[int, int], Buffer | None],
        *,
        stop: _Event | None = None,
        on_error: Callable[[int, int, Exception], object] | None = None,
        finish: bool = True,
    ) -> None:
        """Answers the requests of all programs that touch absent pages, until all pages are present and the region is plain memory.

        `read(offset, length)` is called for a run of whole pages, 64 at most. It returns their contents, `length` bytes, or None for zeros. At the end of the
        region it may return no more than what is inside of region.length; the rest is zeros. It must not touch absent pages of this region.

        If it raises an Exception, or returns something else, it is called again for each page of the run alone, and then the page is unreadable: a
        touch gets SIGBUS, a read EIO, for good. Serving continues. `on_error(offset, length, exception)` is called for each such page; without it,
        sys.unraisablehook, which prints the exception. What `on_error` raises ends serve(). Other exceptions, such as KeyboardInterrupt, end it, too; the
        pages that were asked for stay requested, and the next serve(), or the next daemon, is asked for them.

        Without memory for the contents (ENOMEM), the programs wait, and `read` is called again.

        Other threads run while it waits. It ends within 0.1 s after stop() from another thread, after the event `stop` is set, and after a signal whose
        handler raises (in the main thread). Pages that are absent then stay so. With finish=False, it continues when all pages are present.

        OSError with EBUSY: another thread serves the region. PermissionError: this process is not its daemon.
        """

    def stop(self) -> None:
        """Ends the serve() of another thread. If there is none, the next one returns at once."""

    def close(self) -> None:
        """Closes the descriptors, and ends the serve() of another thread. A daemon lets its region go: programs wait for the next daemon, and a region that
        no program has open ends."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, type: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

@final
class Tracking:
    """Memory whose writes are logged: by all processes that map it, by virtual CPUs, and by the kernel for a process."""

    def __new__(cls, memory: Region | int | _HasFileno, *, fills: bool = False) -> Self:
        """Begins to log the writes to a region, or to shared memory that this process has a descriptor of: a memfd, a file in a tmpfs. It is open for
        writing, and by this one open file alone.

        With `fills`, pages that the region's daemon fills are in the log, too.

        OSError with EBUSY: the memory is adopted already, or open for writing a second time. OSError with EINVAL: not shared memory.
        """

    @staticmethod
    def open(path: str | os.PathLike[str], pid: int | None = None, *, fills: bool = False) -> Tracking:
        """Begins to log the writes to a region, by the path of its file or node, or to shared memory that process `pid` has open at `path`, which
        may be a memfd ("/memfd:ram")."""

    @property
    def size(self) -> int:
        """Size of the memory in bytes, whole pages."""

    def peek(self) -> list[tuple[int, int]]:
        """The pages in the log, as pairs of offset and length in bytes, in order. The log stays as it is."""

    def clean(self) -> list[tuple[int, int]]:
        """The same, and takes them out of the log: the next call has what is written from now on. A page may be in it again although nobody has
        written to it, if it is pinned for a device."""

    def snapshot(self, *, clean: bool = True, once: bool = False, limit: int = 0) -> Snapshot:
        """The contents of the memory at this instant. The memory has one snapshot at a time.

        With `clean`, the log moves into the snapshot: written() has it. With `once`, the read of a whole page frees its copy, and the page cannot be read
        again. If the copies of pages that programs overwrite need more than `limit` bytes, the snapshot fails (OSError with ESTALE); 0 is no limit.
        """

    def close(self) -> None:
        """Ends the log, when its snapshot is closed, too."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, type: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

@final
class Snapshot:
    """The contents of memory at one instant, from Tracking.snapshot(). Programs continue to write to the memory."""

    @property
    def size(self) -> int:
        """Size of the memory in bytes, whole pages."""
    @property
    def held_up(self) -> float:
        """For how long writers were held up while the snapshot was taken, in seconds."""

    def fileno(self) -> int:
        """A descriptor that is read as a file of the memory's size (os.pread). It is closed by close()."""

    def read(self, offset: int, length: int) -> bytes:
        """Copies `length` bytes at `offset` out of the snapshot. Waits for pages that were absent at the instant.

        OSError with ENODATA: a page is done; EIO: it is absent and cannot be had; ESTALE: the snapshot has failed.
        """

    def written(self) -> list[tuple[int, int]]:
        """The pages that were written since the snapshot before, or since tracking began, as pairs of offset and length in bytes, in order. Those
        that are done are left out."""

    def data(self) -> list[tuple[int, int]]:
        """The pages that have contents, as pairs of offset and length in bytes, in order. All others are zeros, or done."""

    def done(self, offset: int = 0, length: int | None = None) -> None:
        """Ends the use of whole pages, by default of all: they cannot be read again, and do not return to the log."""

    def close(self) -> None:
        """Ends the snapshot. Pages of written() that are not done return to the log: they are in the next snapshot."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, type: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...
