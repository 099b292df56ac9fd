// SPDX-License-Identifier: GPL-2.0-or-later
//! The source's vmemd sends rounds, and the guest moves when it says so.

use std::process::Command;

use vmem_cli::chain;
use vmem_control::{Event as DaemonReport, Finished, Request, Settled, Status};
use vmem_process::Process;

use super::*;
use crate::daemon::{Daemon, DaemonEvent, Ended};
use crate::queue::Sender;

/// How long nothing may happen.
const QUIET: Duration = Duration::from_millis(300);

fn settled(fits: bool) -> Settled {
    Settled {
        reason: "switch".to_owned(),
        fits,
        left_bytes: 4096,
        expected_ms: None,
    }
}

/// What the thread of the destination has: both ends of the move.
pub(super) struct World<'a> {
    pub(super) channel: Channel,
    listener: &'a TcpListener,
    /// The source's vmemd.
    pub(super) vmemd: Sender<DaemonEvent>,
    qemu: fake::Qemu,
    /// The guest's directory at the source.
    pub(super) directory: PathBuf,
}

impl World<'_> {
    pub(super) fn ready(&self, rounds: bool) {
        self.channel
            .send(&FromDestination::Ready { rounds, verify: false })
            .expect("room");
    }

    pub(super) fn say(&self, event: DaemonReport) {
        self.vmemd.send(DaemonEvent::Event(event));
    }

    pub(super) fn settle(&self, fits: bool) {
        self.say(DaemonReport::Settled(settled(fits)));
    }

    fn finish(&self) {
        self.say(DaemonReport::Finished(Finished {
            remainder_bytes: 4096,
            ..Finished::default()
        }));
    }

    /// vmemd ends.
    fn end(&self) {
        self.vmemd.send(DaemonEvent::Ended(Ended::default()));
    }

    pub(super) fn fail(&self, reason: &str) {
        let reason = reason.to_owned();
        self.channel.send(&FromDestination::Failed { reason }).expect("room");
    }

    /// Waits until the source's QEMU has saved its devices.
    pub(super) fn saved(&self) -> Channel {
        let state = welcome(self.listener, Purpose::State);
        while !self.qemu.has_heard("migrate-continue") {
            thread::sleep(Duration::from_millis(2));
        }
        state
    }

    fn hear(&mut self) -> FromSource {
        self.channel.recv_within::<FromSource>(LIMIT).expect("a word")
    }

    /// Answers the order to finish, as often as on new connections, until START arrives.
    pub(super) fn expect_start(&mut self) {
        self.expect_start_after(None);
    }

    /// As before. vmemd says whether what is left fits.
    fn expect_start_after(&mut self, fits: Option<bool>) {
        let until = Instant::now() + LIMIT;
        let heard = loop {
            self.say(DaemonReport::Finished(Finished {
                remainder_bytes: 4096,
                fits,
                expected_ms: None,
            }));
            let heard = self.channel.recv::<FromSource>(Instant::now() + Duration::from_millis(100));
            match heard.expect("a connection") {
                Some(heard) => break heard,
                None => assert!(Instant::now() < until, "no START"),
            }
        };
        assert_eq!(heard, FromSource::Start);
    }

    fn expect_quiet(&mut self) {
        let early = self.channel.recv::<FromSource>(Instant::now() + QUIET);
        assert!(matches!(early, Ok(None)), "{early:?}");
    }

    /// Tells how many of its two pages are there.
    fn pages(&self, present: u64) {
        let regions = json!([{"name": "ram", "bytes": 8192, "present_bytes": present * 4096}]);
        let line = json!({"event": "progress", "seconds": 1.0, "regions": regions});
        self.channel.send(&FromDestination::Pages { line }).expect("room");
    }

    pub(super) fn expect_abort(&mut self) {
        let heard = self.hear();
        assert!(matches!(heard, FromSource::Abort { .. }), "{heard:?}");
        self.fail("as you say");
    }

    /// Takes the guest.
    fn take(mut self, state: Channel) {
        say_loaded(state);
        expect_commit(&mut self.channel);
        self.channel.send(&FromDestination::Running).expect("room");
    }
}

