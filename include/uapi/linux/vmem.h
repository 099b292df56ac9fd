/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * vmem: memory that can start empty.
 *
 * The interface between vmem.ko, the programs that map a region, and the
 * daemon that fills it.
 */
#ifndef _UAPI_LINUX_VMEM_H
#define _UAPI_LINUX_VMEM_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * DOC: vmem
 *
 * A region is a piece of memory of a fixed size whose pages may be absent.
 * Programs map it; a touch of an absent page (a fault) becomes a request,
 * which the daemon reads. The daemon puts the page's contents into the
 * region's staging file, a shmem file that *is* the memory, and marks the page
 * as present; the fault then completes.
 *
 * Pages are named by their page offset (pgoff) in the region, in units of
 * &vmem_features.page_size bytes.
 *
 * There are five kinds of descriptor:
 *
 * - the control descriptor, an open of ``/dev/vmem/control``: creates regions
 *   and attaches a daemon to them;
 * - the region descriptor, from %VMEM_CREATE_VMEM or %VMEM_ATTACH: serves the
 *   region, and can map it. A region has one at most; the daemon is attached as
 *   long as it (or a duplicate of it) is open;
 * - the map descriptor, an open of ``/dev/vmem/NAME`` or from
 *   %VMEM_GET_MAP_FD: can map the region and wait for it, and cannot serve it;
 * - the adopted descriptor, from %VMEM_ADOPT: logs the writes to shared memory
 *   that exists already, of programs that know nothing of it. The memory is
 *   adopted as long as it (or a duplicate of it) is open;
 * - the snapshot descriptor, from %VMEM_SNAPSHOT: the contents that adopted
 *   memory had at one instant, to be read and mapped as a file.
 *
 * Rules for every call:
 *
 * - pointers are passed as __u64; flags that are not listed and reserved
 *   fields that are not zero give ``EINVAL``;
 * - arguments are checked as a whole before anything is done;
 * - a call on several ranges that stops half-way (no memory, the caller is being
 *   killed) says in ``done`` how many ranges are complete, whatever it returns,
 *   and can be called again with the rest.
 *
 * Errors of every call:
 *
 * ======  ====================================================================
 * EFAULT  an argument is not readable or not writable
 * EINVAL  an unknown flag, a reserved field that is not zero, a range that is
 *         empty or not inside the region, too many ranges
 * ENOTTY  the descriptor does not have this call
 * EPERM   the call serves the region and the descriptor is a map descriptor
 * ENOMEM  no memory
 * EINTR   a signal came first (calls that wait are restarted where the signal's
 *         handler asks for it)
 * ======  ====================================================================
 */

/** VMEM_IOC_MAGIC: the ioctl type of all calls. */
#define VMEM_IOC_MAGIC		0xBB

/** VMEM_NAME_MAX: size of a region's name in bytes, with the final NUL. */
#define VMEM_NAME_MAX		32

/**
 * VMEM_SUPER_MAGIC: the type of the file system "vmem", as statfs(2) gives it.
 *
 * The inode of a region's file has the number of the region plus 1. So whoever
 * may look a file up, and not open it, knows which region it is.
 */
#define VMEM_SUPER_MAGIC	0x766d656d

/** VMEM_MAX_SIZE: size of the largest region in bytes (16 TiB). */
#define VMEM_MAX_SIZE		(1ULL << 44)

/** VMEM_MAX_BATCH: the most entries in the array of one call. */
#define VMEM_MAX_BATCH		4096

/* Bits of vmem_features.features. */
/** VMEM_FEATURE_FILL: %VMEM_FILL_PAGES exists. */
#define VMEM_FEATURE_FILL	(1ULL << 0)
/** VMEM_FEATURE_POISON: %VMEM_CREATE_POISON exists. */
#define VMEM_FEATURE_POISON	(1ULL << 1)
/**
 * VMEM_FEATURE_TRACK: %VMEM_ADOPT exists, and with it %VMEM_TRACK, %VMEM_UNTRACK,
 * %VMEM_DIRTY and %VMEM_GET_TRACKING.
 */
#define VMEM_FEATURE_TRACK	(1ULL << 2)
/**
 * VMEM_FEATURE_SNAPSHOT: %VMEM_SNAPSHOT exists, and with it %VMEM_SNAPSHOT_DONE and
 * %VMEM_GET_SNAPSHOT.
 */
#define VMEM_FEATURE_SNAPSHOT	(1ULL << 3)
/** VMEM_FEATURE_STAGE: %VMEM_FILL_PAGES has the flag VMEM_FILL_STAGE. */
#define VMEM_FEATURE_STAGE	(1ULL << 4)
/**
 * VMEM_FEATURE_FILES: the file system type "vmem" exists, in which each region with a
 * name is a regular file.
 */
