// SPDX-License-Identifier: GPL-2.0-or-later
//! What the measurements need of the kernel beside vmem: userfaultfd, the pagemap, guests of KVM, fork and bare memory, with safe functions.

mod guest;
mod memory;
mod pagemap;
mod process;
mod userfault;

pub use guest::{Guest, KvmLog};
pub use memory::{Memory, Sharing};
pub use pagemap::Pagemap;
pub use process::{Child, fork};
pub use rustix::io::Errno;
pub use userfault::{Mode, Userfault};

/// Size of a page in bytes.
pub const PAGE_SIZE: usize = 4096;
