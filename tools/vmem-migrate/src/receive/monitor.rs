// SPDX-License-Identifier: GPL-2.0
//! QEMU's monitor at the destination. QEMU answers a command in its main loop, and that may be waiting for a page of the guest: so it is
//! waited for as long as pages come. A connection that closes is made again, because QEMU may live on.

use std::io;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use vmem_cli::{Signals, chain};
use vmem_qmp::{Event, Qmp};

use super::process::QemuProcess;
use super::regions::Regions;
use crate::guest::GuestError;
use crate::report::Report;

/// How long QEMU may be silent while no page comes, once the guest is this host's: as long as the source tries to reach this host.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Between two tries to connect.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a QEMU that has closed its socket may take to exit before it is connected to again.
const EXIT: Duration = Duration::from_secs(1);

/// QEMU's monitor.
#[derive(Debug)]
pub(super) struct Monitor {
    path: PathBuf,
    /// `None`: the connection is to be made again.
    qmp: Option<Qmp>,
    /// QEMU itself; `None` if it is not known which process that is.
    process: Option<QemuProcess>,
    regions: Regions,
    /// How long one command may take before it is looked whether pages come.
    limit: Duration,
    /// How long QEMU may be silent while no page comes.
    patience: Duration,
    /// One of these ends all patience.
    signals: Signals,
}

/// Waits as long as pages come.
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
            present: regions.look().present,
            until: Instant::now() + patience,
            patience,
        }
    }

    /// Whether a page has come within the last `patience`.
    pub(super) fn goes_on(&mut self) -> bool {
        let present = self.regions.look().present;
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

    /// Not waited for any more once one of these signals has come.
    pub(super) fn with_signals(self, signals: &Signals) -> Self {
        let signals = signals.clone();
        Self { signals, ..self }
    }

    /// With another patience, for tests.
    #[cfg(test)]
    pub(super) fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    pub(super) fn regions(&self) -> &Regions {
        &self.regions
    }

    /// Has QEMU answer, which must be a question that can be asked again: one that is not answered is. Gives up when QEMU is gone, or
    /// says nothing for a long time in which no page comes. For a guest that is this host's.
    pub(super) fn ask<T>(
        &mut self,
        report: &Report,
        ask: impl FnMut(&mut Qmp) -> Result<T, GuestError>,
    ) -> Result<T, GuestError> {
        self.ask_within(self.patience, report, ask)
    }

    /// As [`ask`](Self::ask), for a guest that is not this host's: nothing is lost if QEMU is not waited for.
    pub(super) fn ask_briefly<T>(
        &mut self,
        report: &Report,
        ask: impl FnMut(&mut Qmp) -> Result<T, GuestError>,
    ) -> Result<T, GuestError> {
        self.ask_within(self.limit, report, ask)
    }

    fn ask_within<T>(
        &mut self,
        patience: Duration,
        report: &Report,
        mut ask: impl FnMut(&mut Qmp) -> Result<T, GuestError>,
    ) -> Result<T, GuestError> {
        let regions = self.regions.clone();
        let mut wait = Wait::new(&regions, patience);
        let mut noted = false;
        loop {
            let error = match self.once(&mut ask) {
                Err(GuestError::Qmp(error)) if is_silence(&error) || is_end(&error) => error,
                other => return other,
            };
            if is_end(&error) {
                if self.is_gone_within(EXIT.min(patience)) {
                    return Err(vmem_qmp::Error::Closed.into());
                }
                if !std::mem::replace(&mut noted, true) {
                    report.note(&format!("{}; its process lives: trying again", chain(&error)));
                }
                sleep(PAUSE);
            } else {
                report.note(&format!(
                    "{}: it may wait for a page ({} are here)",
                    chain(&error),
                    regions.look().present
                ));
            }
            if !wait.goes_on() || self.signals.check().is_err() {
                return Err(error.into());
            }
        }
    }

    /// Has QEMU answer, if it does so in time.
    pub(super) fn once<T>(&mut self, ask: impl FnOnce(&mut Qmp) -> Result<T, GuestError>) -> Result<T, GuestError> {
        let result = self.connection().map_err(GuestError::from).and_then(ask);
        if matches!(&result, Err(GuestError::Qmp(error)) if is_end(error)) {
            self.qmp = None;
        }
        result
    }

    fn connection(&mut self) -> Result<&mut Qmp, vmem_qmp::Error> {
        let qmp = match self.qmp.take() {
            Some(qmp) => qmp,
            None => Qmp::connect(&self.path, self.limit)?,
        };
        Ok(self.qmp.insert(qmp))
    }

    /// The oldest event that has not been looked at, if there is one by `deadline`. An error says that the connection is closed; it is
    /// made again by whoever asks next.
    pub(super) fn event(&mut self, deadline: Instant) -> Result<Option<Event>, vmem_qmp::Error> {
        let Some(qmp) = &mut self.qmp else {
            return Err(vmem_qmp::Error::Closed);
        };
        match qmp.next_event(deadline) {
            Err(error) if is_end(&error) => {
                self.qmp = None;
                Err(error)
            }
            // What QEMU says besides is not for here.
            Err(_) => Ok(None),
            Ok(event) => Ok(event),
        }
    }

    /// Whether QEMU is gone for certain, now or `limit` later: its process has exited, and nothing maps the guest's memory. That its
    /// socket is closed says nothing: it may be that of a proxy, or QEMU may have been told to close it. Where it is not known which
    /// process is QEMU, nobody must listen at the socket any more.
    pub(super) fn is_gone_within(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let left = || until.saturating_duration_since(Instant::now());
        loop {
            let exited = match &self.process {
                Some(process) => process.ends_within(left()),
                None => Qmp::connect(&self.path, self.limit.min(PAUSE)).is_err_and(|error| is_nobody(&error)),
            };
            if exited && !self.regions.look().mapped {
                return true;
            }
            if left().is_zero() {
                return false;
            }
            sleep(PAUSE.min(left()));
        }
    }

    /// Ends a QEMU that must not run the guest. Whether it is gone for certain.
    pub(super) fn end(&mut self, limit: Duration) -> bool {
        // It may have ended, or close the connection without a reply.
        let _ = self.once(|qmp| Ok(qmp.execute("quit", serde_json::json!({}))?));
        if self.is_gone_within(limit) {
            return true;
        }
        // It waits for a page that does not come, for example.
        if let Some(process) = &self.process {
            process.kill();
        }
        self.is_gone_within(limit)
    }
}

/// Whether QEMU has not answered yet.
fn is_silence(error: &vmem_qmp::Error) -> bool {
    matches!(error, vmem_qmp::Error::TimedOut { .. })
}

/// Whether this connection is over.
fn is_end(error: &vmem_qmp::Error) -> bool {
    matches!(
        error,
        vmem_qmp::Error::Closed | vmem_qmp::Error::Io(_) | vmem_qmp::Error::Connect { .. }
    )
}

/// Whether nobody listens at a socket.
fn is_nobody(error: &vmem_qmp::Error) -> bool {
    let vmem_qmp::Error::Connect { source, .. } = error else {
        return false;
    };
    matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}
