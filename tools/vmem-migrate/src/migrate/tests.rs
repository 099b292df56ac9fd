// SPDX-License-Identifier: GPL-2.0-or-later
//! The source's side while the ownership of the guest changes, with a fake QEMU and a fake destination.

mod control;
mod interrupted;
mod previous;
mod rounds;
mod saving;
mod unread;
mod verify;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use tempfile::TempDir;

use crate::Owner;
use crate::source::Event;
use serde_json::json;

use super::*;
use crate::channel::ChannelError;
use crate::fake;
use crate::message::FromDestination;
use crate::network::Greeted;
use vmem_qemu::recorded;

const SESSION: &str = "0123456789abcdef0123456789abcdef";
const LIMIT: Duration = Duration::from_secs(10);

/// A move whose state has been sent: COMMIT is next.
struct Scene {
    directory: TempDir,
    qemu: fake::Qemu,
    migration: OutgoingMigration,
    destination: JoinHandle<()>,
}

/// The recorded phase.
fn noted(directory: PathBuf) -> Option<Phase> {
    let text = std::fs::read_to_string(directory.join("out.guest0/record")).ok()?;
    serde_json::from_str::<Outgoing>(&text).ok().map(|record| record.phase)
}

/// Accepts the source, and checks what the connection is for.
fn welcome(listener: &TcpListener, wanted: Purpose) -> Channel {
    let (stream, _) = listener.accept().expect("a connection");
    let greeted = Security::Loopback.accept(stream).expect("a greeting");
    assert_eq!((greeted.session.as_str(), greeted.purpose), (SESSION, wanted));
    let Greeted { channel, version, .. } = greeted;
    channel.send(&FromDestination::Welcome { version }).expect("room");
    channel
}

/// Receives the state, and answers as a QEMU that has loaded it does.
fn say_loaded(state: Channel) {
    let (mut socket, mut early) = state.into_parts();
    while early.len() < recorded::END.len() {
        let mut bytes = [0; 4096];
        let length = socket.read(&mut bytes).expect("the state");
        assert_ne!(length, 0, "the state ends early");
        early.extend_from_slice(&bytes[..length]);
    }
    assert_eq!(early, recorded::END);
    socket.write_all(&[0, 1, 0, 4, 0, 0, 0, 0]).expect("room");
}

fn expect_commit(channel: &mut Channel) {
    let heard = channel.recv_within::<FromSource>(LIMIT).expect("a word");
    assert_eq!(heard, FromSource::Commit { run: true });
}

/// Starts a scene. `destination` gets the connection, the listener for further ones, and the directory of the records.
fn scene(destination: impl FnOnce(Channel, &TcpListener, PathBuf) + Send + 'static) -> Scene {
    scene_with(move |listener, records| {
        let channel = welcome(listener, Purpose::Migrate);
        destination(channel, listener, records);
    })
}

/// Starts a scene. `destination` accepts all connections.
fn scene_with(destination: impl FnOnce(&TcpListener, PathBuf) + Send + 'static) -> Scene {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("qmp");
    let qemu = fake::Qemu::start(&path, "postmigrate", "completed");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let to = listener.local_addr().expect("an address").to_string();
    let records = directory.path().to_owned();
    let destination = thread::spawn(move || destination(&listener, records));
    let state_dir = StateDir::new(directory.path(), "out", "guest0").expect("a state directory");
    let channel = Security::Loopback
        .connect(&to, SESSION, Purpose::Migrate)
        .expect("a destination");
    let record = Outgoing {
        session: SESSION.to_owned(),
        guest: "guest0".to_owned(),
        key: "guest0".into(),
        phase: Phase::Prepared,
        qmp: path.clone(),
        to,
        vmemd: Vec::new(),
        served: Vec::new(),
        run: true,
        settings: None,
    };
    let (qmp, report) = (fake::Qemu::connect(&path), Report::new(true));
    let (security, signals) = (Security::Loopback, Signals::default());
    let mut migration = OutgoingMigration::new(State::Stopped, Ok(qmp), state_dir, record, security, report, signals);
    migration.channel = Some(channel);
    migration.timeout = LIMIT;
    migration.begun = true;
    migration.stopped = Some(Instant::now());
    Scene {
        directory,
        qemu,
        migration,
        destination,
    }
}

/// Runs until the guest runs at the destination.
fn commit(migration: &mut OutgoingMigration) -> Result<(), Error> {
    migration.run_until(Some(Event::Sent), |state| state == State::Away)
}

/// Runs until the end.
fn follow(migration: &mut OutgoingMigration) -> Result<(), Error> {
    migration.run_until(None, |_| false)
}

/// Reports trouble before COMMIT, and runs until the end.
fn give_up(migration: &mut OutgoingMigration, cause: Cause) -> Error {
    let event = migration.fail(cause);
    migration.run_until(Some(event), |_| false).expect_err("no move")
}

