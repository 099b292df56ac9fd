// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory whose writes are logged, so that it can be sent in rounds while its programs run.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use vmem::{Control, MemoryHandle, TrackOptions, Tracking};
use vmem_cli::chain;
use vmem_control::{Change, Event as ControlEvent, Finished, Publisher, Refusal, Round, Settled};
use vmem_precopy::{Adjustment, DirtyMemory, Event, Mode, Options, PreCopy, RoundStatistics};
use vmem_source::serve::{Limiter, Server};

use super::ending::Ending;
use crate::cli::Serve;
use crate::cpu;

/// How often the thread that reports says where the rounds stand, and looks whether they are over.
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
        memories.push(Box::new(track_memory(path, args.process)?));
    }
    Ok(Arc::new(PreCopy::new(memories, options)?))
}

/// Adopts and tracks the memory at `path`, of which `process` has to be known only if nothing else says it. All of it is sent, so the log may
/// begin with all pages.
fn track_memory(path: &str, process: Option<i32>) -> Result<Tracking, TrackError> {
    let failed = |source| match source {
        vmem::Error::ProcessUnknown { .. } => TrackError::Process { path: path.to_owned() },
        source => TrackError::Memory {
            path: path.to_owned(),
            source,
        },
    };
    let control = Control::open().map_err(failed)?;
    let memory = MemoryHandle::open(path, process).map_err(failed)?;
    let adopted = control.adopt(&memory).map_err(failed)?;
    // A module of an earlier version has no such flag.
    let all = control.features().is_ok_and(|features| features.track_all);
    adopted.track_with(TrackOptions::default().all(all)).map_err(failed)
}

/// Reports what the rounds come to, until they are over, in a thread of its own.
pub(super) fn report(rounds: &Arc<PreCopy>, clients: Publisher) -> std::io::Result<()> {
    let rounds = Arc::downgrade(rounds);
    let thread = thread::Builder::new().name("rounds".to_owned());
    thread.spawn(move || {
        let mut due = Instant::now();
        let mut used = cpu::time();
        while let Some(rounds) = rounds.upgrade() {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                due = Instant::now() + TICK;
                publish_standing(&rounds, &clients);
                continue;
            }
            let Some(event) = rounds.next_event(left) else { continue };
            tracing::info!("{}", text(&event));
            let is_lost = matches!(event, Event::Lost);
            let mut event = said(event);
            if let ControlEvent::Round(round) = &mut event {
                let now = cpu::time();
                round.cpu_seconds = now.saturating_sub(std::mem::replace(&mut used, now)).as_secs_f64();
            }
            clients.publish(event);
            if is_lost {
                break;
            }
        }
    })?;
    Ok(())
}

/// Tells the clients where the rounds stand, if they run.
pub(super) fn publish_standing(rounds: &PreCopy, clients: &Publisher) {
    let Some(standing) = rounds.standing() else { return };
    clients.publish(ControlEvent::Rounds(vmem_control::Rounds {
        mode: standing.mode.to_string(),
        round: standing.now.round,
        seconds: standing.now.elapsed.as_secs_f64(),
        memory_bytes: to_bytes(standing.pages),
        sent_bytes: to_bytes(standing.now.sent),
        left_bytes: to_bytes(standing.left),
        bytes: standing.bytes,
        dirty_bytes_per_second: standing.dirty_rate(),
        bytes_per_second: standing.bandwidth,
        limit: standing.limit,
        max_downtime_ms: to_ms(standing.downtime),
        expected_ms: standing.expected.map(to_ms),
    }));
}

/// Changes what ends the rounds.
pub(super) fn adjust(rounds: &PreCopy, change: &Change) -> Result<(), Refusal> {
    let refused = |error: vmem_precopy::Error| Refusal::new(chain(&error));
    let mode = change
        .mode
        .as_ref()
        .map(|mode| mode.parse::<Mode>())
        .transpose()
        .map_err(refused)?;
    let downtime = change
        .max_downtime_ms
        .map(|milliseconds| Duration::from_millis(milliseconds.into()));
    rounds.adjust(Adjustment { mode, downtime }).map_err(refused)
}

/// Has the program stop now.
pub(super) fn switch(rounds: &PreCopy) -> Result<(), Refusal> {
    rounds.switch_now().map_err(|error| Refusal::new(chain(&error)))
}

/// The program has stopped: takes what was written last, in a thread of its own. From then on, a destination that has taken no rounds may
/// fetch pages. The program waits for what is still to be sent of a round, so that is not limited.
pub(super) fn finish(
    rounds: &Arc<PreCopy>,
    server: Weak<Server>,
    limiter: &Arc<Limiter>,
    ending: &Arc<Ending>,
    clients: Publisher,
) -> std::io::Result<()> {
    let (rounds, limiter, ending) = (Arc::clone(rounds), Arc::clone(limiter), Arc::clone(ending));
    let begun = Arc::clone(&ending);
    let thread = thread::Builder::new().name("finish".to_owned());
    begun.begin();
    let spawned = thread.spawn(move || {
        limiter.open_for_rounds(true);
        let result = rounds.finish();
        let is_done = result.is_ok();
        clients.publish(match result {
            Ok(left) => {
                server.upgrade().iter().for_each(|server| server.allow_reads());
                ControlEvent::Finished(Finished {
                    remainder_bytes: to_bytes(left.pages),
                    fits: Some(left.fits),
                    expected_ms: left.expected.map(to_ms),
                })
            }
            Err(error) => {
                limiter.open_for_rounds(false);
                ControlEvent::Failed { error: chain(&error) }
            }
        });
        ending.end(is_done);
    });
    if spawned.is_err() {
        begun.end(false);
    }
    spawned.map(drop)
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
        Event::Settled(decision) => ControlEvent::Settled(Settled {
            reason: decision.to_string(),
            fits: decision.fits(),
            left_bytes: to_bytes(decision.pages_left),
            expected_ms: decision.expected.map(to_ms),
        }),
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
        known_pages: round.known,
        same_pages: round.same,
        skipped_pages: round.skipped,
        dirtied_pages: round.dirtied,
        left_pages: round.left,
        bytes: round.bytes,
        bytes_per_second: round.rate(),
        dirty_bytes_per_second: round.dirty_rate(),
        // That of the process is known to the thread that reports.
        cpu_seconds: 0.0,
    }
}

fn to_bytes(pages: u64) -> u64 {
    pages.saturating_mul(vmem::PAGE_SIZE as u64)
}

fn to_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