#define VMEM_FEATURE_FILES	(1ULL << 5)
/** VMEM_FEATURE_BACKING: %VMEM_SET_BACKING exists. */
#define VMEM_FEATURE_BACKING	(1ULL << 6)
/** VMEM_FEATURE_TRACK_ALL: %VMEM_TRACK has the flag VMEM_TRACK_ALL. */
#define VMEM_FEATURE_TRACK_ALL	(1ULL << 7)
/** VMEM_FEATURE_RESUME: %VMEM_RESUME exists. */
#define VMEM_FEATURE_RESUME	(1ULL << 8)

/**
 * struct vmem_features - what this module can do (VMEM_GET_FEATURES)
 * @features: set of VMEM_FEATURE bits
 * @max_size: the largest region, in bytes
 * @page_size: size of a page, in bytes
 * @max_batch: the most entries in the array of one call
 * @reserved: zero
 *
 * On any descriptor.
 */
struct vmem_features {
	__u64 features;
	__u64 max_size;
	__u32 page_size;
	__u32 max_batch;
	__u64 reserved[5];
};

/**
 * VMEM_CREATE_HUGE: the memory comes in transparent huge pages, where they are
 * available. The first page of a huge page that is filled allocates and charges
 * all of it; its other pages are absent until they are filled.
 * Of /sys/kernel/mm/transparent_hugepage/shmem_enabled only "deny" forbids it.
 * When the region becomes plain memory its mappings get the flag that
 * madvise(MADV_HUGEPAGE) sets, but for those with MADV_NOHUGEPAGE.
 */
#define VMEM_CREATE_HUGE	(1U << 0)
/**
 * VMEM_CREATE_SIGBUS: while no daemon is attached, a touch of an absent page
 * gets SIGBUS. Without it, it waits for the next daemon.
 */
#define VMEM_CREATE_SIGBUS	(1U << 1)
/**
 * VMEM_CREATE_POISON: an unreadable page answers as memory that is broken. The
 * SIGBUS of a touch has the code BUS_MCEERR_AR and not BUS_ADRERR, if the kernel
 * has CONFIG_MEMORY_FAILURE; KVM sends it to the virtual CPU's thread instead of
 * failing, so that a virtual machine monitor can inject a machine check, and its
 * guest loses a process and not itself. The kernel logs each such touch in user
 * mode. A touch that gets SIGBUS for another reason is not concerned.
 */
#define VMEM_CREATE_POISON	(1U << 2)

/** VMEM_ID_KEEP: as uid or gid, the node and the file belong to root. */
#define VMEM_ID_KEEP		((__u32)~0U)

/**
 * struct vmem_create - create a region (VMEM_CREATE_VMEM)
 * @size: in: size in bytes, not zero; out: rounded up to whole pages. The file of the
 *	region has exactly the size given; what is left of the last page is zero when
 *	the page becomes present
 * @flags: VMEM_CREATE_HUGE, VMEM_CREATE_SIGBUS, VMEM_CREATE_POISON
 * @fault_timeout_ms: a page for which a touch has waited this long, in
 *	milliseconds and without being interrupted by a signal, is taken as
 *	unreadable: SIGBUS. A touch through a mapping that cannot write to the
 *	region (read-only, or private) gets SIGBUS then, and the page stays as it
 *	is. 0 waits without end
 * @name: empty, or the name of the node /dev/vmem/NAME and of the file: 1 to 31 of
 *	``A-Z a-z 0-9 . _ -``, not beginning with a dot, not ``control``;
 *	padded with NUL bytes
 * @mode: permission bits of the node and the file, up to 0777; 0 is 0600. 0 without a
 *	name
 * @uid: owner of both, or VMEM_ID_KEEP; nothing without a name
 * @gid: group of both, or VMEM_ID_KEEP; nothing without a name
 * @vmem_fd: out: the region descriptor, close-on-exec
 * @shmem_fd: out: the staging file, close-on-exec. Its size is sealed.
 * @reserved0: zero
 * @id: out: number of the region, never used twice
 * @reserved: zero
 *
 * On the control descriptor. The caller is the region's daemon.
 *
 * Errors: EINVAL (size, mode, name, or an id that the caller's user namespace
 * does not have), EFBIG (size over VMEM_MAX_SIZE),
 * EEXIST (the name is taken), ENOSPC (no more nodes), EMFILE, ENFILE.
 */
struct vmem_create {
	__u64 size;
	__u32 flags;
	__u32 fault_timeout_ms;
	char name[VMEM_NAME_MAX];
	__u32 mode;
	__u32 uid;
	__u32 gid;
	__s32 vmem_fd;
	__s32 shmem_fd;
	__u32 reserved0;
	__u64 id;
	__u64 reserved[2];
};

/**
 * struct vmem_attach - become the daemon of a region (VMEM_ATTACH)
 * @name: name of the region, or empty
 * @id: its number, if @name is empty; else 0
 * @flags: zero
 * @vmem_fd: out: the region descriptor, close-on-exec
 * @shmem_fd: out: the staging file, close-on-exec
 * @reserved0: zero
 * @size: out: size of the region in bytes
 * @reserved: zero
 *
 * On the control descriptor. Requests that an earlier daemon took and did not
 * answer are queued again. VMEM_GET_PRESENT returns which pages need no filling.
 *
 * Errors: ENOENT (no such region), EBUSY (a daemon is attached), EMFILE,
 * ENFILE.
 */