/// Sets the scene back to before the first message: the guest runs, and nothing has been sent.
fn at_the_beginning(scene: &mut Scene) {
    scene.migration.owner = Owner::new(State::Offering);
    scene.migration.begun = false;
    scene.migration.stopped = None;
    let mut state = scene.qemu.state();
    (state.status, state.migration) = ("running", "none");
}

#[test]
fn committed_guest_stays_stopped_at_the_source() {
    let mut scene = scene(|mut channel, _, records| {
        expect_commit(&mut channel);
        assert_eq!(noted(records), Some(Phase::Committed), "before it is said");
        channel.send(&FromDestination::Running).expect("room");
    });
    assert!(!scene.migration.export.is_released(), "nothing is given back before");
    commit(&mut scene.migration).expect("it runs there");
    scene.destination.join().expect("a good end");
    assert!(scene.migration.export.is_released());
    assert_eq!(noted(scene.directory.path().into()), Some(Phase::Running));
    assert!(!scene.qemu.has_heard("cont"));
}

#[test]
fn failed_guest_is_recorded_as_ours_before_heard_is_sent() {
    let mut scene = scene(|mut channel, _, records| {
        expect_commit(&mut channel);
        let reason = "no disks".to_owned();
        channel.send(&FromDestination::Failed { reason }).expect("room");
        let heard = channel.recv_within::<FromSource>(LIMIT).expect("a word");
        assert_eq!(heard, FromSource::Heard);
        // The record is removed once the guest runs.
        assert_ne!(noted(records), Some(Phase::Committed));
    });
    // The destination holds the disks for a moment longer.
    scene.qemu.state().refuses = "cont";
    let qemu = scene.qemu.clone();
    let disks = thread::spawn(move || {
        while !qemu.has_heard("cont") {
            thread::sleep(Duration::from_millis(10));
        }
        qemu.state().refuses = "";
    });
    let failure = commit(&mut scene.migration).expect_err("no guest there");
    assert!(matches!(failure, Error::AtSource(_)), "{failure:?}");
    scene.destination.join().expect("a good end");
    disks.join().expect("a good end");
    assert_eq!(scene.qemu.state().status, "running");
    assert_eq!(noted(scene.directory.path().into()), None);
}

#[test]
fn commit_is_sent_again_if_the_connection_is_lost_after_it() {
    let mut scene = scene(|mut channel, listener, _| {
        expect_commit(&mut channel);
        drop(channel);
        let mut channel = welcome(listener, Purpose::Recover);
        expect_commit(&mut channel);
        channel.send(&FromDestination::Running).expect("room");
    });
    commit(&mut scene.migration).expect("it runs there");
    scene.destination.join().expect("a good end");
    assert_eq!(noted(scene.directory.path().into()), Some(Phase::Running));
    assert!(!scene.qemu.has_heard("cont"));
}

#[test]
fn abort_is_sent_again_on_a_new_connection_if_the_first_is_lost() {
    let mut scene = scene(|channel, listener, _| {
        drop(channel);
        let mut channel = welcome(listener, Purpose::Recover);
        let heard = channel.recv_within::<FromSource>(LIMIT).expect("a word");
        assert!(matches!(heard, FromSource::Abort { .. }), "{heard:?}");
    });
    // Waits until the connection is known to be closed.
    let channel = scene.migration.channel.as_mut().expect("a connection");
    while !matches!(
        channel.recv::<FromDestination>(Instant::now() + LIMIT),
        Err(ChannelError::Closed)
    ) {}
    let failure = give_up(&mut scene.migration, Cause::other("a time limit"));
    assert!(matches!(failure, Error::AtSource(_)), "{failure:?}");
    assert_eq!(scene.qemu.state().status, "running");
    drop(scene.migration);
    scene.destination.join().expect("a good end");
}

#[test]
fn guest_continues_only_after_abort_has_freed_the_disks() {
    let (sender, qemu) = std::sync::mpsc::channel::<fake::Qemu>();
    let mut scene = scene(move |channel, listener, _| {
        drop(channel);
        let mut channel = welcome(listener, Purpose::Recover);
        let heard = channel.recv_within::<FromSource>(LIMIT).expect("a word");
        assert!(matches!(heard, FromSource::Abort { .. }), "{heard:?}");
        // The destination's QEMU has held the disks until now.
        qemu.recv().expect("a QEMU").state().refuses = "";
    });
    scene.qemu.state().refuses = "cont";
    sender.send(scene.qemu.clone()).expect("a destination");
    let failure = give_up(&mut scene.migration, Cause::other("a time limit"));
    assert!(matches!(failure, Error::AtSource(_)), "{failure:?}");
    assert_eq!(scene.qemu.state().status, "running");
    scene.destination.join().expect("a good end");
}
