// SPDX-License-Identifier: GPL-2.0-or-later
//! What becomes of a guest when a process dies or fails while the ownership of the guest changes.

mod previous;
mod resume;
mod silence;
mod unread;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tempfile::TempDir;
use vmem_qemu::Process;

use crate::destination::Event;

use super::*;
use crate::daemon::DaemonError;
use crate::error::Error;
use crate::fake;
use crate::message::Backend;
use crate::receive::regions;
use crate::supervisor::Initial;

/// How long one command may take, and how long QEMU may be silent while no page arrives.
const COMMAND: Duration = Duration::from_millis(200);
const SILENCE: Duration = Duration::from_secs(3);

/// A guest on its way to a fake QEMU, with a state directory of its own.
struct Scene {
    directory: TempDir,
    qemu: fake::Qemu,
    /// Pages that are present.
    present: Arc<AtomicU64>,
    incoming: IncomingMigration,
}

fn record(phase: Phase, qmp: PathBuf) -> Incoming {
    Incoming {
        session: "0123456789abcdef0123456789abcdef".to_owned(),
        guest: "guest0".to_owned(),
        phase,
        qmp,
        name: "guest".to_owned(),
        memory: vec![Backend {
            id: "ram".to_owned(),
            bytes: 4096,
            export: "ram.0.0123456789abcdef".to_owned(),
        }],
        regions: vec!["guest0.ram".to_owned()],
        region_ids: Vec::new(),
        qemu: None,
        vmemd: Vec::new(),
        run: true,
        settings: None,
        reason: None,
    }
}

/// Regions that this QEMU maps as long as it lives, and that a daemon serves.
fn regions_of(qemu: &fake::Qemu, present: &Arc<AtomicU64>) -> Regions {
    let (qemu, present) = (qemu.clone(), Arc::clone(present));
    Regions::fake(move || regions::State {
        exist: true,
        mapped: qemu.lives(),
        plain: false,
        attached: true,
        present: present.load(Ordering::SeqCst),
    })
}

/// A page fetcher whose vmemd cannot be started. `daemon` is called at each attempt.
fn pages_of(regions: Regions, daemon: impl Fn() + Send + 'static) -> PageFetcher {
    let start = move || {
        daemon();
        Err(DaemonError::TimedOut(Duration::ZERO))
    };
    PageFetcher::supervise(start, regions, LossPolicy::Retry, Initial::Missing, true).expect("a thread")
}

fn monitor_of(qemu: &fake::Qemu, path: &Path, regions: Regions) -> Monitor {
    let process = QemuProcess::from(Process::open(qemu.pid()).expect("a process"));
    Monitor::new(path.to_owned(), None, Some(process), regions, COMMAND).with_patience(SILENCE)
}

fn scene(phase: Phase, status: &'static str, migration: &'static str) -> Scene {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("qmp");
    let qemu = fake::Qemu::start(&path, status, migration);
    let state_dir = StateDir::new(directory.path(), "in", "guest0").expect("a state directory");
    let record = record(phase, path.clone());
    state_dir.write(&record).expect("a record");
    let present = Arc::new(AtomicU64::new(0));
    let regions = regions_of(&qemu, &present);
    let (state, due) = crate::destination::resume(phase, true);
    let incoming = IncomingMigration {
        owner: Owner::new(state),
        due,
        channel: None,
        pages: pages_of(regions.clone(), || ()),
        monitor: monitor_of(&qemu, &path, regions),
        state: None,
        state_dir,
        record,
        qemu: Qemu::existing(),
        relay: None,
        fetching: Fetching::default(),
        resumed: false,
        is_to_be_started: false,
        cause: None,
        signals: Signals::default(),
        _regions: Vec::new(),
    };
    Scene {
        directory,
        qemu,
        present,
        incoming,
    }
}

impl Scene {
    /// Runs from the recorded phase. Returns the last state.
    fn finish(&mut self) -> State {
        self.finish_on(&mut listener())
    }

    /// As [`finish`](Self::finish), with the connections of `listener`.
    fn finish_on(&mut self, listener: &mut Listener) -> State {
        self.incoming.run(listener, &Report::new(true));
        self.incoming.owner.state()
    }

    /// Runs from `Prepared`, with the source connected and `event` as the first event. Returns the last state.
    fn after(&mut self, event: Event) -> State {
        self.incoming.owner = Owner::new(State::Prepared);
        self.incoming.run_after(Some(event), &mut listener(), &Report::new(true));
        self.incoming.owner.state()
    }

    fn noted(&self) -> Phase {
        let record: Option<Incoming> = self.incoming.state_dir.read().expect("a record");
        record.expect("a record").phase
    }
}

#[test]
fn committed_guest_runs() {
    let mut scene = scene(Phase::Committed, "paused", "completed");
    assert_eq!(scene.finish(), State::Running);
    assert_eq!(scene.noted(), Phase::Running);
    assert_eq!(scene.qemu.state().status, "running");
}

#[test]
fn guest_that_was_paused_at_the_source_stays_paused() {
    let mut scene = scene(Phase::Committed, "paused", "completed");
    scene.incoming.record.run = false;
    assert_eq!(scene.finish(), State::Running);
    assert_eq!(scene.noted(), Phase::Running);
    assert!(!scene.qemu.has_heard("cont"));
}

