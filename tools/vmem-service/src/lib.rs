// SPDX-License-Identifier: GPL-2.0-or-later
//! What a service and systemd say to each other (`sd_notify(3)`): that the service is ready, that it is alive, and which descriptors systemd keeps
//! for the process that follows.
//!
//! Without systemd, nothing is said. Nor does a process say anything that a service has started: the variables of the environment that say where
//! to are inherited, and what such a process says would be taken for what its service says.
#![forbid(unsafe_code)]

mod kept;
mod service;
#[cfg(test)]
mod socket;
mod watchdog;

pub use kept::{Kept, KeptError};
pub use service::{Service, hide_from};
