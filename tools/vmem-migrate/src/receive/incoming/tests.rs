// SPDX-License-Identifier: GPL-2.0
//! What becomes of a guest when a process dies or fails while the ownership of the guest changes.

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
        self.incoming.run(&mut listener(), &Report::new(true));
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

fn cli(scene: &Path, rest: &[&str]) -> crate::options::cli::Cli {
    use clap::Parser;
    let state = scene.to_str().expect("a path");
    let words = ["vmemctl", "--state", state, "receive", "--qmp", "/nobody/qmp"];
    crate::options::cli::Cli::parse_from(words.iter().chain(rest))
}

/// Runs `receive --resume` for a guest whose QEMU has ended. `file` is created in the state directory.
fn resumed(phase: Phase, file: &str) -> (Result<Resumed, Error>, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let state_dir = StateDir::new(directory.path(), "in", "guest0").expect("a state directory");
    state_dir.write(&record(phase, "/nobody/qmp".into())).expect("a record");
    std::fs::write(state_dir.path(file), "").expect("a file");
    drop(state_dir);
    let cli = cli(directory.path(), &["--resume"]);
    let crate::options::cli::Command::Receive(args) = &cli.command else {
        panic!("not receive")
    };
    let security = Security::new(&cli.common).expect("loopback");
    let listener = security.listen(([127, 0, 0, 1], 0).into()).expect("a port");
    let listener = Listener::open(listener, security).expect("a listener");
    (
        IncomingMigration::resume(&cli.common, args, &listener, &Report::new(true), &Signals::default()),
        directory,
    )
}

#[test]
fn resume_without_qemu_sends_failed_or_gone_by_phase() {
    for phase in [Phase::Prepared, Phase::Committed, Phase::Failed] {
        let (left, _directory) = resumed(phase, "lock");
        let Ok(Resumed::Over(_, state_dir, FromDestination::Failed { .. })) = left else {
            panic!("{phase:?}")
        };
        let record: Incoming = state_dir.read().expect("a record").expect("a record");
        assert_eq!(record.phase, Phase::Failed, "it is said again after another death");
    }
    for phase in [Phase::Starting, Phase::Running] {
        let (left, _directory) = resumed(phase, "lock");
        assert!(
            matches!(left, Ok(Resumed::Over(_, _, FromDestination::Gone { .. }))),
            "{phase:?}"
        );
    }
}

#[test]
fn resume_is_refused_if_the_source_has_other_memory() {
    let (left, _directory) = resumed(Phase::Running, "other-memory");
    assert!(matches!(left, Err(Error::Lost(_))));
}

#[test]
fn offer_is_refused_if_its_guest_has_a_record() {
    let directory = tempfile::tempdir().expect("a directory");
    let state_dir = StateDir::new(directory.path(), "in", "guest0").expect("a state directory");
    state_dir.write(&record(Phase::Running, "/run/q".into())).expect("a record");
    drop(state_dir);
    let offer = Offer {
        session: String::new(),
        guest: "guest0".to_owned(),
        key: "guest0".into(),
        memory: Vec::new(),
        source: "127.0.0.1:1".to_owned(),
        release: false,
    };
    let error = new_place(&cli(directory.path(), &[]).common, &offer).expect_err("a refusal");
    assert!(error.to_string().contains("--resume"), "{error}");
    let record = StateDir::new(directory.path(), "in", "guest0").and_then(|state_dir| state_dir.read::<Incoming>());
    assert_eq!(record.expect("a record").map(|record| record.phase), Some(Phase::Running));
}

#[test]
fn resume_is_refused_if_two_guests_have_the_socket() {
    let directory = tempfile::tempdir().expect("a directory");
    for guest in ["a", "b"] {
        let state_dir = StateDir::new(directory.path(), "in", guest).expect("a state directory");
        state_dir
            .write(&record(Phase::Running, "/nobody/qmp".into()))
            .expect("a record");
    }
    let cli = cli(directory.path(), &["--resume"]);
    let crate::options::cli::Command::Receive(args) = &cli.command else {
        panic!("not receive")
    };
    assert!(resume::recorded(&cli.common, args).is_err_and(|error| error.to_string().contains("several")));
}

