// SPDX-License-Identifier: GPL-2.0
//! The destination's vmemd, kept alive.

use std::fmt::Write;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmem::{Access, Control, MapHandle, PageRange};
use vmem_cli::chain;
use vmem_qmp::Qmp;

use super::GLANCE;
use crate::back_off::BackOff;
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

/// The file that says that the source came back with other memory.
const OTHER_MEMORY: &str = "other-memory";

/// What the end of a vmemd means (vmemd(8)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Complete,
    SourceLost,
    Unreadable,
    OtherMemory,
    /// Another one may do better: it was killed, or something failed that may not fail again.
    Again,
}

impl End {
    fn of(status: ExitStatus) -> Self {
        match status.code() {
            Some(0) => Self::Complete,
            Some(2) => Self::SourceLost,
            Some(4) => Self::Unreadable,
            Some(7) => Self::OtherMemory,
            _ => Self::Again,
        }
    }
}

/// Whether the guest's source has come back with other memory: what is missing here is lost.
pub(super) fn is_lost(place: &Place) -> bool {
    place.path(OTHER_MEMORY).exists()
}

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
    /// When the latest one was started.
    started: Instant,
    back_off: BackOff,
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
            started: Instant::now(),
            back_off: BackOff::default(),
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
                self.started = Instant::now();
                match Daemon::start(&self.arguments, &self.place) {
                    Ok(daemon) => self.daemon = Some(daemon),
                    Err(error) => return Ok(self.again(&chain(&error))),
                }
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
        match End::of(status) {
            End::Complete => Ok(Outlook::Complete(self.summary.take().unwrap_or(Value::Null))),
            End::Unreadable => Err(Failure::Lost(Trouble::other(self.list_missing()))),
            End::Again => Ok(self.again(&why)),
            End::OtherMemory => self.other_memory(&why, args, control, qmp),
            End::SourceLost if args.on_lost == OnLost::Sigbus => self.sigbus(&why, control),
            End::SourceLost => {
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
                let missing = self.list_missing();
                Ok(Outlook::Trouble(format!(
                    "{why}; {missing}; {paused} until the source is back"
                )))
            }
        }
    }

    /// Another vmemd is started, sooner or later: the guest needs one.
    fn again(&mut self, why: &str) -> Outlook {
        let pause = self.back_off.pause(self.started.elapsed());
        self.next = Instant::now() + pause;
        Outlook::Trouble(match pause {
            Duration::ZERO => format!("{why}; started again"),
            pause => format!("{why}; started again in {} s", pause.as_secs()),
        })
    }

    /// The memory that the guest had is not at the source any more. A vmemd that is started now would not know that, and would mix the two.
    fn other_memory(&mut self, why: &str, args: &Receive, control: &Control, qmp: &mut Qmp) -> Result<Outlook, Failure> {
        let noted = std::fs::write(self.place.path(OTHER_MEMORY), "");
        noted.map_err(|error| Failure::Lost(Trouble::io(why)(error)))?;
        if args.on_lost == OnLost::Sigbus {
            return self.sigbus(why, control);
        }
        let paused = match qmp.run("stop", json!({})) {
            Ok(_) => "the guest is paused for good",
            Err(_) => "the guest waits for good",
        };
        let missing = self.list_missing();
        Err(Failure::Lost(Trouble::other(format!("{why}; {missing}; {paused}"))))
    }

    /// The missing pages are given up.
    fn sigbus(&self, why: &str, control: &Control) -> Result<Outlook, Failure> {
        let missing = self.list_missing();
        self.poison(control)?;
        let what = format!("{why}; {missing}; a touch of them is SIGBUS now");
        Err(Failure::Lost(Trouble::other(what)))
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::back_off::LONGEST_PAUSE;

    #[test]
    fn only_what_is_certain_is_not_tried_again() {
        let exited = |code: i32| End::of(ExitStatus::from_raw(code << 8));
        assert_eq!(
            [0, 2, 4, 7].map(exited),
            [End::Complete, End::SourceLost, End::Unreadable, End::OtherMemory]
        );
        for code in [1, 3, 5, 6, 101] {
            assert_eq!(exited(code), End::Again, "{code}");
        }
        assert_eq!(End::of(ExitStatus::from_raw(9)), End::Again, "killed");
    }

    #[test]
    fn one_that_is_not_there_is_tried_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = Place::new(directory.path(), "in", "guest0").expect("a place");
        let mut pages = Pages::absent(&[], Vec::new(), &place);
        for expected in [
            "no vmemd; started again",
            "no vmemd; started again in 1 s",
            "no vmemd; started again in 2 s",
        ] {
            let Outlook::Trouble(text) = pages.again("no vmemd") else {
                panic!("no trouble")
            };
            assert_eq!(text, expected);
        }
        pages.started = Instant::now().checked_sub(LONGEST_PAUSE * 2).expect("a time");
        assert!(matches!(pages.again("killed"), Outlook::Trouble(text) if text == "killed; started again"));
    }
}
