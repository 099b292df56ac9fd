// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl recover` with a fake QEMU, and a destination that is a fake or gone.

use std::net::TcpListener;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;
use tempfile::TempDir;

use crate::Phase;

use super::*;
use crate::fake;
use crate::message::{FromDestination, FromSource, Purpose};
use crate::options::cli::{Cli, Command};

const LIMIT: Duration = Duration::from_secs(10);

/// The record of a guest that the destination owns.
fn record(qmp: &Path, to: String) -> Outgoing {
    Outgoing {
        session: "0123456789abcdef0123456789abcdef".to_owned(),
        guest: "guest".to_owned(),
        key: "guest".into(),
        phase: Phase::Committed,
        qmp: qmp.to_owned(),
        to,
        vmemd: Vec::new(),
        served: Vec::new(),
        run: true,
        settings: None,
    }
}

#[test]
fn page_events_before_running_are_not_taken_for_the_answer() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("qmp");
    let qemu = fake::Qemu::start(&path, "postmigrate", "completed");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let to = listener.local_addr().expect("an address").to_string();
    let destination = thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        let mut greeted = Security::Loopback.accept(stream).expect("a greeting");
        assert_eq!(greeted.purpose, Purpose::Recover);
        let incomplete = "the source is gone".to_owned();
        for message in [
            FromDestination::Welcome { version: 2 },
            FromDestination::Pages { line: json!({}) },
            FromDestination::Incomplete { reason: incomplete },
            FromDestination::Running,
            FromDestination::Complete { summary: json!({}) },
        ] {
            greeted.channel.send(&message).expect("room");
        }
        while greeted.channel.recv_within::<FromSource>(LIMIT).expect("a word") != FromSource::Heard {}
    });
    let state_dir = StateDir::new(directory.path(), "out", "guest").expect("a state directory");
    state_dir
        .write(&Outgoing {
            key: Key::of_guest(&mut fake::Qemu::connect(&path)).expect("a key"),
            ..record(&path, to)
        })
        .expect("a record");
    drop(state_dir);
    let state = directory.path().to_str().expect("a path");
    let cli = Cli::parse_from(["vmemctl", "--state", state, "recover"]);
    let Command::Recover(args) = &cli.command else {
        panic!("not recover")
    };
    let (state_dir, record) = find(&cli.common, args).expect("a record");
    go_on_with(&cli.common, args, state_dir, record, &Signals::default()).expect("it is complete");
    destination.join().expect("a good end");
    assert!(qemu.has_heard("quit"));
}

/// A guest that stood still when its vmemctl died, and has not left this host. Its destination is gone.
fn left_behind() -> (TempDir, fake::Qemu) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("qmp");
    let qemu = fake::Qemu::start(&path, "postmigrate", "completed");
    let state_dir = StateDir::new(directory.path(), "out", "guest").expect("a state directory");
    let record = Outgoing {
        key: Key::of_guest(&mut fake::Qemu::connect(&path)).expect("a key"),
        phase: Phase::Prepared,
        // Nobody listens there.
        ..record(&path, "127.0.0.1:1".to_owned())
    };
    state_dir.write(&record).expect("a record");
    // It does not continue before the test lets it.
    qemu.state().refuses = "cont";
    (directory, qemu)
}

fn start_recover(directory: &TempDir) -> JoinHandle<Result<(), Error>> {
    let state = directory.path().to_str().expect("a path").to_owned();
    thread::spawn(move || {
        let cli = Cli::parse_from(["vmemctl", "--state", &state, "recover"]);
        let Command::Recover(args) = &cli.command else {
            panic!("not recover")
        };
        let (state_dir, record) = find(&cli.common, args)?;
        go_on_with(&cli.common, args, state_dir, record, &Signals::default())
    })
}

fn start_abort(directory: &TempDir) -> JoinHandle<Result<(), Error>> {
    let state = directory.path().to_str().expect("a path").to_owned();
    thread::spawn(move || {
        let cli = Cli::parse_from(["vmemctl", "--json", "--state", &state, "abort", "guest"]);
        let Command::Abort(args) = &cli.command else {
            panic!("not abort")
        };
        crate::abort(&cli.common, args)
    })
}

fn wait_until(what: &str, is: impl Fn() -> bool) {
    let until = Instant::now() + LIMIT;
    while !is() {
        assert!(Instant::now() < until, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn abort_of_a_recover_that_ends_the_move_says_that_the_guest_continues() {
    let (directory, qemu) = left_behind();
    let recovers = start_recover(&directory);
    wait_until("the guest is not continued", || qemu.has_heard("cont"));
    let aborts = start_abort(&directory);
    thread::sleep(Duration::from_millis(200));
    assert!(!aborts.is_finished(), "{:?}", aborts.join());
    qemu.state().refuses = "";
    recovers.join().expect("no panic").expect("the guest continues here");
    aborts.join().expect("no panic").expect("the guest continues here");
    assert_eq!(qemu.state().status, "running");
}

#[test]
fn abort_that_comes_before_recover_listens_is_obeyed() {
    let (directory, qemu) = left_behind();
    let aborts = start_abort(&directory);
    thread::sleep(Duration::from_millis(300));
    assert!(!aborts.is_finished(), "{:?}", aborts.join());
    let recovers = start_recover(&directory);
    wait_until("the guest is not continued", || qemu.has_heard("cont"));
    // The abort has found the recover by then, or does within this time.
    thread::sleep(Duration::from_millis(300));
    qemu.state().refuses = "";
    recovers.join().expect("no panic").expect("the guest continues here");
    aborts.join().expect("no panic").expect("the guest continues here");
    assert_eq!(qemu.state().status, "running");
}

#[test]
fn abort_without_a_recover_says_what_to_do() {
    let (directory, _qemu) = left_behind();
    let began = Instant::now();
    let failure = start_abort(&directory).join().expect("no panic").expect_err("nobody obeys");
    let text = vmem_cli::chain(&failure);
    assert!(text.contains("'vmemctl recover' ends the migration"), "{text}");
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
}
