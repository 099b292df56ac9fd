// SPDX-License-Identifier: GPL-2.0-or-later
//! The source's QEMU saves its devices. START, and the state, follow when it has finished.

use std::sync::mpsc;

use vmem_cli::chain;

use super::*;

/// A scene from READY on. QEMU stops the guest at once.
pub(super) fn ready(destination: impl FnOnce(Channel, Channel) + Send + 'static) -> Scene {
    let mut scene = scene(|channel, listener, _| {
        let state = welcome(listener, Purpose::State);
        destination(channel, state);
    });
    at_the_beginning(&mut scene);
    let event = |status: &str| json!({"event": "MIGRATION", "data": {"status": status}});
    scene.qemu.state().says = vec![("migrate", event("pre-switchover")), ("loaded", event("completed"))];
    scene
}

/// A destination that is told ABORT, and gets nothing of the state.
pub(super) fn expect_abort_without_state(mut channel: Channel, state: Channel) {
    let heard = channel.recv_within::<FromSource>(LIMIT).expect("a word");
    assert!(matches!(heard, FromSource::Abort { .. }), "{heard:?}");
    let reason = "as you say".to_owned();
    channel.send(&FromDestination::Failed { reason }).expect("room");
    let (mut socket, mut bytes) = state.into_parts();
    // The connection may be reset.
    let _ = socket.read_to_end(&mut bytes);
    assert!(bytes.is_empty(), "the state must not arrive: {bytes:?}");
}

pub(super) fn run(scene: &mut Scene) -> Result<(), Error> {
    scene.migration.run_until(Some(Event::Ready), |state| state == State::Away)
}

/// Checks that the guest is back at the source. Returns why.
pub(super) fn expect_back(mut scene: Scene) -> String {
    let failure = run(&mut scene).expect_err("no move");
    assert!(matches!(failure, Error::AtSource(_)), "{failure:?}");
    assert_eq!(scene.qemu.state().status, "running");
    assert_eq!(noted(scene.directory.path().into()), None);
    // QEMU closes its stream when its migration is cancelled.
    scene.qemu.close_stream();
    scene.destination.join().expect("a good end");
    chain(&failure)
}

#[test]
fn start_is_sent_and_state_passes_only_after_qemu_has_saved() {
    let (sender, last) = mpsc::channel::<fake::Qemu>();
    let mut scene = ready(move |mut channel, state| {
        let qemu = last.recv().expect("a QEMU");
        while !qemu.has_heard("migrate-continue") {
            thread::sleep(Duration::from_millis(10));
        }
        let early = channel.recv::<FromSource>(Instant::now() + Duration::from_millis(300));
        assert!(matches!(early, Ok(None)), "{early:?}");
        qemu.finish_saving();
        let heard = channel.recv_within::<FromSource>(LIMIT).expect("a word");
        assert_eq!(heard, FromSource::Start);
        say_loaded(state);
        expect_commit(&mut channel);
        channel.send(&FromDestination::Running).expect("room");
    });
    scene.qemu.state().never_saves = true;
    sender.send(scene.qemu.clone()).expect("a destination");
    run(&mut scene).expect("it runs there");
    scene.destination.join().expect("a good end");
}

#[test]
fn guest_continues_here_if_qemu_never_finishes_saving() {
    let mut scene = ready(expect_abort_without_state);
    scene.qemu.state().never_saves = true;
    scene.migration.timeout = Duration::from_secs(1);
    let why = expect_back(scene);
    assert!(why.contains("suppress-vmdesc=on") && why.contains("1239 bytes"), "{why}");
}

#[test]
fn signal_while_qemu_saves_continues_the_guest_here() {
    let scene = ready(expect_abort_without_state);
    scene.qemu.state().never_saves = true;
    let (qemu, signals) = (scene.qemu.clone(), scene.migration.signals.clone());
    let raise = thread::spawn(move || {
        while !qemu.has_heard("migrate-continue") {
            thread::sleep(Duration::from_millis(10));
        }
        signals.raise();
    });
    let why = expect_back(scene);
    raise.join().expect("a good end");
    assert!(why.contains("SIGINT"), "{why}");
}

#[test]
fn guest_continues_here_if_the_destination_refuses_while_qemu_saves() {
    let scene = ready(|channel, state| {
        let reason = "no memory".to_owned();
        channel.send(&FromDestination::Failed { reason }).expect("room");
        drop(channel);
        let (mut socket, mut bytes) = state.into_parts();
        let _ = socket.read_to_end(&mut bytes);
        assert!(bytes.is_empty(), "the state must not arrive: {bytes:?}");
    });
    scene.qemu.state().never_saves = true;
    let why = expect_back(scene);
    assert!(why.contains("no memory"), "{why}");
}

#[test]
fn destination_hears_abort_and_never_start_if_qemu_dies_while_it_saves() {
    let mut scene = ready(expect_abort_without_state);
    scene.qemu.state().dies_of = "migrate-continue";
    let failure = run(&mut scene).expect_err("no QEMU");
    assert_eq!(scene.migration.owner.state(), State::Stranded, "{failure:?}");
    assert_eq!(noted(scene.directory.path().into()), Some(Phase::Prepared));
    scene.destination.join().expect("a good end");
}
