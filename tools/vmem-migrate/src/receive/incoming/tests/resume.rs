// SPDX-License-Identifier: GPL-2.0-or-later
//! What `receive --resume` makes of a recorded guest, and of an offer of such a guest.

use super::*;
use crate::receive::incoming::resume::recorded;
use crate::receive::offer::Transport;

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
    let mut listener = Listener::open(listener, security).expect("a listener");
    (
        IncomingMigration::resume(&cli.common, args, &mut listener, &Report::new(true), &Signals::default()),
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
        fetching: Fetching::default(),
        transport: Transport::default(),
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
    assert!(recorded(&cli.common, args).is_err_and(|error| error.to_string().contains("several")));
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