#[test]
fn resume_does_not_start_a_guest_that_was_recorded_as_running() {
    let mut scene = scene(Phase::Running, "paused", "completed");
    assert_eq!(scene.finish(), State::Running);
    assert!(!scene.qemu.has_heard("cont"), "somebody has paused it");
}

#[test]
fn guest_is_gone_if_qemu_dies_during_cont() {
    let mut scene = scene(Phase::Committed, "paused", "completed");
    scene.qemu.state().dies_of = "cont";
    let ended = scene.finish();
    assert_eq!(ended, State::Gone);
    assert_eq!(scene.noted(), Phase::Starting);
}

#[test]
fn resumed_start_never_ends_in_failed() {
    for refuses in ["", "cont"] {
        let mut scene = scene(Phase::Starting, "paused", "completed");
        scene.qemu.state().refuses = refuses;
        scene.qemu.state().dies_of = if refuses.is_empty() { "query-migrate" } else { "" };
        let ended = scene.finish();
        assert!(matches!(ended, State::Gone | State::Left), "{ended:?}");
        assert!(!scene.qemu.has_heard("quit"));
    }
}

#[test]
fn guest_is_failed_if_qemu_dies_before_cont() {
    for command in ["query-migrate", "query-status"] {
        let mut scene = scene(Phase::Committed, "paused", "completed");
        scene.qemu.state().dies_of = command;
        let ended = scene.finish();
        assert_eq!(ended, State::Failed, "{command}");
        assert_eq!(scene.noted(), Phase::Failed, "{command}");
    }
}

#[test]
fn refused_cont_fails_the_guest_and_ends_qemu() {
    let mut scene = scene(Phase::Committed, "paused", "completed");
    scene.qemu.state().refuses = "cont";
    let ended = scene.finish();
    assert_eq!(ended, State::Failed);
    assert!(scene.qemu.has_heard("quit"), "nobody can start it later");
    let record: Incoming = scene.incoming.state_dir.read().expect("a record").expect("a record");
    let reason = record.reason.unwrap_or_default();
    assert!(record.phase == Phase::Failed && reason.contains("not now"), "{reason}");
}

#[test]
fn guest_is_failed_if_its_state_cannot_be_loaded() {
    let mut scene = scene(Phase::Committed, "inmigrate", "failed");
    let ended = scene.finish();
    assert_eq!(ended, State::Failed);
    assert!(scene.qemu.has_heard("quit"));
}

#[test]
fn guest_that_runs_already_is_left_if_loading_failed() {
    let mut scene = scene(Phase::Committed, "running", "failed");
    let ended = scene.finish();
    assert_eq!(ended, State::Left);
    assert!(!scene.qemu.has_heard("quit"));
}

#[test]
fn abort_ends_qemu_and_removes_the_record() {
    let mut scene = scene(Phase::Prepared, "paused", "completed");
    assert_eq!(scene.after(Event::Abort), State::Refused);
    assert!(scene.qemu.has_heard("quit"));
    assert!(!scene.directory.path().join("in.guest0/record").exists());
}

/// Reports trouble before COMMIT. Returns the last state.
fn judged(resumed: bool, migration: &'static str, dies: bool) -> State {
    let mut scene = scene(Phase::Prepared, "paused", migration);
    scene.incoming.resumed = resumed;
    scene.qemu.state().dies_of = if dies { "query-migrate" } else { "" };
    scene.after(Event::Trouble)
}

#[test]
fn resumed_guest_is_failed_instead_of_refused_if_its_state_may_be_loaded() {
    assert_eq!(judged(false, "active", false), State::Refused);
    for state in ["none", "setup"] {
        assert_eq!(judged(true, state, false), State::Refused, "{state}");
    }
    for state in ["active", "completed", "failed"] {
        assert_eq!(judged(true, state, false), State::Failed, "{state}");
    }
    assert_eq!(judged(true, "completed", true), State::Failed);
}

#[test]
fn signal_before_commit_refuses_the_guest() {
    let mut scene = scene(Phase::Prepared, "inmigrate", "active");
    let (ours, _theirs) = UnixStream::pair().expect("sockets");
    let (socket, carrier) = (ours.try_clone().expect("a socket").into(), ours.into());
    scene.incoming.channel = Some(Channel::new(socket, &carrier).expect("a channel"));
    scene.incoming.owner = Owner::new(State::Prepared);
    scene.incoming.signals.raise();
    assert_eq!(scene.finish(), State::Refused);
    assert!(scene.incoming.cause().is_signal());
}

#[test]
fn signal_leaves_a_guest_that_this_host_may_own() {
    for phase in [Phase::Prepared, Phase::Committed] {
        let mut scene = scene(phase, "paused", "completed");
        scene.incoming.resumed = true;
        scene.qemu.state().blocked = phase == Phase::Committed;
        scene.incoming.signals.raise();
        scene.incoming.monitor = scene.incoming.monitor.with_signals(&scene.incoming.signals);
        assert_eq!(scene.finish(), State::Left);
        assert!(scene.incoming.cause().is_signal());
        assert!(scene.qemu.lives() && !scene.qemu.has_heard("quit"), "{phase:?}");
    }
}

fn listener() -> Listener {
    let listener = Security::Loopback.listen(([127, 0, 0, 1], 0).into()).expect("a port");
    Listener::open(listener, Security::Loopback).expect("a listener")
}