struct vmem_attach {
	char name[VMEM_NAME_MAX];
	__u64 id;
	__u32 flags;
	__s32 vmem_fd;
	__s32 shmem_fd;
	__u32 reserved0;
	__u64 size;
	__u64 reserved[2];
};

/**
 * struct vmem_adopt - make a region of shared memory that exists (VMEM_ADOPT)
 * @fd: a descriptor of the memory, open for reading and writing: a memfd, a file in a tmpfs
 *	(/dev/shm), a region or map descriptor, or the staging file of a region that is
 *	plain memory. A descriptor of another process comes by pidfd_getfd(2) or by
 *	SCM_RIGHTS; except for a region, it has to be the same open file, and not the
 *	file opened again
 * @flags: zero
 * @vmem_fd: out: the adopted descriptor, close-on-exec
 * @reserved0: zero
 * @size: out: size of the memory in bytes, rounded up to whole pages
 * @id: out: number of the region, never used twice; of a region that exists, its own
 * @reserved: zero
 *
 * On the control descriptor. Nothing about the memory changes until
 * %VMEM_TRACK. All pages count as present, and a hole reads as zeros, but in a region
 * that is not complete: there an absent page stays absent until its daemon brings it.
 *
 * Errors: EBADF (no such descriptor), EINVAL (not a regular file of shared
 * memory; empty), EACCES (not open for both), EOPNOTSUPP (hugetlbfs; memory of
 * System V or of a driver; the staging file, and not a descriptor, of a region that is
 * not plain memory), EFBIG (size over VMEM_MAX_SIZE), EBUSY (it is adopted already, or the
 * file is open for writing a second time, whose writes could not be seen), EMFILE,
 * ENFILE.
 */
struct vmem_adopt {
	__s32 fd;
	__u32 flags;
	__s32 vmem_fd;
	__u32 reserved0;
	__u64 size;
	__u64 id;
	__u64 reserved[2];
};

/**
 * VMEM_TRACK_FILLS: the log also gets pages of a region that its daemon fills or marks
 * present, just before and after they are present. Without it, it does not: the program
 * that copies the memory has the source of these pages. On other memory it does nothing.
 */
#define VMEM_TRACK_FILLS	(1U << 0)

/**
 * VMEM_TRACK_ALL: the log begins with all pages of the memory. They stay mapped, and
 * writes to them cause no faults, until they are cleaned for the first time: for a
 * reader that has to take each page once in any case, and that takes it out of the log
 * just before it reads it.
 */
#define VMEM_TRACK_ALL		(1U << 1)

/**
 * struct vmem_track - begin to log writes (VMEM_TRACK)
 * @flags: set of VMEM_TRACK_FILLS, VMEM_TRACK_ALL
 * @reserved0: zero
 * @mappings: out: shared mappings of the memory, in all processes, that are
 *	tracked
 * @held: out: pages that are in the log from the beginning, since they have
 *	references through which they may be written to without being seen; zero
 *	with VMEM_TRACK_ALL, which does not look for them
 * @reserved: zero
 *
 * On an adopted descriptor. Every write to the memory that is begun after this
 * call has returned is in the log: those of every process that maps it, of virtual
 * CPUs, of the kernel for a process, and by write(2) and fallocate(2) to its file.
 * So are those through mappings and descriptors that are made later. A private
 * mapping does not write to the memory. Nor is it a write that a page of a region comes
 * (but see VMEM_TRACK_FILLS); that the daemon writes to the staging file by itself is
 * one. A region can become plain memory meanwhile.
 *
 * While it is tracked its size cannot be changed (as with F_SEAL_SHRINK and
 * F_SEAL_GROW), userfaultfd(2) cannot be registered for it, but for asynchronous
 * write protection, and it cannot be pinned for long (VFIO, buffers that are
 * registered with io_uring): that is EFAULT there. What was pinned before stays in
 * the log.
 *
 * The log ends with %VMEM_UNTRACK, or with the descriptor. The call takes about
 * a tenth of a second, of which writers are held up for none. It takes the locks of all
 * processes that map the memory, and so does %VMEM_UNTRACK: one of them may hold its own
 * while it waits for a page, so the only thread of a region's daemon does neither.
 *
 * Errors: EALREADY (it is tracked), EBUSY (a mapping is userfaultfd's or another
 * driver's, or the file has been opened for writing a second time), EAGAIN
 * (descriptors of the memory are written to or mapped all the time, so that it was
 * never at rest; or its size has just changed), EINTR (the caller is being
 * killed). The memory is then as before.
 */
struct vmem_track {
	__u32 flags;
	__u32 reserved0;
	__u64 mappings;
	__u64 held;
	__u64 reserved[2];
};

