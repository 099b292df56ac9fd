// SPDX-License-Identifier: GPL-2.0-or-later
//! QEMU, as a program sees it that looks at a guest's memory, saves or moves its device state, or starts a QEMU that takes a guest.
//!
//! * [`Qmp`] is a connection of QEMU's machine protocol: commands and events, each with a time limit. Values stay JSON, because types
//!   generated from the schema of one QEMU would refuse what the next QEMU adds. QEMU's `docs/interop/qmp-spec.rst` describes the protocol.
//! * [`guest`] describes the guest: its name, its run state, the backends of its memory, and the process of its QEMU. [`BackendFile`] is the
//!   file of a backend, which cannot be confused with another file at the same path; [`QemuProcess`] is a QEMU that can be found again.
//! * [`GuestMemory`] is the memory of a running guest, opened so that it can be tracked.
//! * [`obstacles`] and [`migration`] prepare QEMU for its device state; [`stream`] gives QEMU the socket for it. [`DeviceState`] knows when
//!   QEMU has written all of it. [`DeviceSave`] saves devices of a guest whose memory is private. [`PlainStream`](plain_stream::PlainStream) puts the memory into it.
//! * [`Agent`] is the guest agent: it freezes the guest's file systems, and sets its clock.
//! * [`disks`] are the guest's disks, and overlays over them.
//! * [`command`] checks and completes the command line of a QEMU that takes a guest; [`Qemu`] starts it.
//!
//! [`Lines`] reads lines with a deadline, also for other protocols with one message per line.
//!
//! The memory of a running guest, and the files that hold it:
//!
//! ```no_run
//! use std::path::Path;
//!
//! use vmem_qemu::{BackendFile, COMMAND_LIMIT, Qmp, guest};
//!
//! # fn main() -> Result<(), vmem_qemu::Error> {
//! let mut qmp = Qmp::connect(Path::new("/run/guest0.qmp"), COMMAND_LIMIT)?;
//! let process = guest::process(&mut qmp)?;
//! for backend in guest::memory_backends(&mut qmp)? {
//!     // Another file may be at this path by now. Only the file that QEMU has open is the guest's memory.
//!     let file = BackendFile::find(&process, &backend.path)?;
//!     println!("{}: {} bytes in {}", backend.id, backend.bytes, file.path().display());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A command, and the event that reports its outcome:
//!
//! ```no_run
//! use std::path::Path;
//! use std::time::{Duration, Instant};
//!
//! use serde_json::json;
//! use vmem_qemu::Qmp;
//!
//! # fn main() -> Result<(), vmem_qemu::Error> {
//! let mut qmp = Qmp::connect(Path::new("/run/guest0.qmp"), Duration::from_secs(10))?;
//! qmp.execute("stop", json!({}))?;
//! let deadline = Instant::now() + Duration::from_secs(10);
//! while let Some(event) = qmp.next_event(deadline)? {
//!     if event.name == "STOP" {
//!         break;
//!     }
//! }
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod agent;
mod backend_file;
pub mod chain;
pub mod command;
mod connection;
mod device_save;
mod device_state;
pub mod disks;
mod error;
pub mod guest;
mod guest_memory;
mod launch;
mod lines;
pub mod migration;
pub mod obstacles;
pub mod plain_stream;
mod process;
#[cfg(any(test, feature = "testing"))]
pub mod recorded;
mod socket;
pub mod stream;

pub use agent::Agent;
pub use backend_file::BackendFile;
pub use connection::{COMMAND_LIMIT, Event, Qmp};
pub use device_save::DeviceSave;
pub use device_state::DeviceState;
pub use error::Error;
pub use guest::{MemoryBackend, SharedMemory};
pub use guest_memory::{GuestMemory, OpenBackend};
pub use launch::Qemu;
pub use lines::Lines;
pub use process::QemuProcess;
pub use vmem_process::{Identity, Process};
