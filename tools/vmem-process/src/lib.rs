// SPDX-License-Identifier: GPL-2.0-or-later
//! Other programs, such as the QEMU and the vmemd that vmemctl starts and that outlive it.
//!
//! * [`Identity`] tells a process from all others of a machine, for a program that comes later. [`Process`] holds a process by its pidfd.
//! * [`scope`] starts a program in a control group of its own.
//! * [`log_tail`] reads what a program has written last; [`printable`] and [`clean`] make text of others safe to show, and safe as a name.
//!
//! ```
//! use std::process::Command;
//! use std::time::Duration;
//!
//! use vmem_process::Process;
//!
//! # fn main() -> std::io::Result<()> {
//! let mut child = Command::new("sleep").arg("1000").spawn()?;
//! let identity = Process::of_child(&child)?.identity()?;
//! // A later program, which has the identity from a file.
//! let process = Process::find(&identity).expect("it runs");
//! assert!(!process.wait(Duration::ZERO));
//! child.kill()?;
//! assert!(process.wait(Duration::from_secs(10)));
//! assert!(Process::find(&identity).is_none());
//! # child.wait()?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod identity;
mod log_file;
mod process;
mod program;
pub mod scope;
mod text;

pub use identity::Identity;
pub use log_file::log_tail;
pub use process::Process;
pub use program::vmemd;
pub use text::{clean, printable};
