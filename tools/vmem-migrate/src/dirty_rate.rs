// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl dirty-rate`: how fast a guest writes to its memory, and what a migration of it would come to. The guest only runs slower
//! meanwhile, and nothing of it is changed.

mod trace_file;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use vmem::{Adopted, Control, Tracking};
use vmem_cli::Signals;
use vmem_precopy::{DirtyMemory, Forecast, Limits, Recorder, Recording, Trace, predict};
use vmem_qemu::{GuestMemory, OpenBackend, Process};

use crate::error::{Cause, Error};
use crate::report::Report;

pub use trace_file::TraceFile;

/// How often the measurement checks for a signal.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// QEMU's QMP socket.
    pub qmp: PathBuf,
    /// How long.
    pub duration: Duration,
    /// The length of an interval.
    pub interval: Duration,
}

/// What was measured.
#[derive(Debug)]
pub struct Measurement {
    /// The guest's name.
    pub guest: String,
    /// The run state when the measurement began: "running", "paused", ...
    pub status: String,
    /// The memory backends, in the order of the recording's memories.
    pub backends: Vec<Backend>,
    /// The dirty log.
    pub recording: Recording,
    /// Why the measurement ended.
    pub end: End,
}

/// A memory backend that was measured.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Its name.
    pub id: String,
    /// Where its memory is: a file, the node of a region, or a descriptor of QEMU's process.
    pub path: PathBuf,
}

/// Why a measurement ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The time is over.
    Time,
    /// A signal.
    Signal,
    /// QEMU has ended.
    QemuEnded,
    /// The recording is too large to go on.
    Full,
}

/// Measures the guest. Tracking has ended when this returns.
///
/// # Errors
///
/// [`Error::Local`] if the guest's memory cannot be tracked, and why. A signal is no error once the measurement has begun.
pub fn measure(options: &Options, signals: &Signals, report: &Report) -> Result<Measurement, Error> {
    Ok(track_and_record(options, signals, report)?)
}

fn track_and_record(options: &Options, signals: &Signals, report: &Report) -> Result<Measurement, Cause> {
    let path = options.qmp.clone();
    let guest = signals.unless(move || GuestMemory::find(&path))??;
    if guest.status != "running" {
        report.note(&format!(
            "guest {:?} is {}: it does not write as when it runs",
            guest.name, guest.status
        ));
    }
    let trackings = track(&guest)?;
    let (recording, end) = record(trackings, &guest.process, options, signals)?;
    Ok(Measurement {
        guest: guest.name,
        status: guest.status,
        backends: guest
            .memories
            .into_iter()
            .map(|OpenBackend { id, path, .. }| Backend { id, path })
            .collect(),
        recording,
        end,
    })
}

/// Begins to track all memory, or none.
fn track(guest: &GuestMemory) -> Result<Vec<Box<dyn DirtyMemory>>, Cause> {
    // Nothing is slowed down before all of it can be tracked.
    let adopted = adopt(guest)?;
    let boxed = |tracking: Tracking| Box::new(tracking) as Box<dyn DirtyMemory>;
    guest
        .memories
        .iter()
        .zip(adopted)
        .map(|(memory, adopted)| adopted.track().map(boxed).map_err(untracked(memory)))
        .collect()
}

/// All memory of a guest, which can be tracked then.
pub(crate) fn adopt(guest: &GuestMemory) -> Result<Vec<Adopted>, Cause> {
    let control = Control::open().map_err(Cause::call(vmem_cli::NO_MODULE))?;
    let adopted = guest.memories.iter().map(|memory| {
        let adopted = control.adopt(&memory.handle).map_err(untracked(memory))?;
        if adopted.size() != memory.bytes.next_multiple_of(vmem::PAGE_SIZE as u64) {
            return Err(Cause::other(format!(
                "cannot track {memory}: it has {} bytes, and {} according to QEMU",
                adopted.size(),
                memory.bytes
            )));
        }
        Ok(adopted)
    });
    adopted.collect()
}

fn untracked(memory: &OpenBackend) -> impl FnOnce(vmem::Error) -> Cause {
    Cause::call(format!("cannot track {memory}"))
}

