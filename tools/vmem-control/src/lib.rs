// SPDX-License-Identifier: GPL-2.0-or-later
//! How a program controls a running vmemd, over a Unix socket: requests, answers and events, as JSON objects, one on a line.
//! `Documentation/control.rst` describes the protocol.
//!
//! vmemd is the [`Server`]; a vmemctl is a [`Client`]. A vmemd outlives the vmemctl that has started it. So the listening socket exists
//! before vmemd runs: vmemctl binds it with [`socket::bind`] in a directory of its own, and vmemd gets it as an inherited descriptor. A
//! later vmemctl connects to the same path, and learns from [`Hello`] which process it is and from [`Status`] how far it has come.
//! A vmemctl that migrates a guest is a [`Server`], too: another vmemctl asks it for the status, changes how it migrates, or ends it.
//!
//! Both ends refuse a peer of another user (see [`credentials`]).
//!
//! ```
//! use std::time::{Duration, Instant};
//! use vmem_control::{About, Client, Duty, Event, Refusal, Server, Service, State, socket};
//!
//! /// A daemon that does nothing.
//! struct Daemon;
//!
//! impl Service for Daemon {
//!     fn start(&mut self) -> Result<(), Refusal> {
//!         Ok(())
//!     }
//!     fn release(&mut self) -> Result<(), Refusal> {
//!         Err(Refusal::new("it was not started with --release"))
//!     }
//!     fn stop(&mut self) {}
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let limit = Duration::from_secs(10);
//! # let directory = tempfile::tempdir()?;
//! let path = directory.path().join("vmemd.sock");
//! let listener = socket::bind(&path)?;
//! let server = Server::start(listener, About::new("0123456789abcdef", Duty::Serve)?, Daemon)?;
//!
//! let mut client = Client::connect(&path, limit)?;
//! assert_eq!(client.hello().process.pid, i32::try_from(std::process::id())?);
//! client.subscribe(limit)?;
//! server.publisher().publish(Event::Listening { address: "127.0.0.1:8636".parse()? });
//! let event = client.event(Instant::now() + limit)?;
//! assert!(matches!(event, Some(Event::Listening { .. })));
//! assert_eq!(client.status(limit)?.state, State::Ready);
//! // The daemon has let go of everything.
//! server.finish(true, limit);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod backlog;
mod client;
pub mod credentials;
mod error;
mod event;
mod limits;
mod message;
mod migration;
mod rounds;
mod server;
pub mod socket;

pub use client::{Caller, Client, Greeting, Hello, Incoming};
pub use error::{Error, ErrorKind};
pub use event::{Event, Figures, Lane, Phase, Region, RegionPage, State, Status, Times, Touched, Verified};
pub use limits::{LONGEST_TEXT, MAX_REGIONS, MAX_RUNS};
pub use message::{Answer, Call, Duty, LONGEST_REPLY, LONGEST_REQUEST, Message, Reply, Request, VERSIONS, agree};
pub use migration::{Migration, MigrationPhase};
pub use rounds::{Change, Finished, Round, Rounds, Settled};
pub use server::{About, Later, Publisher, Refusal, Server, Service};
pub use vmem_process::Identity;
