// SPDX-License-Identifier: GPL-2.0
//! Supervision of scripts that are no vmemd.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::record::Place;

const LONG: Duration = Duration::from_secs(20);

/// A shell script in place of vmemd, whose `ready` is its word that it is.
struct Script {
    text: &'static str,
    place: Place,
    patience: Duration,
    /// It may not be started while this file is not there.
    needs: Option<PathBuf>,
}

impl Work for Script {
    fn start(&self) -> Result<Daemon, DaemonError> {
        let arguments = ["-c", self.text].map(str::to_owned);
        Daemon::spawn(Path::new("sh"), &arguments, &self.place)
    }

    fn check(&self) -> Result<(), String> {
        match &self.needs {
            Some(path) if !path.exists() => Err("another file".to_owned()),
            _ => Ok(()),
        }
    }

    fn is_ready(&self, line: &str) -> bool {
        line == "ready"
    }

    fn patience(&self) -> Option<Duration> {
        Some(self.patience)
    }

    fn after(&self, status: Option<ExitStatus>) -> Next {
        match status.and_then(|status| status.code()) {
            Some(0) => Next::Over,
            Some(2) => Next::In(Duration::from_millis(10)),
            _ => Next::BackOff,
        }
    }
}

fn script(text: &'static str) -> (TempDir, Script) {
    let directory = tempfile::tempdir().expect("a directory");
    let place = Place::new(directory.path(), "out", "guest0").expect("a place");
    let script = Script {
        text,
        place,
        patience: LONG,
        needs: None,
    };
    (directory, script)
}

fn supervise(script: Script) -> Supervisor {
    Supervisor::new(script, First::Missing).expect("a thread")
}

/// What follows up to the next end: the lines, why it has ended, and the pause.
fn until_end(supervisor: &Supervisor) -> (Vec<String>, String, Option<Duration>) {
    let mut lines = Vec::new();
    loop {
        match supervisor.hear(LONG).expect("an event") {
            Event::Line(line) => lines.push(line),
            Event::Ready => {}
            Event::Ended { why, again, .. } => return (lines, why, again),
        }
    }
}

fn wait_ready(supervisor: &Supervisor) {
    while !matches!(supervisor.hear(LONG).expect("an event"), Event::Ready) {}
}

#[test]
fn one_that_is_ready_and_dies_is_no_storm() {
    let (_directory, script) = script("echo ready; exit 3");
    let supervisor = supervise(script);
    let began = Instant::now();
    let pauses: Vec<_> = (0..4)
        .map(|_| until_end(&supervisor).2.map(|pause| pause.as_secs()))
        .collect();
    assert_eq!(pauses, [Some(0), Some(1), Some(2), Some(4)]);
    assert!(began.elapsed() >= Duration::from_secs(3), "and they are kept");
    supervisor.stop();
}

#[test]
fn one_whose_work_is_done_is_not_started_again() {
    let (_directory, script) = script("echo all; exit 0");
    let supervisor = supervise(script);
    let (lines, why, again) = until_end(&supervisor);
    assert_eq!((lines, again), (vec!["all".to_owned()], None), "{why}");
    assert!(!supervisor.leave(), "there is none");
}

#[test]
fn lines_that_nobody_hears_for_long_are_bounded() {
    let (_directory, script) = script("seq 100000; exit 0");
    let supervisor = supervise(script);
    let until = Instant::now() + LONG;
    while !supervisor.thread.as_ref().expect("a thread").is_finished() && Instant::now() < until {
        thread::sleep(Duration::from_millis(10));
    }
    let (lines, _, again) = until_end(&supervisor);
    assert_eq!(again, None, "how it has ended is not left out");
    assert!(lines.len() < 2000, "{}", lines.len());
    assert!(lines[0].contains("dropped"), "{}", lines[0]);
    assert_eq!(lines.last().map(String::as_str), Some("100000"));
}

#[test]
fn failed_start_is_tried_again() {
    let (directory, mut script) = script("echo ready; exec sleep 1000");
    let needed = directory.path().join("memory");
    script.needs = Some(needed.clone());
    let supervisor = supervise(script);
    for expected in [Some(Duration::ZERO), Some(Duration::from_secs(1))] {
        let (_, why, again) = until_end(&supervisor);
        assert_eq!((why.as_str(), again), ("another file", expected));
    }
    fs::write(needed, "").expect("a file");
    wait_ready(&supervisor);
    supervisor.stop();
}

#[test]
fn slow_start_is_ended_and_tried_again() {
    let (_directory, mut script) = script("exec sleep 1000");
    script.patience = Duration::from_millis(100);
    let supervisor = supervise(script);
    let (_, why, again) = until_end(&supervisor);
    assert!(why.contains("not ready"), "{why}");
    assert_eq!(again, Some(Duration::ZERO));
    supervisor.stop();
}

#[test]
fn lasting_orders_are_told_to_each() {
    let (_directory, script) = script("echo ready; read word; echo $word; exit 2");
    let supervisor = supervise(script);
    wait_ready(&supervisor);
    supervisor.order("release");
    for _ in 0..2 {
        assert!(until_end(&supervisor).0.contains(&"release".to_owned()));
    }
    supervisor.stop();
}

/// One that is left by somebody, and its process.
fn left(script: &Script) -> (Daemon, Process) {
    let mut daemon = script.start().expect("a process");
    let number = daemon.wait_for(LONG, |line| line.parse().ok()).expect("a number");
    (daemon, Process::open(number).expect("it lives"))
}

#[test]
fn one_that_is_left_alone_lives_and_is_supervised_by_the_next() {
    let (_directory, script) = script("echo $$; echo ready; exec sleep 1000");
    let again = Script {
        place: script.place.clone(),
        needs: None,
        ..script
    };
    let (daemon, process) = left(&script);
    let supervisor = Supervisor::new(script, First::Running(daemon)).expect("a thread");
    assert!(supervisor.leave());
    assert!(!process.wait(Duration::ZERO));
    let next = Supervisor::new(again, First::Left(Process::open(process.number()).expect("it lives"))).expect("a thread");
    assert!(next.hear(Duration::from_millis(200)).is_none(), "no second one");
    process.signal(rustix::process::Signal::KILL);
    assert_eq!(until_end(&next).2, Some(Duration::ZERO));
    wait_ready(&next);
    next.stop();
}

#[test]
fn one_is_started_for_who_leaves_while_there_is_none() {
    let (directory, mut script) = script("echo ready; exec sleep 1000");
    let needed = directory.path().join("memory");
    script.needs = Some(needed.clone());
    let place = script.place.clone();
    let supervisor = supervise(script);
    // The pause after these two is a second.
    until_end(&supervisor);
    until_end(&supervisor);
    fs::write(needed, "").expect("a file");
    assert!(supervisor.leave(), "it need not be waited for");
    let left = crate::daemon::left_over(&place, None, crate::daemon::Duty::Serve);
    assert_eq!(left.len(), 1);
    left.iter().for_each(Process::end);
}

#[test]
fn stop_ends_one_that_does_not_hear() {
    let (_directory, script) = script("trap '' TERM; echo $$; while :; do sleep 0.1; done");
    let (daemon, process) = left(&script);
    let supervisor = Supervisor::new(script, First::Running(daemon)).expect("a thread");
    supervisor.stop();
    assert!(process.wait(Duration::ZERO));
}
