// SPDX-License-Identifier: GPL-2.0-or-later
//! Supervision of fake vmemds.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use vmem_control::Duty;

use super::*;
use crate::daemon::end_leftovers;
use crate::daemon::fake::{said, shell};
use crate::record::StateDir;

const SESSION: &str = "0123456789abcdef";

const LONG: Duration = Duration::from_secs(20);

/// A program instead of vmemd. It is ready when it says `ready`.
struct Script {
    text: &'static str,
    state_dir: StateDir,
    patience: Duration,
    /// The program may not be started while this file does not exist.
    needs: Option<PathBuf>,
}

impl Supervised for Script {
    fn start(&self) -> Result<Daemon, DaemonError> {
        Daemon::spawn(Path::new("sh"), &shell(self.text), SESSION, &self.state_dir)
    }

    fn check(&self) -> Result<(), String> {
        match &self.needs {
            Some(path) if !path.exists() => Err("another file".to_owned()),
            _ => Ok(()),
        }
    }

    fn is_ready(&self, said: &DaemonEvent) -> bool {
        match said {
            DaemonEvent::Event(event) => matches!(event, DaemonReport::Listening { .. }),
            DaemonEvent::Status(status) => status.listening.is_some(),
            _ => false,
        }
    }

    fn patience(&self) -> Option<Duration> {
        Some(self.patience)
    }

    fn after(&self, code: Option<i32>) -> Restart {
        match code {
            Some(0) => Restart::Over,
            Some(2) => Restart::In(Duration::from_millis(10)),
            _ => Restart::BackOff,
        }
    }
}

fn script(text: &'static str) -> (TempDir, Script) {
    let directory = tempfile::tempdir().expect("a directory");
    let state_dir = StateDir::new(directory.path(), "out", "guest0").expect("a state directory");
    let script = Script {
        text,
        state_dir,
        patience: LONG,
        needs: None,
    };
    (directory, script)
}

fn supervise(script: Script) -> Supervisor {
    Supervisor::new(script, Initial::Missing).expect("a thread")
}

/// The events up to the next end, why the program has ended, and the pause.
fn until_end(supervisor: &Supervisor) -> (Vec<DaemonReport>, String, Option<Duration>) {
    let mut events = Vec::new();
    loop {
        match supervisor.recv(LONG).expect("an event") {
            Event::DaemonReport(event) => events.push(event),
            Event::Ended { why, again, .. } => return (events, why, again),
            _ => {}
        }
    }
}

fn wait_ready(supervisor: &Supervisor) {
    while !matches!(supervisor.recv(LONG).expect("an event"), Event::Ready) {}
}

