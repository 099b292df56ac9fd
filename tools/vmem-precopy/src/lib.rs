// SPDX-License-Identifier: GPL-2.0-or-later
//! Pre-copy: which pages are sent while their program runs, and when it is time to switch.
//!
//! [`PreCopy`] goes over tracked memory in rounds. The first round is all pages, each later one those that were written since they were
//! sent. When the [`Policy`] says so the program stops, [`PreCopy::finish`] takes the dirty log for the last time, and what is not at the
//! destination by then is the *remainder*. It is the [`Rounds`](vmem_source::rounds::Rounds) of a server of pages. [`predict`] says what would come of it, from a recorded dirty log ([`Trace`]).
//!
//! # Example
//!
//! How a program with a hot spot of 40 MiB would move over a link of 1 Gbit/s:
//!
//! ```
//! use std::time::Duration;
//! use vmem_pages::PageRange;
//! use vmem_precopy::{Limits, Mode, Trace, predict};
//!
//! # fn main() -> Result<(), vmem_precopy::Error> {
//! let mut trace = Trace::new(262_144)?; // 1 GiB
//! for interval in 0..100 {
//!     let dirty = PageRange::from_pgoff(512 * (interval % 20), 512);
//!     trace.push(Duration::from_millis(100), dirty.into_iter().collect())?;
//! }
//! let forecast = predict(&trace, 125_000_000, Limits::default())?;
//! assert_eq!(forecast.mode, Mode::Precopy);
//! assert!(forecast.downtime <= Duration::from_millis(100));
//! println!("{forecast}; {}", forecast.decision);
//! # Ok(())
//! # }
//! ```
//!
//! The rounds themselves, on memory of a running program. `send` sends pages, and returns how many bytes that were:
//!
//! ```no_run
//! use std::time::{Duration, Instant};
//! use vmem::{Control, PageRange, ProcessMemory};
//! use vmem_precopy::{Event, Options, PreCopy};
//! use vmem_source::rounds::Sent;
//!
//! # fn send(_: &[PageRange]) -> Result<u64, std::io::Error> { Ok(0) }
//! # fn stop_the_program() {}
//! # fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let memory = ProcessMemory::open(812, "/memfd:ram")?;
//! let adopted = Control::open()?.adopt(&memory)?;
//! let precopy = PreCopy::new(vec![Box::new(adopted.track()?)], Options::default())?;
//! std::thread::scope(|scope| {
//!     let sender = scope.spawn(|| -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//!         loop {
//!             let batch = precopy.next(1024)?;
//!             let since = Instant::now();
//!             let ranges = batch.pages.as_ref().map_or(&[][..], |pages| &pages.ranges);
//!             let (bytes, data) = (send(ranges)?, ranges.iter().map(|range| range.count()).sum());
//!             precopy.sent(&batch, &Sent { data, bytes, elapsed: since.elapsed(), ..Sent::default() });
//!             if batch.over {
//!                 return Ok(());
//!             }
//!         }
//!     });
//!     loop {
//!         match precopy.next_event(Duration::from_secs(1)) {
//!             Some(Event::Settled(decision)) => break println!("{decision}"),
//!             Some(Event::Lost) => return Err("the sender is gone".into()),
//!             _ => println!("{:?}", precopy.statistics().now),
//!         }
//!     }
//!     stop_the_program();
//!     println!("{} pages are left: {:?}", precopy.finish()?.pages, precopy.remainder()?);
//!     sender.join().unwrap_or(Ok(()))
//! })
//! # }
//! ```
//!
//! # Which pages are next
//!
//! A round goes over *chunks* of 512 pages in the order of a permutation, which is another one in each round, so that no order in which the
//! program writes stays just ahead of it. Each chunk is taken out of the dirty log just before its pages are chosen. A page that is written
//! after that waits for the next round.
//!
//! A page that was written in several of the last rounds, or in the first round just before its turn, waits for the end of the round, the hottest
//! pages longest; if it is written again by then, it is skipped. So a page that is written all the time, or that is pinned and stays in
//! the log, is not sent over and over. In the remainder the hottest pages are the first: the program is going to touch them.
//!
//! What is known of the pages takes 196 KiB for each GiB of memory: a counter of two bits, four sets of pages, and a byte for each 64 pages. Holes are known to the
//! reader of the memory alone. They cost a frame in the first round, and nothing in later ones.
//!
//! # What is right at the switch
//!
//! A page that was written since it was last chosen is *pending*, or in the log. It leaves the log only by a take, which makes it pending,
//! and it stops being pending only when it is chosen, after a take of its chunk in the same call. Its contents are read after that. So every
//! page that is neither pending nor in the log at the last take has the same contents at both ends, and all others are the remainder. Pages
//! that were taken before a take failed are pending, too.
//!
//! # When to switch
//!
//! [`Policy::end_round`] has the rule. The expected downtime is the pages that are left, each with all of its bytes, divided by the smoothed
//! bandwidth. It assumes that none of them is zero, that the connection goes on as it did in the last seconds, and nothing about the time
//! that the program's devices need. Rounds always end: no [`Limits`] can be looser than Xen's and Palacios'.
//!
//! # Why pages are taken just before they are sent
//!
//! The table is from the simulator ([`simulate`]): 1 GiB of memory, a link of 100 MiB/s, and a downtime of 100 ms. It has the bytes that are
//! sent, as a multiple of the memory and with what is left at the switch, and the time to send what is left. *Xen* has its own end of
//! the rounds, all other columns the policy of this crate in the mode auto. "Clean" cleans the log at the beginning of a round, and skips
//! pages that are in it again at their turn; "take" takes pages out of it just before they are sent.
//!
//! | trace | Xen today: no skip | Xen of 2006: skip | clean, no skip | clean, skip | take, nothing waits | take, hot pages wait | take, hot and early pages wait | the same, a log that begins with all pages: this crate |
//! |---|---|---|---|---|---|---|---|---|
//! | idle | 1.000, 0 ms | 1.000, 0 ms | 1.000, 0 ms | 1.000, 0 ms | 1.000, 0 ms | 1.000, 0 ms | 1.000, 0 ms | 1.000, 0 ms |
//! | hot spot: a tenth, at 0.5 of the link | 1.173, 0 ms | 1.059, 0 ms | 1.165, 87 ms | 1.053, 68 ms | 1.113, 53 ms | 1.111, 86 ms | 1.054, 57 ms | 1.072, 55 ms |
//! | skewed: 90 % of writes to 2 %, at 0.5 | 1.099, 0 ms | 1.040, 0 ms | 1.092, 78 ms | 1.035, 64 ms | 1.053, 77 ms | 1.052, 24 ms | 1.033, 77 ms | 1.035, 76 ms |
//! | sequential sweep, at 0.5 | 2.000, 0 ms | 1.590, 0 ms | 1.992, 80 ms | 1.584, 63 ms | 1.501, 70 ms | 1.501, 70 ms | 1.561, 75 ms | 1.524, 70 ms |
//! | backward sweep, at 0.5 | 2.000, 0 ms | 1.547, 0 ms | 1.992, 80 ms | 1.541, 61 ms | 1.482, 60 ms | 1.482, 60 ms | 1.569, 75 ms | 1.513, 70 ms |
//! | uniform, at 0.1 | 1.106, 0 ms | 1.054, 0 ms | 1.105, 96 ms | 1.053, 92 ms | 1.054, 8 ms | 1.054, 9 ms | 1.054, 9 ms | 1.054, 9 ms |
//! | uniform, at 0.5 | 1.740, 0 ms | 1.385, 0 ms | 1.735, 52 ms | 1.378, 80 ms | 1.379, 71 ms | 1.379, 78 ms | 1.378, 81 ms | 1.378, 75 ms |
//! | uniform, at 1 | 3.288, 2404 ms | 3.093, 489 ms | 2.473, 3825 ms | 1.810, 2049 ms | 1.983, 1660 ms | 1.945, 1738 ms | 1.933, 1765 ms | 1.959, 1715 ms |
//! | uniform, at 2 | 4.296, 8210 ms | 3.621, 5130 ms | 2.687, 8424 ms | 1.546, 5855 ms | 2.289, 5273 ms | 2.104, 5339 ms | 2.014, 5390 ms | 2.126, 5323 ms |
//! | phases: 2 s at 2, 3 s at 0.01 | 2.593, 1020 ms | 1.669, 1147 ms | 2.860, 8 ms | 1.846, 65 ms | 1.586, 771 ms | 1.847, 0 ms | 1.847, 0 ms | 1.847, 0 ms |
//!
//! - Taking pages just before they are sent, or skipping those that were written again, saves up to a third of the bytes of a round that
//!   does neither. Both never send a page that is at the destination already, and for uniform writes at half of the link's rate both are at
//!   the least that is possible, 2 ln 2 = 1.386 times the memory until nothing is left.
//! - Between the two there is little: 2 % where a program ends up within the downtime. Taking needs fewer rounds for it (4 instead of 6 for
//!   uniform writes at half of the rate).
//! - Waiting pages are what makes it as good as skipping for hot spots (5 %). For a program that writes its memory in order they cost 4 to
//!   6 %: its pages are written again long after.
//! - With a log that begins with all pages, nothing is known of a chunk before it is taken, a quarter of the memory ahead of its turn. That
//!   spares the program a fault for each page at once when the log begins, and halves both what waiting gains (hot spots: 1.2 % more bytes than with Xen of 2006) and what it costs
//!   (sweeps). Taken at their turn alone, hot spots would cost 5 % more; an eighth ahead, 2 %.
//! - Where the program writes as fast as the link sends or faster, cleaning and skipping leaves more pages (16 % and 9 %) and sends less:
//!   the rounds end as early as they can in both, after three or four. Both are far below Xen's limits.
//!
//! These traces are generated. `traces/` has recorded ones, of a guest that boots, is idle, and writes (`tools/testing/migration/record`). Over a
//! link of twice the rate at which they write, the bytes are 1.020, 1.003 and 1.010 of those with Xen of 2006, and 0.906, 0.985 and 0.970
//! of those with a Xen that does not skip. The last two are within 3 % of sending each page once: there, no policy can save much.
#![forbid(unsafe_code)]

mod bandwidth;
mod decision;
mod error;
mod heat;
mod limits;
mod memory;
mod order;
mod plan;
mod policy;
mod progress;
mod rates;
mod recorder;
mod replay;
mod rounds;
mod simulator;
mod statistics;
#[cfg(test)]
mod tests;
mod trace;

pub use bandwidth::{Bandwidth, Transfer};
pub use decision::{Decision, Reason};
pub use error::{Error, LogAction};
pub use limits::{Limits, Mode};
pub use memory::{DirtyMemory, Logged};
pub use plan::{Adjustment, Options};
pub use policy::{Policy, RoundEnd};
pub use progress::Defer;
pub use rates::Rates;
pub use recorder::{Recorder, Recording, WrittenMemory};
pub use rounds::{Event, PreCopy};
pub use simulator::{Forecast, Outcome, Scheme, predict, simulate};
pub use statistics::{Remainder, RoundStatistics, Standing, Statistics};
pub use trace::Trace;
