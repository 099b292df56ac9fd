// SPDX-License-Identifier: GPL-2.0-or-later
//! What the figures are called, in the results and in the tables.

/// The longest time between two ticks of the guest around the instant, in seconds.
pub(super) const GAP: &str = "guest's own gap";
/// From QEMU's event STOP to its event RESUME.
pub(super) const STOP_TO_RESUME: &str = "QEMU's STOP -> RESUME";
/// From the command that restores to the guest's first answer over TCP.
pub(super) const FIRST_ANSWER: &str = "first answer of a restored guest";
/// From the command that restores until all of the memory is there.
pub(super) const ALL_THERE: &str = "all memory of a restored guest";
/// The same from a store in S3, with 25 ms to the first byte.
pub(super) const FIRST_ANSWER_FAR: &str = "first answer, 25 ms to the store's first byte";
/// Stored for an increment.
pub(super) const INCREMENT: &str = "bytes of an increment";
/// To read all of a checkpoint from a directory.
pub(super) const RESTORE_TIME: &str = "read of a whole checkpoint";
/// The same, counted.
pub(super) const RESTORE_READS: &str = "reads of a whole checkpoint";
/// The same, in bytes.
pub(super) const RESTORE_BYTES: &str = "bytes read of a whole checkpoint";
/// Of a store.
pub(super) const STORED: &str = "stored bytes";
/// Of vmem-bench.
pub(super) const ARMING: &str = "snapshot, all written before";
/// Of vmem-bench.
pub(super) const FIRST_WRITE: &str = "first write after it";

pub(super) const VMEM: &str = "vmem, incremental";
pub(super) const STOP_FILE_CONT: &str = "QEMU, stop + mapped-ram file + cont";
pub(super) const BACKGROUND: &str = "QEMU, background-snapshot";
pub(super) const RESTORE: &str = "vmem";
pub(super) const FULL_LOAD: &str = "QEMU, full load of a mapped-ram file";
pub(super) const UFFD_PAGE: &str = "userfaultfd handler, a page at a time";
pub(super) const UFFD_ALL: &str = "userfaultfd handler, all at the first fault";
pub(super) const WITH_ORDER: &str = "with access order";
pub(super) const WITHOUT_ORDER: &str = "without";
pub(super) const DIRTY_PAGES: &str = "dirty pages x 4 KiB";
pub(super) const CHUNKS: &str = "chunks of 64 KiB that hold them";
pub(super) const FIRST: &str = "from checkpoint 1";
pub(super) const LAST: &str = "from the last checkpoint";
pub(super) const FULL: &str = "from a full checkpoint of the same memory";
pub(super) const PRUNED: &str = "pruned to the live checkpoints";
pub(super) const ALONE: &str = "the live checkpoints alone";
pub(super) const VMEM_BENCH: &str = "vmem";
pub(super) const UFFD_WP: &str = "uffd-wp, copies";
