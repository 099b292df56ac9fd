// SPDX-License-Identifier: GPL-2.0-or-later
//! QEMU's monitor at the destination. QEMU executes commands in its main loop, and the main loop may wait for a page of the guest. So
//! vmemctl waits for an answer as long as pages arrive. If the connection closes, vmemctl reconnects, because QEMU may still live.

use std::io;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use vmem_cli::{Signals, chain};
use vmem_qemu::{Event, QemuProcess, Qmp};

use super::regions::Regions;
use crate::report::Report;

/// How long QEMU may be silent while no page arrives, once this host owns the guest: as long as the source tries to reconnect.
const TIMEOUT: Duration = Duration::from_secs(600);

/// The pause between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(100);

/// How long QEMU may take to exit after it has closed its socket, before vmemctl reconnects.
const EXIT: Duration = Duration::from_secs(1);

/// QEMU's monitor.
#[derive(Debug)]
pub(super) struct Monitor {
    path: PathBuf,
    /// `None`: the next command connects again.
    qmp: Option<Qmp>,
    /// QEMU's process. `None`: it is not known which process that is.
    process: Option<QemuProcess>,
    regions: Regions,
    /// How long one command may take before vmemctl checks whether pages arrive.
    limit: Duration,
    /// How long QEMU may be silent while no page arrives.
    patience: Duration,
    /// A signal among these ends the wait.
    signals: Signals,
}

/// A wait that lasts as long as pages arrive.
pub(super) struct Wait<'a> {
    regions: &'a Regions,
    present: u64,
    until: Instant,
    patience: Duration,
}

impl<'a> Wait<'a> {
    pub(super) fn new(regions: &'a Regions, patience: Duration) -> Self {
        Self {
            regions,
            present: regions.inspect().present,
            until: Instant::now() + patience,
            patience,
        }
    }

    /// Whether a page has arrived within the last `patience`.
    pub(super) fn goes_on(&mut self) -> bool {
        let present = self.regions.inspect().present;
        if present != self.present {
            self.present = present;
            self.until = Instant::now() + self.patience;
        }
        Instant::now() < self.until
    }
}

impl Monitor {
    pub(super) fn new(path: PathBuf, qmp: Option<Qmp>, process: Option<QemuProcess>, regions: Regions, limit: Duration) -> Self {
        Self {
            path,
            qmp,
            process,
            regions,
            limit,
            patience: TIMEOUT,
            signals: Signals::default(),
        }
    }

    /// Ends waits once one of these signals has arrived.
    pub(super) fn with_signals(self, signals: &Signals) -> Self {
        let signals = signals.clone();
        Self { signals, ..self }
    }

    /// Replaces the patience, for tests.
    #[cfg(test)]
    pub(super) fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    pub(super) fn regions(&self) -> &Regions {
        &self.regions
    }

    /// Asks QEMU for a guest that this host owns. The query must be repeatable, because this repeats it until QEMU answers. Gives up when
    /// QEMU has ended, or when QEMU is silent for a long time in which no page arrives.
    pub(super) fn ask<T>(
        &mut self,
        report: &Report,
        ask: impl FnMut(&mut Qmp) -> Result<T, vmem_qemu::Error>,
    ) -> Result<T, vmem_qemu::Error> {
        self.ask_within(self.patience, report, ask)
    }

    /// As [`ask`](Self::ask), for a guest that this host does not own. The wait is short, because nothing is lost if QEMU does not answer.
    pub(super) fn ask_briefly<T>(
        &mut self,
        report: &Report,
        ask: impl FnMut(&mut Qmp) -> Result<T, vmem_qemu::Error>,
    ) -> Result<T, vmem_qemu::Error> {
        self.ask_within(self.limit, report, ask)
    }

