// SPDX-License-Identifier: GPL-2.0-or-later
//! Fills regions from a source: faults first, and the rest behind them.
//!
//! Two kinds of threads, each with a connection of its own:
//!
//! - `urgent`, one: takes requests from the regions, and fetches those pages and a few that programs will probably touch next;
//! - `stream`, one or several: fetch all absent pages in large pieces, continuing behind the latest fault. They share one plan, from which each
//!   page is taken once.
//!
//! Each keeps a window of outstanding fetches, and fills pages as they arrive. Neither kind knows what the other has outstanding: the urgent lane
//! fetches a page that a program waits for even if the stream has fetched it already. The first answer fills the page, and a page that is
//! present keeps its contents. So no order of events gives a wrong page, and each fault costs at most one page that is transferred twice. (A
//! checkpoint store is asked once: the lanes share what is read from it.)
//!
//! The engine reopens a lost connection, and fetches the outstanding pages again; meanwhile programs wait. The outstanding pages of a lost
//! connection of the stream go back into the plan, and any connection fetches them. The only table of pages is the bitmap of that plan.
//!
//! A program that still runs at the source can send pages before: [`Staging`] stages them, and gives the engine a [`Staged`].
//!
//! [`Verification`] compares regions with their source, while the program stands still.
//!
//! A [`Completion`] takes one region from its last page to plain memory; [`Status`] is a snapshot of the counters and regions.
//!
//! # Example
//!
//! A region is filled from a file of this machine, and becomes plain memory:
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::time::{Duration, Instant};
//!
//! use vmem::{Control, RegionBuilder};
//! use vmem_engine::{CompletionOptions, Engine, Event, Completion, Options, Permission, Release, Sink, Stats, Status, Target};
//! use vmem_source::local::Local;
//! use vmem_source::{Lane, PageSource};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let open = |_: Lane| -> Result<Box<dyn PageSource>, vmem_source::Error> { Ok(Box::new(Local::open(["guest0=/srv/guest0.ram"])?)) };
//!     let first = open(Lane::Urgent)?;
//!     let export = first.exports()[0].clone();
//!     let region = Arc::new(RegionBuilder::new(export.length()).name("guest0").create(&Control::open()?)?);
//!     let sink = Arc::clone(&region) as Arc<dyn Sink>;
//!     let mut completions = [Completion::new("guest0".into(), export.pages, Arc::clone(&sink))?];
//!     let target = Target { export, name: "guest0".into(), sink };
//!     let options = Options { background: true, streams: 1, yields: false, window: 1024, prefetch: 32, retry: Duration::from_secs(60), liveness: None, patience: Duration::from_secs(80), backed: false, seed: None, touches: None };
//!     let (since, stats) = (Instant::now(), Arc::new(Stats::new()?));
//!     let release = Arc::new(Release::new(Permission::Never));
//!     let (mut engine, _events) = Engine::start(vec![target], first, None, Arc::new(open), options, Arc::clone(&stats), release)?;
//!     region.ready()?;
//!     let ending = CompletionOptions { populate: true, detach_unmapped: false };
//!     while !completions[0].is_done() {
//!         completions[0].step(ending, false)?;
//!         println!("{} bytes are present", Status::take(since, &stats, &completions).regions[0].present);
//!         if let Some(Event::Ended(result)) = engine.next_event(Duration::from_millis(100)) {
//!             result?;
//!         }
//!     }
//!     engine.stop();
//!     Ok(())
//! }
//! ```
#![forbid(unsafe_code)]

mod apply;
mod completion;
mod connection;
mod engine;
mod error;
mod event;
mod exports;
mod in_flight;
mod known;
mod permission;
mod plan;
mod prefetch;
mod readiness;
mod release_notifier;
mod seed;
mod shared;
mod shortage;
mod sink;
mod staging;
mod stats;
mod status;
mod stream;
mod survey;
mod target;
#[cfg(test)]
mod tests;
mod touches;
mod urgent;
mod verify;

pub use completion::{Completion, CompletionOptions, Phase};
pub use connection::Connect;
pub use engine::Engine;
pub use error::Error;
pub use event::Event;
pub use permission::{Permission, Release};
pub use seed::Seed;
pub use shared::Options;
pub use sink::{RegionState, Sink};
pub use staging::{Staged, Staging};
pub use stats::{Service, Stats};
pub use status::{RegionStatus, Status};
pub use target::Target;
pub use touches::{Touched, Touches};
pub use verify::{Verification, Verified};