/**
 * VMEM_DIRTY_CLEAN: pages that are reported are taken out of the log and protected
 * again, so that the next write to them is logged anew. Without it, the log stays
 * as it is.
 */
#define VMEM_DIRTY_CLEAN	(1U << 0)
/** VMEM_DIRTY_RANGES: the answer is an array of ranges, and not a bitmap. */
#define VMEM_DIRTY_RANGES	(1U << 1)

/**
 * struct vmem_dirty - read the log of a range (VMEM_DIRTY)
 * @pgoff: the first page; a multiple of 64 for a bitmap
 * @nr_pages: how many, not zero
 * @out: address of an array: of __u64, one bit a page, the lowest bit first (bits
 *	after the last page are zero); with VMEM_DIRTY_RANGES, of struct vmem_range
 * @nr: with VMEM_DIRTY_RANGES, in: room in the array, 1 to VMEM_MAX_BATCH, out:
 *	ranges in it. Else zero
 * @flags: VMEM_DIRTY_CLEAN, VMEM_DIRTY_RANGES
 * @done: out: pages of the range that have been gone through. Less than @nr_pages
 *	if the array of ranges is full, or the call stopped: the rest is for the next
 *	call
 * @dirty: out: how many of them are reported
 * @held: out: how many of those stay in the log with VMEM_DIRTY_CLEAN, since they
 *	have references through which they may be written to without being seen: they
 *	are pinned (O_DIRECT, RDMA, VFIO), a debugger writes to them, or the kernel has
 *	just allocated or moved them
 * @reserved: zero
 *
 * On an adopted descriptor that tracks, and on a snapshot descriptor. A page that was reported by
 * VMEM_DIRTY_CLEAN and is read after the call has returned has the contents that
 * are logged up to then, or later ones, which the next call reports. A page may be
 * reported though its contents are as before. Each page that is cleaned is reported
 * to one caller: processes that share the descriptor share the log.
 *
 * Errors: ENODATA (it is not tracked), EFAULT (@out or the argument is not
 * writable: everything of the range stays in the log), EINTR (the caller is being
 * killed; what was gone through stays reported).
 */
struct vmem_dirty {
	__u64 pgoff;
	__u64 nr_pages;
	__u64 out;
	__u32 nr;
	__u32 flags;
	__u64 done;
	__u64 dirty;
	__u64 held;
	__u64 reserved;
};

/**
 * struct vmem_tracking - figures of the log (VMEM_GET_TRACKING)
 * @tracked: 1 while the memory is tracked, else 0, and so is the rest
 * @mappings: mappings that are tracked; 4096 is that many or more
 * @dirty: pages in the log
 * @faults: first writes to protected pages since the log began, and reads through a
 *	mapping of a region that was being made just then
 * @written: calls of write(2) and fallocate(2) that were logged since then
 * @cleaned: pages that VMEM_DIRTY_CLEAN has reported since then
 * @held: of those, how often one has stayed in the log
 * @reserved: zero
 *
 * On an adopted descriptor. The same figures stand in /proc/PID/fdinfo/FD.
 */
struct vmem_tracking {
	__u64 tracked;
	__u64 mappings;
	__u64 dirty;
	__u64 faults;
	__u64 written;
	__u64 cleaned;
	__u64 held;
	__u64 reserved;
};

/** VMEM_MAX_MEMBERS: the most memories in one snapshot. */
#define VMEM_MAX_MEMBERS	64

/**
 * VMEM_SNAPSHOT_CLEAN: the log of each memory is emptied at the instant of the
 * snapshot, as %VMEM_DIRTY_CLEAN does; so the next such snapshot has the pages that have
 * been written in between. Without it, the logs stay as they are.
 */
#define VMEM_SNAPSHOT_CLEAN	(1U << 0)
/**
 * VMEM_SNAPSHOT_ONCE: each page can be read once: after read(2) of a whole page its old
 * contents are not kept any more. To the log it is done by %VMEM_SNAPSHOT_DONE alone.
 */
#define VMEM_SNAPSHOT_ONCE	(1U << 1)

/**
 * struct vmem_snapshot_member - a memory of a snapshot
 * @vmem_fd: its adopted descriptor
 * @snapshot_fd: out: its snapshot descriptor, close-on-exec
 */
struct vmem_snapshot_member {
	__s32 vmem_fd;
	__s32 snapshot_fd;
};

