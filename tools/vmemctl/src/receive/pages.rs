// SPDX-License-Identifier: GPL-2.0
//! The destination's vmemd, kept alive.

use std::fmt::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmem::{Access, Control, MapHandle, PageRange};
use vmem_cli::chain;
use vmem_qmp::Qmp;

use super::GLANCE;
use crate::cli::{OnLost, Receive};
use crate::daemon::{Daemon, DaemonError, Says, event};
use crate::failure::{Failure, Trouble};
use crate::record::Place;
use crate::report::Report;

/// Between two tries to reach a source that is gone.
const PAUSE: Duration = Duration::from_secs(2);

/// How long vmemd may take to reach the source and the regions.
const PATIENCE: Duration = Duration::from_secs(60);

/// The file that says that the guest was paused because its source is gone.
const PAUSED: &str = "paused";

/// vmemd's exit codes (vmemd(8)).
const SOURCE_LOST: i32 = 2;
const UNREADABLE: i32 = 4;

/// What a look at the pages gives.
pub(super) enum Outlook {
    Same,
    /// vmemd says something.
    Line(Value),
    /// It does not go on by itself.
    Trouble(String),
    /// All pages are here, and plain memory.
    Complete(Value),
}

/// The pages of a guest on their way.
pub(super) struct Pages {
    daemon: Option<Daemon>,
    /// What starts one that goes on.
    arguments: Vec<String>,
    regions: Vec<String>,
    place: Place,
    /// What the latest one said last.
    summary: Option<Value>,
    /// The next try, if there is no daemon.
    next: Instant,
    /// The guest was paused because its source is gone.
    paused: bool,
}

impl Pages {
    /// Starts a vmemd that waits for the word to start.
    pub(super) fn hold(arguments: &[String], regions: Vec<String>, place: &Place) -> Result<Self, DaemonError> {
        let mut pages = Self::absent(arguments, regions, place);
        let mut all = arguments.to_vec();
        all.push("--hold".to_owned());
        let mut daemon = Daemon::start(&all, place)?;
        if let Err(error) = daemon.wait_for(PATIENCE, |line| event(line, "holding")) {
            daemon.stop();
            return Err(error);
        }
        pages.daemon = Some(daemon);
        Ok(pages)
    }

    /// Nothing is started before it is looked at.
    pub(super) fn absent(arguments: &[String], regions: Vec<String>, place: &Place) -> Self {
        Self {
            daemon: None,
            arguments: arguments.to_vec(),
            regions,
            place: place.clone(),
            summary: None,
            next: Instant::now(),
            paused: place.path(PAUSED).exists(),
        }
    }

    /// The guest has stopped at the source.
    pub(super) fn start(&mut self) {
        self.order("start");
    }

    /// The guest runs here: the source may give back what has come.
    pub(super) fn release(&mut self) {
        self.order("release");
        if let Some(daemon) = &mut self.daemon {
            daemon.no_more_orders();
        }
    }

    fn order(&mut self, word: &str) {
        if let Some(daemon) = &mut self.daemon {
            daemon.order(word);
        }
    }

