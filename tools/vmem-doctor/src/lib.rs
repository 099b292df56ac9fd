// SPDX-License-Identifier: GPL-2.0-or-later
//! What a machine lacks for vmem, and which versions of vmem it has.
//!
//! A [`Host`] is a machine as it is looked at: the files below a root directory, and the few facts that are in no file. So every finding can be had
//! without such a machine.
//!
//! ```no_run
//! use vmem_doctor::{Host, State, findings};
//!
//! for finding in findings(&Host::this(), None) {
//!     if finding.state == State::Missing {
//!         println!("{}: {}", finding.subject, finding.text);
//!     }
//! }
//! ```
#![forbid(unsafe_code)]

mod finding;
mod host;
mod look;
mod program;
mod version;

pub use finding::{Finding, State, Subject};
pub use host::{Host, ModuleFeatures};
pub use look::findings;
pub use version::{VersionLine, Versions};