/**
 * struct vmem_snapshot - keep what memory holds at one instant (VMEM_SNAPSHOT)
 * @members: address of an array of struct vmem_snapshot_member
 * @nr: entries in it, 1 to VMEM_MAX_MEMBERS
 * @flags: VMEM_SNAPSHOT_CLEAN, VMEM_SNAPSHOT_ONCE
 * @limit: how much memory the old contents of one memory may take, in bytes; 0 is no
 *	limit
 * @closed_ns: out: for how long writers were held up, in nanoseconds
 * @reserved: zero
 *
 * On an adopted descriptor; those of the members are adopted descriptors that track.
 * A write to a protected page waits until all pages of all members are protected: the
 * snapshot has what they hold at that instant. From then on, the first write to a page
 * copies its old contents aside. Pages with references through which they may be written
 * to without being seen (see &vmem_dirty.held) are copied at the instant, whether or not
 * they are being written to.
 *
 * A snapshot descriptor is a file of the size of the memory, open for reading:
 *
 * - read(2), pread(2), splice(2); a page of which there is nothing is zeros.
 *   lseek(2) knows SEEK_DATA and SEEK_HOLE. A page of a region that is absent counts as
 *   data, and a read requests it and waits, as a touch does: it arrives with its contents
 *   at the instant. EIO if it is not available, ENODATA if a program has discarded it
 *   before it arrived. %VMEM_GET_PRESENT returns which pages are present;
 * - mmap(2), read-only or private. A touch copies the page aside, and a mapping stays
 *   after the descriptor is closed;
 * - %VMEM_DIRTY without VMEM_DIRTY_CLEAN returns the pages that were in the log at the
 *   instant: with VMEM_SNAPSHOT_CLEAN, what was written since the snapshot before;
 * - %VMEM_SNAPSHOT_DONE, %VMEM_GET_SNAPSHOT; poll(2) returns POLLIN, and POLLERR when the
 *   snapshot has failed.
 *
 * Copies are memory of the cgroup of the caller, and can be swapped. If there is no
 * memory for one, or @limit is reached, or tracking of a member ends, then the
 * snapshot fails, in all of its members: its memory is freed, each later use returns
 * ESTALE, and a touch of a mapping gets SIGBUS. Writers never fail.
 *
 * The snapshot ends when the descriptor and all mappings of it are gone. Pages that were
 * taken out of the log by VMEM_SNAPSHOT_CLEAN, and are not done by %VMEM_SNAPSHOT_DONE,
 * are then in it again: a checkpoint that was aborted loses nothing.
 *
 * Errors: EINVAL (a member is no adopted descriptor, or is there twice), EBADF (no such
 * descriptor), ENODATA (one is not tracked), EBUSY (one has a snapshot), EAGAIN (writers
 * by descriptor, or readers of the log, were at work all the time), EINTR (the caller is
 * being killed), ENOSPC (no more files of shared memory), EMFILE, ENFILE. Nothing has
 * changed then.
 */
struct vmem_snapshot {
	__u64 members;
	__u32 nr;
	__u32 flags;
	__u64 limit;
	__u64 closed_ns;
	__u64 reserved[2];
};

/**
 * struct vmem_snapshot_info - how a snapshot is doing (VMEM_GET_SNAPSHOT)
 * @size: size in bytes
 * @dirty: pages that were in the log at the instant
 * @pending: pages whose contents are in the memory itself still
 * @copied: pages that were copied aside: by writers, by touches of a mapping, and at the
 *	instant itself
 * @kept: pages that the copies take now
 * @done: pages that are done, or have been read with VMEM_SNAPSHOT_ONCE
 * @failed: 1 if the snapshot has failed, else 0
 * @reserved: zero
 *
 * On a snapshot descriptor. The same figures stand in /proc/PID/fdinfo/FD.
 */
struct vmem_snapshot_info {
	__u64 size;
	__u64 dirty;
	__u64 pending;
	__u64 copied;
	__u64 kept;
	__u64 done;
	__u64 failed;
	__u64 reserved;
};

/**
 * struct vmem_range - a run of pages
 * @pgoff: the first page
 * @nr_pages: how many, not zero
 */
struct vmem_range {
	__u64 pgoff;
	__u64 nr_pages;
};

/**
 * struct vmem_page_request - take requests (VMEM_GET_PAGE_REQUEST)
 * @pgoffs: address of an array of __u64
 * @nr: in: room in the array, 1 to VMEM_MAX_BATCH; out: pages in it, of which one
 *	call never gives more than 64
 * @flags: zero
 *
 * On the region descriptor. Waits until a page is wanted, unless the descriptor
 * is O_NONBLOCK; poll() says POLLIN when one is, or when none will be any more
 * (see ENODATA). A page is requested once, however many threads wait for it,
 * until it is marked. The order of a batch says nothing of the order of the
 * faults.
 *
 * Errors: EAGAIN (O_NONBLOCK, and no page is wanted), EINTR, ENODATA (the region
 * is plain memory: no request will come any more).
 */
struct vmem_page_request {
	__u64 pgoffs;
	__u32 nr;
	__u32 flags;
};

/** VMEM_MARK_ZERO: the pages are zero; what the staging file holds is dropped. */
#define VMEM_MARK_ZERO		(1U << 0)
/** VMEM_MARK_UNREADABLE: the source cannot give them; a touch gets SIGBUS. */
#define VMEM_MARK_UNREADABLE	(1U << 1)

