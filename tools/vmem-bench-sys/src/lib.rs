// SPDX-License-Identifier: GPL-2.0
//! What the measurements need of the kernel beside vmem: userfaultfd, fork and bare memory, with safe functions.

mod memory;
mod process;
mod userfault;

pub use memory::{Memory, Sharing};
pub use process::{Child, fork};
pub use rustix::io::Errno;
pub use userfault::{Mode, Userfault};

/// Size of a page in bytes.
pub const PAGE_SIZE: usize = 4096;