/// Records until the time is over, or QEMU has ended, or a signal arrives.
fn record(
    trackings: Vec<Box<dyn DirtyMemory>>,
    qemu: &Process,
    options: &Options,
    signals: &Signals,
) -> Result<(Recording, End), Cause> {
    let failed = || Cause::call("cannot record what the guest writes");
    let mut recorder = Recorder::begin(trackings).map_err(failed())?;
    let until = Instant::now() + options.duration;
    let mut next = Instant::now();
    let end = loop {
        // After an interval that took longer, the next one begins at once.
        next = (next + options.interval).max(Instant::now()).min(until);
        let early = wait(next, qemu, signals);
        recorder.sample().map_err(failed())?;
        match early {
            Some(end) => break end,
            None if recorder.is_full() => break End::Full,
            None if next >= until => break End::Time,
            None => {}
        }
    };
    Ok((recorder.finish(), end))
}

/// Waits until `next`, unless the measurement ends before.
fn wait(next: Instant, qemu: &Process, signals: &Signals) -> Option<End> {
    loop {
        if signals.check().is_err() {
            return Some(End::Signal);
        }
        let left = next.saturating_duration_since(Instant::now());
        if qemu.wait(left.min(POLL_INTERVAL)) {
            return Some(End::QemuEnded);
        }
        if left.is_zero() {
            return None;
        }
    }
}

/// The limits of which there is a forecast.
pub const LIMITS: [(&str, Limits); 2] = [("xen", Limits::XEN), ("palacios", Limits::PALACIOS)];

/// What a migration over a link of so many bytes a second would come to, with each of [`LIMITS`]. All memory is one to it.
///
/// # Errors
///
/// [`Error::Local`]: a signal, or a link that is too slow.
pub fn forecasts(trace: Trace, bandwidth: u64, signals: &Signals) -> Result<Vec<(&'static str, Forecast)>, Error> {
    let of = move |(name, limits): (&'static str, Limits)| Ok((name, predict(&trace, bandwidth, limits)?));
    let found = signals.unless(move || LIMITS.map(of).into_iter().collect::<Result<Vec<_>, vmem_precopy::Error>>());
    let found = found.map_err(Cause::from)?;
    Ok(found.map_err(Cause::call("cannot predict a migration"))?)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use vmem::PageRange;
    use vmem_precopy::Mode;

    use super::*;

    fn own() -> Process {
        Process::open(i32::try_from(std::process::id()).expect("a number")).expect("this process")
    }

    #[test]
    fn wait_ends_at_the_time_or_by_a_signal_or_with_qemu() {
        let (qemu, signals) = (own(), Signals::default());
        assert_eq!(wait(Instant::now() + Duration::from_millis(1), &qemu, &signals), None);
        let later = || Instant::now() + Duration::from_secs(1000);
        let mut child = std::process::Command::new("true").spawn().expect("a process");
        let ended = Process::of_child(&child).expect("a pidfd");
        assert_eq!(wait(later(), &ended, &signals), Some(End::QemuEnded));
        child.wait().expect("a child");
        signals.raise();
        assert_eq!(wait(later(), &qemu, &signals), Some(End::Signal));
    }

    #[test]
    fn forecast_of_a_fast_writer_depends_on_the_link() {
        let mut trace = Trace::new(4096).expect("a trace");
        for _ in 0..10 {
            let dirty = PageRange::from_pgoff(0, 2048).expect("pages");
            trace.push(Duration::from_millis(100), vec![dirty]).expect("a sample");
        }
        let modes = |bandwidth| {
            let found = forecasts(trace.clone(), bandwidth, &Signals::default()).expect("a forecast");
            found
                .iter()
                .map(|(name, forecast)| (*name, forecast.mode))
                .collect::<Vec<_>>()
        };
        assert_eq!(modes(10 << 30), [("xen", Mode::Precopy), ("palacios", Mode::Precopy)]);
        assert_eq!(modes(10 << 20), [("xen", Mode::Hybrid), ("palacios", Mode::Hybrid)]);
        let stopped = Signals::default();
        stopped.raise();
        assert!(forecasts(trace, 10 << 20, &stopped).is_err());
    }
}