/**
 * struct vmem_mark - say what became of pages (VMEM_MARK_PAGE_CACHED)
 * @ranges: address of an array of struct vmem_range
 * @nr: entries in it, 1 to VMEM_MAX_BATCH
 * @flags: 0 (the contents are in the staging file), VMEM_MARK_ZERO or
 *	VMEM_MARK_UNREADABLE
 * @done: out: entries that are complete
 * @changed: out: pages that this call changed. A present page stays present
 *	with the contents it has; an unreadable one becomes present.
 *
 * On the region descriptor. Wakes the threads that wait for the pages.
 *
 * Between a write to the staging file and this call the program may discard the
 * page (MADV_REMOVE), which makes it present and zero; the write would then be
 * seen. VMEM_FILL_PAGES does both as one and does not have this gap.
 */
struct vmem_mark {
	__u64 ranges;
	__u32 nr;
	__u32 flags;
	__u64 done;
	__u64 changed;
};

/**
 * struct vmem_fill_range - contents of a run of pages
 * @pgoff: the first page
 * @nr_pages: how many, not zero
 * @addr: address of the contents, @nr_pages whole pages
 */
struct vmem_fill_range {
	__u64 pgoff;
	__u64 nr_pages;
	__u64 addr;
};

/**
 * VMEM_FILL_STAGE: the contents are copied, and the pages are not marked: they stay as
 * they are, absent or unreadable, with their requests, until %VMEM_MARK_PAGE_CACHED or a
 * fill. Staging a page again replaces its contents. After an error, the contents of pages
 * of the entries that are not complete are undefined: stage them again before they are
 * marked, and mark no page while a call stages it.
 */
#define VMEM_FILL_STAGE		(1U << 0)

/**
 * struct vmem_fill - fill and mark (VMEM_FILL_PAGES)
 * @ranges: address of an array of struct vmem_fill_range
 * @nr: entries in it, 1 to VMEM_MAX_BATCH
 * @flags: VMEM_FILL_STAGE
 * @done: out: entries that are complete
 * @changed: out: pages that became present; with VMEM_FILL_STAGE, pages that were
 *	staged. A page that was present is left as it is; an unreadable one is filled.
 *
 * On the region descriptor. Copies the contents into the staging file, without
 * zeroing first, and marks the pages, each only if it is not present yet. The
 * pages are charged to the memory cgroup of the program that mapped the region
 * first (before a program has mapped it, to the caller's).
 *
 * Errors: EFAULT (contents that cannot be read), ENOMEM, ENOSPC, EIO (the memory
 * of the page is broken).
 */
struct vmem_fill {
	__u64 ranges;
	__u32 nr;
	__u32 flags;
	__u64 done;
	__u64 changed;
};

/** VMEM_BACKING_NONE: the range has no backing any more. */
#define VMEM_BACKING_NONE	(1U << 0)

/** VMEM_MAX_AROUND: the most pages that one touch reads from backing. */
#define VMEM_MAX_AROUND		512

/** VMEM_MAX_BACKINGS: the most pieces with backing of their own that a region has. */
#define VMEM_MAX_BACKINGS	1024

/**
 * struct vmem_backing - say which file a range lies in (VMEM_SET_BACKING)
 * @fd: a regular file, open for reading; -1 with VMEM_BACKING_NONE
 * @flags: 0 or VMEM_BACKING_NONE
 * @offset: position in the file of the contents of the first page, a multiple of the page
 *	size; zero with VMEM_BACKING_NONE
 * @pgoff: the first page
 * @nr_pages: how many, not zero
 * @around: how many pages one touch reads: the page, and those absent ones beside it that lie
 *	with it in an aligned group of this size. A power of two, up to VMEM_MAX_AROUND; 0 is
 *	16. Zero with VMEM_BACKING_NONE
 * @reserved0: zero
 * @reserved: zero
 *
 * On the region descriptor. A touch of an absent page of the range reads it from the file,
 * without a request: from the file's page cache at once, or a worker of the kernel reads it,
 * and the touch waits as for a daemon. A range that has backing gets the new one in its
 * place. Pages that were requested are not requested any more: their touches read the file.
 *
 * The daemon can fill and mark pages of the range as before; what comes first stays. A page
 * that it marks as unreadable is not read. What it has staged is replaced by a read.
 *
 * If the page cannot be read (an I/O error, or the file is too short), it is requested, if
 * a daemon is attached; else it becomes unreadable. A file that ends within the region's last
 * page has to reach as far as the region's file does.
 *
 * The region holds the file, which should not be changed: until the range gets another
 * backing or none, until the region is plain memory, or until its end. A daemon that ends leaves
 * it. After the call has returned, the file that the range had before is not read any more,
 * and nothing that was read from it becomes a page. The call waits for reads under way: of
 * these pages, of others that got their backing by the same calls, and in other calls.
 *
 * Errors: EBADF (no such descriptor), EACCES (not open for reading), EINVAL (not a regular
 * file, or one that cannot be read in this way; @offset, @around), EOPNOTSUPP (hugetlbfs; a
 * file that another program may serve: FUSE, 9p, Coda), ELOOP (the file of a region, or a
 * staging file), ENODATA (the region is plain memory), ENOSPC (more than VMEM_MAX_BACKINGS
 * pieces), EINTR (the caller is being killed: some pages may have the new backing, and
 * reads of the old one may be under way).
 */