    /// The guest does not come.
    pub(super) fn stop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.stop();
        }
    }

    /// Whether vmemd has ended, and why. For the time in which it must not be started again.
    pub(super) fn check(&mut self) -> Result<(), DaemonError> {
        while let Some(daemon) = &mut self.daemon {
            match daemon.hear(Duration::ZERO) {
                Some(Says::Ended(status)) => return Err(daemon.ended(status)),
                Some(Says::Line(_)) => {}
                None => break,
            }
        }
        Ok(())
    }

    /// Looks at vmemd for a moment, and starts it again if it has died.
    pub(super) fn look(&mut self, args: &Receive, control: &Control, qmp: &mut Qmp, report: &Report) -> Result<Outlook, Failure> {
        let Some(daemon) = &mut self.daemon else {
            std::thread::sleep(GLANCE.min(self.next.saturating_duration_since(Instant::now())));
            if self.all_plain() {
                return Ok(Outlook::Complete(self.summary.take().unwrap_or(Value::Null)));
            }
            if Instant::now() >= self.next {
                let started = Daemon::start(&self.arguments, &self.place);
                self.daemon = Some(started.map_err(|error| Failure::Unfinished(error.into()))?);
            }
            return Ok(Outlook::Same);
        };
        match daemon.hear(GLANCE) {
            None => Ok(Outlook::Same),
            Some(Says::Line(line)) => {
                let Ok(line) = serde_json::from_str::<Value>(&line) else {
                    return Ok(Outlook::Same);
                };
                match line.get("event").and_then(Value::as_str) {
                    Some("end") => self.summary = Some(line.clone()),
                    Some("ready") => self.go_on(qmp, report),
                    _ => {}
                }
                Ok(Outlook::Line(line))
            }
            Some(Says::Ended(status)) => {
                let why = chain(&daemon.ended(status));
                self.daemon = None;
                self.ended(status, why, args, control, qmp)
            }
        }
    }

    fn ended(
        &mut self,
        status: ExitStatus,
        why: String,
        args: &Receive,
        control: &Control,
        qmp: &mut Qmp,
    ) -> Result<Outlook, Failure> {
        match (status.code(), status.signal()) {
            (Some(0), _) => Ok(Outlook::Complete(self.summary.take().unwrap_or(Value::Null))),
            (Some(UNREADABLE), _) => Err(Failure::Lost(Trouble::other(self.list_missing()))),
            (Some(SOURCE_LOST), _) => {
                let missing = self.list_missing();
                match args.on_lost {
                    OnLost::Sigbus => {
                        self.poison(control)?;
                        Err(Failure::Lost(Trouble::other(format!(
                            "{why}; {missing}; a touch of them is SIGBUS now"
                        ))))
                    }
                    OnLost::Wait => {
                        self.next = Instant::now() + PAUSE;
                        if self.paused {
                            return Ok(Outlook::Same);
                        }
                        self.paused = qmp.run("stop", json!({})).is_ok();
                        if self.paused {
                            // For whoever takes this up. If it cannot be noted, the guest stays paused then.
                            let _ = std::fs::write(self.place.path(PAUSED), "");
                        }
                        let paused = if self.paused {
                            "the guest is paused"
                        } else {
                            "the guest waits"
                        };
                        Ok(Outlook::Trouble(format!(
                            "{why}; {missing}; {paused} until the source is back"
                        )))
                    }
                }
            }
            (None, Some(_)) => {
                self.next = Instant::now();
                Ok(Outlook::Trouble(format!("{why}; started again")))
            }
            _ => Err(Failure::Unfinished(Trouble::other(why))),
        }
    }

    /// The source is there: a guest that was paused because it was not goes on.
    fn go_on(&mut self, qmp: &mut Qmp, report: &Report) {
        if std::mem::take(&mut self.paused) {
            let _ = std::fs::remove_file(self.place.path(PAUSED));
            match qmp.run("cont", json!({})) {
                Ok(_) => report.note("the source is back, and the guest goes on"),
                Err(error) => report.note(&format!("the guest stays paused: {}", chain(&error))),
            }
        }
    }

    /// Whether there is nothing left to do for a vmemd.
    fn all_plain(&self) -> bool {
        let is_plain = |name: &String| {
            let info = MapHandle::open(name, Access::ReadOnly).and_then(|handle| handle.info());
            info.is_ok_and(|info| info.plain)
        };
        self.regions.iter().all(is_plain)
    }

    /// Which pages are missing, in a file, and their number in words.
    fn list_missing(&self) -> String {
        let mut list = String::new();
        let mut count = 0;
        for name in &self.regions {
            let map = MapHandle::open(name, Access::ReadOnly).and_then(|handle| handle.present_map());
            match map {
                Ok(map) => {
                    for run in map.absent() {
                        count += run.count();
                        // Writing to a string does not fail.
                        let _ = writeln!(list, "{name} {} {}", run.first().get(), run.count());
                    }
                }
                Err(error) => return format!("what is missing cannot be read: {}", chain(&error)),
            }
        }
        let path = self.place.path("missing");
        match std::fs::write(&path, list) {
            Ok(()) => format!(
                "{count} pages are missing, listed in {} (region, first page, count)",
                path.display()
            ),
            Err(error) => format!("{count} pages are missing; {}: {error}", path.display()),
        }
    }

    /// Has every touch of a missing page be SIGBUS.
    fn poison(&self, control: &Control) -> Result<(), Failure> {
        for name in &self.regions {
            let failed = |error| Failure::Unfinished(Trouble::vmem(format!("cannot mark the missing pages of {name}"))(error));
            let region = control.attach(name).map_err(failed)?;
            let absent: Vec<PageRange> = region.present_map().map_err(failed)?.absent().collect();
            region.mark_unreadable(&absent).complete().map_err(failed)?;
        }
        Ok(())
    }
}