    fn ask_within<T>(
        &mut self,
        patience: Duration,
        report: &Report,
        mut ask: impl FnMut(&mut Qmp) -> Result<T, vmem_qemu::Error>,
    ) -> Result<T, vmem_qemu::Error> {
        let regions = self.regions.clone();
        let mut wait = Wait::new(&regions, patience);
        let mut noted = false;
        loop {
            let error = match self.once(&mut ask) {
                Err(error) if is_silence(&error) || is_end(&error) => error,
                other => return other,
            };
            if is_end(&error) {
                if self.is_gone_within(EXIT.min(patience)) {
                    return Err(vmem_qemu::Error::Closed);
                }
                if !std::mem::replace(&mut noted, true) {
                    report.note(&format!("{}; its process lives: trying again", chain(&error)));
                }
                sleep(PAUSE);
            } else {
                report.note(&format!(
                    "{}: it may wait for a page ({} are here)",
                    chain(&error),
                    regions.inspect().present
                ));
            }
            if !wait.goes_on() || self.signals.check().is_err() {
                return Err(error);
            }
        }
    }

    /// Asks QEMU once, and gives up at the time limit of a command.
    pub(super) fn once<T>(&mut self, ask: impl FnOnce(&mut Qmp) -> Result<T, vmem_qemu::Error>) -> Result<T, vmem_qemu::Error> {
        let result = self.connection().and_then(ask);
        if matches!(&result, Err(error) if is_end(error)) {
            self.qmp = None;
        }
        result
    }

    fn connection(&mut self) -> Result<&mut Qmp, vmem_qemu::Error> {
        let qmp = match self.qmp.take() {
            Some(qmp) => qmp,
            None => Qmp::connect(&self.path, self.limit)?,
        };
        Ok(self.qmp.insert(qmp))
    }

    /// The oldest unread event, if there is one by `deadline`. An error means that the connection is closed. The next query connects again.
    pub(super) fn event(&mut self, deadline: Instant) -> Result<Option<Event>, vmem_qemu::Error> {
        let Some(qmp) = &mut self.qmp else {
            return Err(vmem_qemu::Error::Closed);
        };
        match qmp.next_event(deadline) {
            Err(error) if is_end(&error) => {
                self.qmp = None;
                Err(error)
            }
            // Other errors do not concern events.
            Err(_) => Ok(None),
            Ok(event) => Ok(event),
        }
    }

    /// Whether QEMU is certain to have ended, now or within `limit`: its process has exited, and no process maps the guest's memory. A
    /// closed socket proves nothing: it may belong to a proxy, or QEMU may have been told to close it. If QEMU's process is not known, no
    /// process may listen at the socket any more.
    pub(super) fn is_gone_within(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let left = || until.saturating_duration_since(Instant::now());
        loop {
            let exited = match &self.process {
                Some(process) => process.ends_within(left()),
                None => Qmp::connect(&self.path, self.limit.min(PAUSE)).is_err_and(|error| is_nobody(&error)),
            };
            if exited && !self.regions.inspect().mapped {
                return true;
            }
            if left().is_zero() {
                return false;
            }
            sleep(PAUSE.min(left()));
        }
    }

    /// Ends a QEMU that must not run the guest. Returns whether QEMU is certain to have ended.
    pub(super) fn end(&mut self, limit: Duration) -> bool {
        // QEMU may have ended, or may close the connection without a reply.
        let _ = self.once(|qmp| qmp.execute("quit", serde_json::json!({})));
        if self.is_gone_within(limit) {
            return true;
        }
        // QEMU may wait for a page that does not arrive, for example.
        if let Some(process) = &self.process {
            process.kill();
        }
        self.is_gone_within(limit)
    }
}

/// Whether QEMU has not answered yet.
fn is_silence(error: &vmem_qemu::Error) -> bool {
    matches!(error, vmem_qemu::Error::TimedOut { .. })
}

/// Whether the connection is closed.
fn is_end(error: &vmem_qemu::Error) -> bool {
    matches!(
        error,
        vmem_qemu::Error::Closed | vmem_qemu::Error::Io(_) | vmem_qemu::Error::Connect { .. }
    )
}

/// Whether the error says that no process listens at the socket.
fn is_nobody(error: &vmem_qemu::Error) -> bool {
    let vmem_qemu::Error::Connect { source, .. } = error else {
        return false;
    };
    matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}
