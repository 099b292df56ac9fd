// SPDX-License-Identifier: GPL-2.0
//! Memory whose writes are logged, so that it can be sent in rounds while its programs run.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use vmem::{Adopted, Control, MemoryHandle};
use vmem_cli::chain;
use vmem_control::{Event as ControlEvent, Publisher, Round};
use vmem_precopy::{DirtyMemory, Event, Options, PreCopy, RoundStatistics};
use vmem_source::serve::Server;

use crate::cli::Serve;

/// How often the thread that reports looks whether the rounds are over.
const TICK: Duration = Duration::from_secs(1);

/// Memory cannot be tracked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrackError {
    #[error("cannot track {path}: which process has it open? (--process PID)")]
    Process { path: String },
    #[error("cannot track {path}")]
    Memory {
        path: String,
        #[source]
        source: vmem::Error,
    },
    #[error("cannot send rounds")]
    Rounds(#[from] vmem_precopy::Error),
}

/// Tracks the memory of all exports. To be called as root, and before anything is read from it.
pub(super) fn track(args: &Serve, options: Options) -> Result<Arc<PreCopy>, TrackError> {
    let mut memories: Vec<Box<dyn DirtyMemory>> = Vec::new();
    for spec in &args.exports {
        // `Memory::open` refuses what has no path.
        let path = spec.split_once('=').map_or("", |(_, path)| path);
        let failed = |source| TrackError::Memory {
            path: path.to_owned(),
            source,
        };
        memories.push(Box::new(adopt(path, args.process)?.track().map_err(failed)?));
    }
    Ok(Arc::new(PreCopy::new(memories, options)?))
}

/// Adopts the memory at `path`, of which `process` has to be known only if nothing else says it.
fn adopt(path: &str, process: Option<i32>) -> Result<Adopted, TrackError> {
    let failed = |source| match source {
        vmem::Error::ProcessUnknown { .. } => TrackError::Process { path: path.to_owned() },
        source => TrackError::Memory {
            path: path.to_owned(),
            source,
        },
    };
    let control = Control::open().map_err(failed)?;
    let memory = MemoryHandle::open(path, process).map_err(failed)?;
    control.adopt(&memory).map_err(failed)
}

/// Reports what the rounds come to, until they are over, in a thread of its own.
pub(super) fn report(rounds: &Arc<PreCopy>, clients: Publisher) -> std::io::Result<()> {
    let rounds = Arc::downgrade(rounds);
    let thread = thread::Builder::new().name("rounds".to_owned());
    thread.spawn(move || {
        while let Some(rounds) = rounds.upgrade() {
            let Some(event) = rounds.next_event(TICK) else { continue };
            tracing::info!("{}", text(&event));
            let is_lost = matches!(event, Event::Lost);
            clients.publish(said(event));
            if is_lost {
                break;
            }
        }
    })?;
    Ok(())
}

/// The program has stopped: takes what was written last, in a thread of its own. From then on, a destination that has taken no rounds may
/// fetch pages.
pub(super) fn finish(rounds: &Arc<PreCopy>, server: Weak<Server>, clients: Publisher) -> std::io::Result<()> {
    let rounds = Arc::clone(rounds);
    let thread = thread::Builder::new().name("finish".to_owned());
    thread.spawn(move || {
        clients.publish(match rounds.finish() {
            Ok(pages) => {
                server.upgrade().iter().for_each(|server| server.allow_reads());
                ControlEvent::Finished {
                    remainder_bytes: pages.saturating_mul(vmem::PAGE_SIZE as u64),
                }
            }
            Err(error) => ControlEvent::Failed { error: chain(&error) },
        });
    })?;
    Ok(())
}

fn text(event: &Event) -> String {
    match event {
        Event::Round(round) => format!(
            "round {}: sent {} pages in {:.3} s, {} left",
            round.round,
            round.sent,
            round.elapsed.as_secs_f64(),
            round.left
        ),
        Event::Settled(decision) => decision.to_string(),
        Event::Lost => LOST.to_owned(),
    }
}

const LOST: &str = "the connection that takes the rounds was lost";

fn said(event: Event) -> ControlEvent {
    match event {
        Event::Round(round) => ControlEvent::Round(figures(&round)),
        Event::Settled(decision) => ControlEvent::Settled {
            reason: decision.to_string(),
            fits: decision.fits(),
            left_bytes: decision.pages_left.saturating_mul(vmem::PAGE_SIZE as u64),
            expected_ms: decision
                .expected
                .and_then(|expected| u64::try_from(expected.as_millis()).ok()),
        },
        Event::Lost => ControlEvent::Failed { error: LOST.to_owned() },
    }
}

fn figures(round: &RoundStatistics) -> Round {
    Round {
        round: round.round,
        seconds: round.elapsed.as_secs_f64(),
        sent_pages: round.sent,
        zero_pages: round.zero,
        resent_pages: round.resent,
        skipped_pages: round.skipped,
        dirtied_pages: round.dirtied,
        left_pages: round.left,
        bytes: round.bytes,
    }
}