struct vmem_backing {
	__s32 fd;
	__u32 flags;
	__u64 offset;
	__u64 pgoff;
	__u64 nr_pages;
	__u32 around;
	__u32 reserved0;
	__u64 reserved[2];
};

/**
 * struct vmem_populate - fill page tables (VMEM_MAKE_PAGES_PRESENT)
 * @ranges: address of an array of struct vmem_range
 * @nr: entries in it, 1 to VMEM_MAX_BATCH
 * @flags: zero
 * @done: out: entries that are complete
 * @pages: out: pages looked at and found mapped, counted once per mapping
 *
 * On the region descriptor. Puts those pages of the ranges that are present
 * into the page tables of every process that maps them, so that a touch will
 * not fault. Absent pages are left out, and so are zeros that nobody has touched,
 * which take no memory: a touch of one is an ordinary fault. Left out is also, for
 * the rest of the call, a process whose mmap lock is not free: its holder may wait
 * for a page that the caller has to bring. The call waits a tenth of a second for
 * such locks, in total.
 */
struct vmem_populate {
	__u64 ranges;
	__u32 nr;
	__u32 flags;
	__u64 done;
	__u64 pages;
};

/**
 * struct vmem_present - read the present map (VMEM_GET_PRESENT)
 * @pgoff: the first page, a multiple of 64
 * @nr_pages: how many, not zero
 * @bitmap: address of an array of __u64, one bit a page, the lowest bit first;
 *	a bit is set if the page is present. Bits after the last page are zero.
 * @present: out: how many bits are set
 *
 * On a region, map, adopted or snapshot descriptor.
 */
struct vmem_present {
	__u64 pgoff;
	__u64 nr_pages;
	__u64 bitmap;
	__u64 present;
};

/**
 * struct vmem_map_fd - get a map descriptor (VMEM_GET_MAP_FD)
 * @flags: zero
 * @fd: out: the descriptor, close-on-exec
 *
 * On a region or map descriptor: a descriptor for a program that shall map the
 * region and shall not serve it. It has the access mode of the descriptor that
 * the call is made on: one that can only read gives one that can only read.
 */
struct vmem_map_fd {
	__u32 flags;
	__s32 fd;
};

/**
 * struct vmem_resume - go on as a region's daemon (VMEM_RESUME)
 * @flags: zero
 * @shmem_fd: out: the staging file, close-on-exec
 * @size: out: size of the region in bytes
 * @id: out: number of the region
 * @name: out: name of the region, padded with NUL bytes; empty if it has none
 * @reserved: zero
 *
 * On the region descriptor, by a process that has got it from another one: by SCM_RIGHTS,
 * or from a service manager that has kept it while the daemon died and was started again.
 * The region has had a daemon all the time, so no touch has found it without one. Requests
 * that were taken and not answered are queued again, as by %VMEM_ATTACH; one that another
 * holder of the descriptor is about to answer is then answered twice, which does no harm.
 * %VMEM_READY need not be said again. VMEM_GET_PRESENT returns which pages need no filling.
 *
 * Errors: EMFILE, ENFILE. Nothing has changed then.
 */
struct vmem_resume {
	__u32 flags;
	__s32 shmem_fd;
	__u64 size;
	__u64 id;
	char name[VMEM_NAME_MAX];
	__u64 reserved[2];
};

/* Bits of vmem_info.state. */
/** VMEM_STATE_ATTACHED: a daemon is attached. */
#define VMEM_STATE_ATTACHED	(1U << 0)
/** VMEM_STATE_READY: it has said READY. */
#define VMEM_STATE_READY	(1U << 1)
/** VMEM_STATE_PLAIN: the region has become plain memory. */
#define VMEM_STATE_PLAIN	(1U << 2)

/**
 * struct vmem_info - state and counters of a region (VMEM_GET_INFO)
 * @id: number of the region
 * @size: bytes
 * @flags: VMEM_CREATE bits
 * @state: VMEM_STATE bits
 * @present: pages present
 * @unreadable: pages marked unreadable
 * @requested: absent pages that a thread has touched
 * @queued: those of them that the daemon has not taken
 * @waiters: threads that wait for a page
 * @oldest_wait_ns: how long the longest of them has waited, in nanoseconds
 * @faults: faults on absent pages since creation
 * @requests: requests raised since creation (faults less those that found
 *	their page requested already, or were answered from backing)
 * @sigbus: faults answered with SIGBUS since creation
 * @mappings: mappings of the region, in all processes, that are not yet
 *	plain; 4096 is that many or more
 * @length: size of the region's file, in bytes: the size as VMEM_CREATE_VMEM got it
 * @backed: pages that were read from backing since creation
 * @reserved: zero
 *
 * On a region or map descriptor; the same figures stand in /proc/PID/fdinfo/FD. On
 * an adopted descriptor of other memory all pages are present, and the counters are
 * zero.
 */
