// SPDX-License-Identifier: GPL-2.0-or-later
//! Live migration of guests over vmem. The core decides which host owns a guest that moves: it has the decisions of both hosts, without
//! I/O.
//!
//! Each host has a state machine: [`source`] and [`destination`]. A machine is a table of rows: in this state, after this event, that state
//! follows, and these actions are due. [`Owner`] holds the state. The caller executes the actions in their order, and reports the outcome
//! as the next event.
//!
//! Only the last action of a row may answer with an event. So an action whose outcome decides what follows is the last one of its row.
//!
//! The death of a process is no event. A machine that ends with its process is resumed from the [`Phase`] that the process has recorded.
//! See [`source::resume`] and [`destination::resume`].
//!
//! `tests/model` runs both machines, both QEMUs, the network and deaths between any two actions, in every order.
//! `Documentation/migration.rst` has the tables.
//!
//! ```
//! use vmem_migrate::source::{Action, Event, Source, State};
//! use vmem_migrate::Owner;
//!
//! let mut guest = Owner::<Source>::new(State::Offering);
//! assert_eq!(guest.on(Event::Ready).expect("a row"), [Action::Copy]);
//! assert_eq!(guest.on(Event::Settled).expect("a row"), [Action::SendState]);
//! assert_eq!(guest.on(Event::Stopped).expect("a row"), [Action::Save]);
//! assert_eq!(guest.on(Event::Saved).expect("a row"), [Action::Start]);
//! // The network fails before COMMIT: the guest is still the source's.
//! assert_eq!(guest.on(Event::Lost).expect("a row"), [Action::Abort, Action::ResumeGuest]);
//! assert!(guest.on(Event::Running).is_err(), "no row");
//! ```
#![forbid(unsafe_code)]

mod abort;
mod channel;
mod check;
mod daemon;
pub mod destination;
pub mod dirty_rate;
mod endpoint;
mod error;
#[cfg(test)]
mod fake;
mod forget;
mod handover;
mod key;
mod listen;
mod machine;
mod message;
mod migrate;
mod name;
mod network;
mod ongoing;
pub mod options;
mod page_server;
mod phase;
#[cfg(test)]
mod previous;
mod queue;
mod receive;
mod record;
mod recover;
mod relay;
pub mod report;
mod set;
pub mod source;
mod status;
mod supervisor;
#[cfg(test)]
mod unread;

pub use abort::run as abort;
pub use check::{CheckLine, run as check};
pub use error::{Cause, Error};
pub use forget::run as forget;
pub use listen::run as listen;
pub use machine::{Machine, Owner, Row, Unexpected};
pub use migrate::run as migrate;
pub use phase::Phase;
pub use receive::run as receive;
pub use recover::run as recover;
pub use set::run as set;
pub use status::{StatusLine, run as status};
