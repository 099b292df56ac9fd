// SPDX-License-Identifier: GPL-2.0-or-later
//! Waiting that can be ended: a stop event, and the pauses between attempts. A limit in time for messages. And
//! signs of life, for a watchdog.
//!
//! A thread that tries something again and again waits for a [`StopEvent`], with the pause of a [`BackOff`] as the timeout:
//!
//! ```
//! use std::time::Duration;
//! use vmem_wait::{BackOff, StopEvent};
//!
//! # let mut attempts = 0;
//! # let mut connect = || { attempts += 1; (attempts == 3).then_some("connection") };
//! let stop = StopEvent::new().expect("an eventfd");
//! let mut back_off = BackOff::new(Duration::from_millis(1), Duration::from_secs(5));
//! let connection = loop {
//!     if let Some(connection) = connect() {
//!         break Some(connection);
//!     }
//!     if stop.wait(back_off.next_pause()) {
//!         break None;
//!     }
//! };
//! assert_eq!(connection, Some("connection"));
//! ```
#![forbid(unsafe_code)]

mod back_off;
mod liveness;
mod message_limit;
mod stop_event;

pub use back_off::BackOff;
pub use liveness::{Liveness, Pulse};
pub use message_limit::MessageLimit;
pub use stop_event::StopEvent;