#[test]
fn daemon_that_dies_when_ready_is_restarted_with_growing_pauses() {
    let (_directory, script) = script("ready; end 3");
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
fn daemon_whose_work_is_done_is_not_restarted() {
    let (_directory, script) = script("say all; end 0");
    let supervisor = supervise(script);
    let (events, why, again) = until_end(&supervisor);
    assert!(events.contains(&said("all")) && again.is_none(), "{why}: {events:?}");
    assert!(!supervisor.leave(), "there is none");
}

#[test]
fn unread_events_are_bounded() {
    let (_directory, script) = script("many 100000; end 0");
    let supervisor = supervise(script);
    let until = Instant::now() + LONG;
    while !supervisor.thread.as_ref().expect("a thread").is_finished() && Instant::now() < until {
        thread::sleep(Duration::from_millis(10));
    }
    let (events, _, again) = until_end(&supervisor);
    assert_eq!(again, None, "how it has ended is not left out");
    assert!(events.len() < 2000, "{}", events.len());
    assert!(matches!(events[0], DaemonReport::Dropped { .. }), "{:?}", events[0]);
    assert!(matches!(events.last(), Some(DaemonReport::End { .. })), "{:?}", events.last());
}

#[test]
fn failed_start_is_retried() {
    let (directory, mut script) = script("ready; serve");
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
fn slow_start_is_ended_and_retried() {
    let (_directory, mut script) = script("serve");
    script.patience = Duration::from_millis(100);
    let supervisor = supervise(script);
    let (_, why, again) = until_end(&supervisor);
    assert!(why.contains("not ready"), "{why}");
    assert_eq!(again, Some(Duration::ZERO));
    supervisor.stop();
}

#[test]
fn each_new_daemon_gets_the_lasting_orders() {
    let (_directory, script) = script("ready; order; end 2");
    let supervisor = supervise(script);
    wait_ready(&supervisor);
    supervisor.order(Request::Release);
    for _ in 0..2 {
        assert!(until_end(&supervisor).0.contains(&said("release")));
    }
    supervisor.stop();
}

/// Starts a program, and waits until it is ready.
fn started(script: &Script) -> Daemon {
    let mut daemon = script.start().expect("a process");
    let is_ready = |said: &DaemonEvent| script.is_ready(said).then_some(());
    daemon.wait_for(LONG, is_ready).expect("it is ready");
    daemon
}

/// Takes over the program that is left.
fn left(state_dir: &StateDir) -> Daemon {
    Daemon::take_over(SESSION, Duty::Serve, state_dir)
        .expect("it can be found out")
        .expect("it is left")
}

#[test]
fn left_daemon_lives_and_the_next_supervisor_takes_it_over() {
    let (_directory, script) = script("ready; order; serve");
    let again = Script {
        state_dir: script.state_dir.clone(),
        needs: None,
        ..script
    };
    let state_dir = script.state_dir.clone();
    let daemon = started(&script);
    let supervisor = Supervisor::new(script, Initial::Running(daemon)).expect("a thread");
    assert!(supervisor.leave());
    let number = left(&state_dir).held().first().number();
    let next = Supervisor::new(again, Initial::Running(left(&state_dir))).expect("a thread");
    next.order(Request::Release);
    loop {
        match next.recv(LONG).expect("an event") {
            Event::DaemonReport(event) if event == said("release") => break,
            Event::Ended { why, .. } => panic!("{why}"),
            _ => {}
        }
    }
    let process = vmem_process::Process::open(number).expect("no second one has followed it");
    process.signal(rustix::process::Signal::KILL);
    let (_, why, again) = until_end(&next);
    assert_eq!(again, Some(Duration::ZERO));
    assert!(why.contains(&format!("process {number}")), "{why}");
    wait_ready(&next);
    next.stop();
}

#[test]
fn leave_starts_a_daemon_if_there_is_none() {
    let (directory, mut script) = script("ready; serve");
    let needed = directory.path().join("memory");
    script.needs = Some(needed.clone());
    let state_dir = script.state_dir.clone();
    let supervisor = supervise(script);
    // The pause after these two failures is a second.
    until_end(&supervisor);
    until_end(&supervisor);
    fs::write(needed, "").expect("a file");
    assert!(supervisor.leave(), "it need not be waited for");
    let left = left(&state_dir);
    end_leftovers(&state_dir);
    assert!(left.held().wait(Duration::ZERO));
}

#[test]
fn daemon_that_has_died_unnoticed_is_not_left() {
    let (_directory, script) = script("ready; serve");
    let state_dir = script.state_dir.clone();
    let mut child = std::process::Command::new("true").spawn().expect("a process");
    let process = vmem_process::Process::of_child(&child).expect("a pidfd");
    assert!(process.wait(LONG));
    let (daemon, says) = Daemon::of_process(process);
    let supervisor = Supervisor::new(script, Initial::Running(daemon)).expect("a thread");
    let leaves = thread::spawn(move || supervisor.leave());
    // The conversation notices the end some time later.
    thread::sleep(Duration::from_millis(300));
    says.send(DaemonEvent::Ended(crate::daemon::Ended::default()));
    assert!(leaves.join().expect("no panic"), "another one is started");
    let left = left(&state_dir);
    end_leftovers(&state_dir);
    assert!(left.held().wait(Duration::ZERO));
    child.wait().expect("a child");
}

#[test]
fn daemon_whose_script_has_ended_is_left() {
    let (_directory, script) = script("");
    let mut child = std::process::Command::new("true").spawn().expect("a process");
    let process = vmem_process::Process::of_child(&child).expect("a pidfd");
    child.wait().expect("a child");
    let (daemon, _says) = Daemon::of_process(process);
    let supervisor = Supervisor::new(script, Initial::Running(daemon)).expect("a thread");
    let began = Instant::now();
    assert!(supervisor.leave(), "the vmemd behind it has the connection");
    assert!(began.elapsed() < SETTLING + LONG / 2);
}

#[test]
fn stop_ends_a_daemon_that_does_not_respond() {
    let (_directory, script) = script("ready; deaf");
    let daemon = started(&script);
    let number = daemon.held().first().number();
    let process = vmem_process::Process::open(number).expect("it lives");
    process.signal(rustix::process::Signal::STOP);
    let supervisor = Supervisor::new(script, Initial::Running(daemon)).expect("a thread");
    supervisor.stop();
    assert!(process.wait(Duration::ZERO));
}