/// Adds a present page at intervals, until this is dropped.
fn pages_come(present: &Arc<AtomicU64>) -> impl Drop + use<> {
    struct Trickle(Arc<AtomicU64>);
    impl Drop for Trickle {
        fn drop(&mut self) {
            self.0.store(1, Ordering::SeqCst);
        }
    }
    let over = Arc::new(AtomicU64::new(0));
    let (seen, present) = (Arc::clone(&over), Arc::clone(present));
    std::thread::spawn(move || {
        while seen.load(Ordering::SeqCst) == 0 {
            present.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(COMMAND);
        }
    });
    Trickle(over)
}

/// Unblocks the main loop after a time in which QEMU would have been given up if no page had arrived.
fn unblock_late(qemu: &fake::Qemu) {
    let qemu = qemu.clone();
    std::thread::spawn(move || {
        std::thread::sleep(SILENCE * 2);
        qemu.state().blocked = false;
    });
}

#[test]
fn late_commands_are_awaited_while_pages_arrive() {
    for command in ["query-migrate", "query-status", "cont"] {
        let mut scene = scene(Phase::Committed, "paused", "completed");
        scene.qemu.state().blocks_at = command;
        let pages = pages_come(&scene.present);
        unblock_late(&scene.qemu);
        assert_eq!(scene.finish(), State::Running);
        drop(pages);
        assert_eq!(scene.noted(), Phase::Running, "{command}");
        assert_eq!(scene.qemu.state().status, "running", "{command}");
    }
}

#[test]
fn silent_qemu_is_left_alive_if_no_page_arrives() {
    let mut scene = scene(Phase::Committed, "paused", "completed");
    scene.qemu.state().blocks_at = "cont";
    let ended = scene.finish();
    assert_eq!(ended, State::Left);
    assert_eq!(scene.noted(), Phase::Starting);
    assert!(scene.qemu.lives());
}

#[test]
fn closed_monitor_is_reconnected_while_qemu_lives() {
    for command in ["query-migrate", "query-status", "cont"] {
        let mut scene = scene(Phase::Committed, "paused", "completed");
        scene.qemu.state().hangs_up_at = command;
        assert_eq!(scene.finish(), State::Running);
        assert_eq!(scene.qemu.state().status, "running", "{command}");
    }
}

#[test]
fn qemu_without_socket_counts_as_alive() {
    for (phase, command) in [
        (Phase::Committed, "query-migrate"),
        (Phase::Committed, "query-status"),
        (Phase::Committed, "cont"),
        (Phase::Starting, "query-migrate"),
    ] {
        let mut scene = scene(phase, "paused", "completed");
        scene.qemu.state().leaves_at = command;
        let ended = scene.finish();
        assert_eq!(ended, State::Left, "{phase:?} {command}");
        assert!(scene.qemu.lives());
    }
}

#[test]
fn abort_kills_a_blocked_qemu() {
    let mut scene = scene(Phase::Prepared, "inmigrate", "active");
    scene.qemu.state().blocked = true;
    let qemu = scene.qemu.clone();
    let began = Instant::now();
    assert_eq!(scene.after(Event::Abort), State::Refused);
    assert!(!qemu.lives(), "it could be started later");
    assert!(began.elapsed() < 3 * TIMEOUT);
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

/// The main loop of this QEMU waits for a page until a daemon is attached, as after the deaths of `receive` and its vmemd.
#[test]
fn resume_starts_vmemd_before_it_waits_for_qemu() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("qmp");
    let qemu = fake::Qemu::start(&path, "running", "completed");
    qemu.state().blocked = true;
    let state_dir = StateDir::new(directory.path(), "in", "guest0").expect("a state directory");
    let attached = Arc::new(Mutex::new(false));
    let look = {
        let (qemu, attached) = (qemu.clone(), Arc::clone(&attached));
        move || regions::State {
            exist: true,
            mapped: qemu.lives(),
            plain: false,
            attached: *attached.lock().expect("no panic"),
            present: 0,
        }
    };
    let regions = Regions::fake(look);
    let daemon = {
        let qemu = qemu.clone();
        move || {
            *attached.lock().expect("no panic") = true;
            qemu.state().blocked = false;
        }
    };
    let pages = pages_of(regions.clone(), daemon);
    let monitor = monitor_of(&qemu, &path, regions);
    let record = record(Phase::Running, path);
    let report = Report::new(true);
    let mut incoming = IncomingMigration::resume_with(pages, monitor, state_dir, record, &Signals::default(), &report)
        .unwrap_or_else(|failure| panic!("{failure}"));
    incoming.run(&mut listener(), &report);
    assert_eq!(incoming.owner.state(), State::Running);
}