/// A scene from OFFER on, with a vmemd that sends rounds.
pub(super) fn rounds(mode: Mode, destination: impl FnOnce(World<'_>) + Send + 'static) -> Scene {
    // The end of the page server ends it.
    let mut process = Command::new("sleep").arg("60").spawn().expect("a process");
    let (daemon, vmemd) = Daemon::of_process(Process::of_child(&process).expect("it lives"));
    thread::spawn(move || process.wait());
    let (sender, qemu) = std::sync::mpsc::channel();
    let mut scene = scene(move |channel, listener, records| {
        let qemu = qemu.recv().expect("a QEMU");
        destination(World {
            channel,
            listener,
            vmemd,
            qemu,
            directory: records.join("out.guest0"),
        });
    });
    at_the_beginning(&mut scene);
    let event = |status: &str| json!({"event": "MIGRATION", "data": {"status": status}});
    scene.qemu.state().says = vec![("migrate", event("pre-switchover")), ("loaded", event("completed"))];
    scene.migration.export = PageServer::of_daemon(daemon, &scene.migration.state_dir);
    scene.migration.rounds = Some(Rounds::new(mode));
    sender.send(scene.qemu.clone()).expect("a destination");
    let signals = scene.migration.signals.clone();
    thread::spawn(move || {
        thread::sleep(2 * LIMIT);
        signals.raise();
    });
    scene
}

fn run(scene: &mut Scene) -> Result<(), Error> {
    scene.migration.run_until(None, |state| state == State::Away)
}

fn expect_moved(mode: Mode, destination: impl FnOnce(World<'_>) + Send + 'static) {
    let mut scene = rounds(mode, destination);
    run(&mut scene).expect("it runs there");
    scene.destination.join().expect("a good end");
}

/// Checks that the guest is back at the source. Returns why.
fn expect_back(mut scene: Scene) -> String {
    let failure = run(&mut scene).expect_err("no move");
    assert!(matches!(failure, Error::AtSource(_)), "{failure:?}");
    assert_eq!(scene.qemu.state().status, "running");
    assert_eq!(noted(scene.directory.path().into()), None);
    scene.destination.join().expect("a good end");
    chain(&failure)
}

#[test]
fn guest_stops_when_vmemd_says_so_and_start_waits_for_the_last_pages() {
    expect_moved(Mode::Hybrid, |mut world| {
        world.ready(true);
        // Nobody has asked for it.
        world.finish();
        world.expect_quiet();
        assert!(!world.qemu.has_heard("migrate"));
        world.settle(true);
        let state = world.saved();
        world.settle(true);
        world.expect_quiet();
        world.expect_start();
        world.finish();
        world.take(state);
    });
}

#[test]
fn guest_that_is_settled_before_ready_arrives_moves() {
    expect_moved(Mode::Hybrid, |mut world| {
        world.settle(true);
        thread::sleep(QUIET);
        world.ready(true);
        let state = world.saved();
        world.expect_start();
        world.take(state);
    });
}

#[test]
fn destination_without_rounds_gets_the_guest_at_once() {
    expect_moved(Mode::Precopy, |mut world| {
        world.ready(false);
        let state = world.saved();
        world.expect_quiet();
        world.expect_start();
        world.take(state);
    });
}

#[test]
fn state_waits_for_all_pages_where_the_guest_is_to_stand_still_and_nowhere_else() {
    // What fits at last counts, and an earlier vmemd does not say that.
    for (mode, fits, fits_at_last, waits) in [
        (Mode::Precopy, false, Some(false), true),
        (Mode::Auto, true, None, true),
        (Mode::Auto, false, None, false),
        (Mode::Auto, true, Some(false), false),
        (Mode::Auto, false, Some(true), true),
        (Mode::Hybrid, true, Some(true), false),
    ] {
        expect_moved(mode, move |mut world| {
            world.ready(true);
            world.settle(fits);
            let state = world.saved();
            world.expect_start_after(fits_at_last);
            let (mut socket, mut early) = state.into_parts();
            let mut bytes = [0; 16];
            if waits {
                world.pages(1);
                socket.set_read_timeout(Some(QUIET)).expect("a socket");
                let read = socket.read(&mut bytes);
                assert!(early.is_empty() && read.is_err(), "{mode:?} {fits}: {read:?}");
                world.pages(2);
            }
            socket.set_read_timeout(Some(LIMIT)).expect("a socket");
            while early.len() < recorded::END.len() {
                let length = socket.read(&mut bytes).expect("the state");
                early.extend_from_slice(&bytes[..length]);
            }
            socket.write_all(&[0, 1, 0, 4, 0, 0, 0, 0]).expect("room");
            expect_commit(&mut world.channel);
            world.channel.send(&FromDestination::Running).expect("room");
        });
    }
}

/// Waits until the device state has begun to arrive, or until the source has kept it for a while.
fn is_state_kept(state: Channel) -> bool {
    let (mut socket, early) = state.into_parts();
    socket.set_read_timeout(Some(QUIET)).expect("a socket");
    early.is_empty() && socket.read(&mut [0; 16]).is_err()
}

#[test]
fn mode_that_is_changed_while_rounds_run_counts_after_them() {
    for (mode, changed, waits) in [(Mode::Hybrid, "precopy", true), (Mode::Precopy, "hybrid", false)] {
        let mut scene = rounds(mode, move |mut world| {
            world.ready(true);
            world.say(DaemonReport::Rounds(vmem_control::Rounds {
                mode: changed.to_owned(),
                ..vmem_control::Rounds::default()
            }));
            world.settle(false);
            let state = world.saved();
            world.expect_start();
            assert_eq!(is_state_kept(state), waits, "{changed}");
            world.fail("enough");
        });
        run(&mut scene).expect_err("it was given up");
        scene.destination.join().expect("a good end");
    }
}

#[test]
fn what_vmemd_says_while_the_connection_is_made_again_is_not_missed() {
    expect_moved(Mode::Hybrid, |mut world| {
        world.ready(true);
        thread::sleep(QUIET);
        let status = |finished: Option<Finished>| {
            DaemonEvent::Status(Box::new(Status {
                settled: Some(settled(true)),
                finished,
                ..Status::default()
            }))
        };
        world.vmemd.send(status(None));
        let state = world.saved();
        thread::sleep(QUIET);
        let finished = Finished {
            remainder_bytes: 4096,
            ..Finished::default()
        };
        world.vmemd.send(status(Some(finished)));
        assert_eq!(world.hear(), FromSource::Start);
        world.vmemd.send(status(Some(finished)));
        world.take(state);
    });
    let why = expect_back(rounds(Mode::Hybrid, |mut world| {
        world.ready(true);
        thread::sleep(QUIET);
        world.vmemd.send(DaemonEvent::Status(Box::new(Status {
            failed: Some("the connection was lost".to_owned()),
            ..Status::default()
        })));
        world.expect_abort();
    }));
    assert!(why.contains("the connection was lost"), "{why}");
}

#[test]
fn refused_finish_ends_the_wait_with_its_reason() {
    let began = Instant::now();
    let why = expect_back(rounds(Mode::Hybrid, |mut world| {
        world.ready(true);
        world.settle(true);
        let _state = world.saved();
        thread::sleep(QUIET);
        world
            .vmemd
            .send(DaemonEvent::Refused(Request::Finish, "it ends just now".to_owned()));
        world.expect_abort();
    }));
    assert!(
        why.contains("does not take the last pages") && why.contains("it ends just now"),
        "{why}"
    );
    assert!(began.elapsed() < LIMIT / 2, "{:?}", began.elapsed());
}

#[test]
fn refused_finish_of_a_vmemd_that_follows_the_rounds_changes_nothing() {
    expect_moved(Mode::Hybrid, |mut world| {
        world.ready(true);
        world.settle(true);
        let state = world.saved();
        world.expect_start();
        world
            .vmemd
            .send(DaemonEvent::Refused(Request::Finish, "no rounds".to_owned()));
        world.take(state);
    });
}

#[test]
fn guest_continues_here_if_vmemd_ends_before_ready() {
    let why = expect_back(rounds(Mode::Auto, |mut world| {
        world.end();
        world.expect_abort();
    }));
    assert!(why.contains("the rounds of the guest's memory are lost"), "{why}");
}

#[test]
fn guest_continues_here_if_vmemd_ends_or_fails_in_the_rounds() {
    for ends in [true, false] {
        let why = expect_back(rounds(Mode::Auto, move |mut world| {
            world.ready(true);
            thread::sleep(QUIET);
            match ends {
                true => world.end(),
                false => world.say(DaemonReport::Failed {
                    error: "no log".to_owned(),
                }),
            }
            world.expect_abort();
        }));
        assert!(why.contains(if ends { "are lost" } else { "no log" }), "{why}");
    }
}

#[test]
fn guest_continues_here_if_vmemd_ends_while_qemu_saves() {
    let why = expect_back(rounds(Mode::Auto, |mut world| {
        world.ready(true);
        world.settle(true);
        let _state = world.saved();
        world.end();
        world.expect_abort();
    }));
    assert!(why.contains("are lost"), "{why}");
}

#[test]
fn vmemd_that_ends_after_the_last_pages_does_not_end_the_move() {
    expect_moved(Mode::Hybrid, |mut world| {
        world.ready(true);
        world.settle(true);
        let state = world.saved();
        world.expect_start();
        world.say(DaemonReport::Failed {
            error: "the connection was lost".to_owned(),
        });
        world.end();
        world.take(state);
    });
}

#[test]
fn rounds_that_the_destination_ends_have_its_reason() {
    let why = expect_back(rounds(Mode::Auto, |world| {
        world.ready(true);
        thread::sleep(QUIET);
        world.say(DaemonReport::Failed {
            error: "the connection was lost".to_owned(),
        });
        thread::sleep(Duration::from_millis(100));
        world.pages(0);
        world.fail("no disks");
    }));
    assert!(why.contains("the connection was lost") && why.contains("no disks"), "{why}");
}

#[test]
fn guest_continues_here_if_the_last_pages_are_never_taken() {
    let mut scene = rounds(Mode::Auto, |mut world| {
        world.ready(true);
        world.settle(true);
        let _state = world.saved();
        world.expect_abort();
    });
    scene.migration.timeout = Duration::from_secs(1);
    let why = expect_back(scene);
    assert!(why.contains("has not taken the last pages"), "{why}");
}

#[test]
fn guest_continues_here_if_the_pages_never_arrive() {
    let mut scene = rounds(Mode::Precopy, |mut world| {
        world.ready(true);
        world.settle(false);
        let _state = world.saved();
        world.expect_start();
        world.pages(1);
        world.expect_abort();
    });
    scene.migration.timeout = Duration::from_secs(1);
    let why = expect_back(scene);
    assert!(why.contains("has not got all pages"), "{why}");
}

#[test]
fn rounds_that_were_not_offered_are_refused() {
    let mut scene = rounds(Mode::Auto, |mut world| {
        world.ready(true);
        world.expect_abort();
    });
    scene.migration.rounds = None;
    let why = expect_back(scene);
    assert!(why.contains("out of order"), "{why}");
}
