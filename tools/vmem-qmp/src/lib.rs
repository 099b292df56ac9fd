// SPDX-License-Identifier: GPL-2.0
//! A client of QEMU's machine protocol (QMP), as far as a migration needs it.
//!
//! [`Qmp`] is a connection: commands and events, each with a time limit. Values stay JSON, because types generated from the schema of one
//! QEMU would refuse what the next QEMU adds. QEMU's `docs/interop/qmp-spec.rst` describes the protocol.
//!
//! [`Lines`] reads lines with a deadline, also for other protocols with one message per line.
//!
//! ```no_run
//! use std::path::Path;
//! use std::time::{Duration, Instant};
//!
//! use serde_json::json;
//! use vmem_qmp::Qmp;
//!
//! # fn main() -> Result<(), vmem_qmp::Error> {
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

mod connection;
mod error;
mod lines;
#[cfg(test)]
mod tests;

pub use connection::{Event, Qmp};
pub use error::Error;
pub use lines::Lines;