struct vmem_info {
	__u64 id;
	__u64 size;
	__u32 flags;
	__u32 state;
	__u64 present;
	__u64 unreadable;
	__u64 requested;
	__u64 queued;
	__u64 waiters;
	__u64 oldest_wait_ns;
	__u64 faults;
	__u64 requests;
	__u64 sigbus;
	__u64 mappings;
	__u64 length;
	__u64 backed;
	__u64 reserved;
};

#define VMEM_GET_FEATURES	_IOR(VMEM_IOC_MAGIC, 0x00, struct vmem_features)
#define VMEM_CREATE_VMEM	_IOWR(VMEM_IOC_MAGIC, 0x01, struct vmem_create)
#define VMEM_ATTACH		_IOWR(VMEM_IOC_MAGIC, 0x02, struct vmem_attach)
#define VMEM_ADOPT		_IOWR(VMEM_IOC_MAGIC, 0x03, struct vmem_adopt)

/**
 * VMEM_WAIT_READY: on a region or map descriptor, waits until a daemon has said
 * READY or the region is plain. O_NONBLOCK gives EAGAIN instead.
 */
#define VMEM_WAIT_READY		_IO(VMEM_IOC_MAGIC, 0x10)
/** VMEM_READY: on the region descriptor, ends all waits in VMEM_WAIT_READY. */
#define VMEM_READY		_IO(VMEM_IOC_MAGIC, 0x11)
#define VMEM_GET_PAGE_REQUEST	_IOWR(VMEM_IOC_MAGIC, 0x12, struct vmem_page_request)
#define VMEM_MARK_PAGE_CACHED	_IOWR(VMEM_IOC_MAGIC, 0x13, struct vmem_mark)
#define VMEM_MAKE_PAGES_PRESENT	_IOWR(VMEM_IOC_MAGIC, 0x14, struct vmem_populate)
/**
 * VMEM_MAKE_VMA_ANONYMOUS: on the region descriptor. All pages being present,
 * turns every shared mapping of the region into plain shared anonymous memory,
 * and every private one into a private mapping of that, and releases it; later
 * mappings are plain from the start. Errors: EBUSY (pages are absent or
 * unreadable); EINTR (the caller is being killed) and ENOMEM, with which some
 * mappings are left: the next daemon, or another call, converts them. A second
 * call succeeds and does nothing.
 */
#define VMEM_MAKE_VMA_ANONYMOUS	_IO(VMEM_IOC_MAGIC, 0x15)
#define VMEM_FILL_PAGES		_IOWR(VMEM_IOC_MAGIC, 0x16, struct vmem_fill)
#define VMEM_GET_PRESENT	_IOWR(VMEM_IOC_MAGIC, 0x17, struct vmem_present)
#define VMEM_GET_INFO		_IOR(VMEM_IOC_MAGIC, 0x18, struct vmem_info)
#define VMEM_GET_MAP_FD		_IOWR(VMEM_IOC_MAGIC, 0x19, struct vmem_map_fd)
#define VMEM_SET_BACKING	_IOW(VMEM_IOC_MAGIC, 0x1a, struct vmem_backing)
#define VMEM_RESUME		_IOWR(VMEM_IOC_MAGIC, 0x1b, struct vmem_resume)
#define VMEM_TRACK		_IOWR(VMEM_IOC_MAGIC, 0x20, struct vmem_track)
/**
 * VMEM_UNTRACK: on an adopted descriptor, ends the log: the mappings are as they
 * were before %VMEM_TRACK. It succeeds also if there is no log. If the caller is
 * being killed the log ends by itself some time later.
 */
#define VMEM_UNTRACK		_IO(VMEM_IOC_MAGIC, 0x21)
#define VMEM_DIRTY		_IOWR(VMEM_IOC_MAGIC, 0x22, struct vmem_dirty)
#define VMEM_GET_TRACKING	_IOR(VMEM_IOC_MAGIC, 0x23, struct vmem_tracking)
#define VMEM_SNAPSHOT		_IOWR(VMEM_IOC_MAGIC, 0x24, struct vmem_snapshot)
/**
 * VMEM_SNAPSHOT_DONE: on a snapshot descriptor: the caller does not need these pages any
 * more. Their old contents are not kept, so that a first write to them copies nothing:
 * they cannot be read again (ENODATA), count as a hole, and a touch through a mapping
 * gets SIGBUS.
 */
#define VMEM_SNAPSHOT_DONE	_IOW(VMEM_IOC_MAGIC, 0x30, struct vmem_range)
#define VMEM_GET_SNAPSHOT	_IOR(VMEM_IOC_MAGIC, 0x31, struct vmem_snapshot_info)

#endif /* _UAPI_LINUX_VMEM_H */
