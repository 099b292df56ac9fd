// SPDX-License-Identifier: GPL-2.0-or-later
//! Other commands look at a move, change it and end it.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use clap::Parser;
use vmem_cli::chain;
use vmem_control::{
    About, Change, Client, Duty, Error as ControlError, Event as DaemonReport, Later, Migration, MigrationPhase, Refusal, Server,
    Service, socket,
};

use super::rounds::{World, rounds};
use super::*;
use crate::migrate::control::{Control, Gate, SOCKET};
use crate::options::cli::{Cli, Command};
use crate::{abort, set, status};

/// The scene of rounds, with a control socket.
fn controlled(mode: Mode, destination: impl FnOnce(World<'_>) + Send + 'static) -> Scene {
    controlled_by(Gate::new, mode, destination)
}

/// The same, with this gate.
fn controlled_by(gate: fn(&Signals) -> Arc<Gate>, mode: Mode, destination: impl FnOnce(World<'_>) + Send + 'static) -> Scene {
    let mut scene = rounds(mode, destination);
    let migration = &mut scene.migration;
    migration.control = Control::listen(&migration.state_dir, SESSION, gate(&migration.signals)).expect("a socket");
    scene
}

/// Runs until the end, and tells the clients.
fn run(scene: &mut Scene, is_enough: impl Fn(State) -> bool) -> Result<(), Error> {
    let result = scene.migration.run_until(None, is_enough);
    scene.migration.control.end(&result);
    result
}

fn client(directory: &Path) -> Client {
    let until = Instant::now() + LIMIT;
    loop {
        match Client::connect(&directory.join(SOCKET), LIMIT) {
            Err(_) if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
            client => return client.expect("a vmemctl"),
        }
    }
}

/// Waits until the status is so.
fn wait_status(client: &mut Client, is: impl Fn(&Migration) -> bool) -> Migration {
    let until = Instant::now() + LIMIT;
    loop {
        let status = client.status(LIMIT).expect("an answer").migration;
        match status {
            Some(status) if is(&status) => return status,
            status => assert!(Instant::now() < until, "{status:?}"),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn standing(left_bytes: u64) -> DaemonReport {
    DaemonReport::Rounds(vmem_control::Rounds {
        mode: "auto".to_owned(),
        round: 2,
        memory_bytes: 8192,
        left_bytes,
        ..vmem_control::Rounds::default()
    })
}

/// The command line of a command for the guest of this directory.
fn cli(directory: &Path, words: &str) -> Cli {
    let state = directory.parent().expect("the directory of all guests");
    let words = format!("vmemctl --json --state {} {words}", state.display());
    Cli::try_parse_from(words.split(' ')).expect("a command line")
}

fn execute(cli: &Cli) -> Result<(), Error> {
    match &cli.command {
        Command::Status(args) => status(&cli.common, args),
        Command::Set(args) => set(&cli.common, args),
        Command::Abort(args) => abort(&cli.common, args),
        other => panic!("{other:?}"),
    }
}

#[test]
fn status_follows_the_move() {
    let mut scene = controlled(Mode::Auto, |mut world| {
        let mut client = client(&world.directory);
        assert_eq!(client.hello().duty, Duty::Migrate);
        let status = wait_status(&mut client, |status| status.phase == MigrationPhase::Preparing);
        assert_eq!(
            (status.guest.as_str(), status.mode.as_str(), status.committed),
            ("guest0", "auto", false)
        );
        world.ready(true);
        world.say(standing(4096));
        let status = wait_status(&mut client, |status| status.rounds.is_some());
        assert_eq!(
            (status.phase, status.left_bytes, status.memory_bytes),
            (MigrationPhase::Rounds, Some(4096), Some(8192))
        );
        execute(&cli(&world.directory, "status guest0")).expect("it is shown");
        // Nothing moves.
        let idle = wait_status(&mut client, |status| status.idle_seconds > 1.2);
        assert_eq!(idle.rounds.map(|rounds| rounds.round), Some(2));
        world.say(standing(0));
        world.settle(false);
        let state = world.saved();
        wait_status(&mut client, |status| status.phase == MigrationPhase::Switching);
        world.expect_start();
        say_loaded(state);
        expect_commit(&mut world.channel);
        let status = wait_status(&mut client, |status| status.committed);
        assert_eq!(status.phase, MigrationPhase::Committed);
        world.channel.send(&FromDestination::Running).expect("room");
        let status = wait_status(&mut client, |status| {
            status.phase == MigrationPhase::Postcopy && status.downtime_ms.is_some()
        });
        assert!(status.rounds.is_none(), "{status:?}");
        let regions = json!([{"name": "ram", "bytes": 8192, "present_bytes": 4096}]);
        let line = json!({"event": "progress", "seconds": 1.0, "regions": regions});
        world.channel.send(&FromDestination::Pages { line }).expect("room");
        let status = wait_status(&mut client, |status| status.left_bytes == Some(4096));
        assert!(status.bytes_per_second.is_some() && status.idle_seconds < 5.0, "{status:?}");
        let summary = json!({"event": "end", "exit_code": 0, "error": null});
        world.channel.send(&FromDestination::Complete { summary }).expect("room");
    });
    run(&mut scene, |_| false).expect("it has moved");
    scene.destination.join().expect("a good end");
}

#[test]
fn abort_before_commit_is_as_sigint() {
    let mut scene = controlled(Mode::Auto, |mut world| {
        world.ready(true);
        world.say(standing(4096));
        let mut client = client(&world.directory);
        wait_status(&mut client, |status| status.phase == MigrationPhase::Rounds);
        let line = cli(&world.directory, "abort guest0");
        let aborts = thread::spawn(move || execute(&line));
        world.expect_abort();
        aborts.join().expect("no panic").expect("the guest continues here");
    });
    let failure = run(&mut scene, |_| false).expect_err("no move");
    assert!(matches!(&failure, Error::AtSource(cause) if cause.is_signal()), "{failure:?}");
    assert_eq!(failure.code(), 2);
    scene.destination.join().expect("a good end");
    assert_eq!(scene.qemu.state().status, "running");
    assert_eq!(noted(scene.directory.path().into()), None);
}

#[test]
fn abort_after_commit_is_refused_and_the_guest_moves() {
    let mut scene = controlled(Mode::Auto, |mut world| {
        world.ready(true);
        world.settle(false);
        let state = world.saved();
        world.expect_start();
        say_loaded(state);
        expect_commit(&mut world.channel);
        let refused = execute(&cli(&world.directory, "abort guest0")).expect_err("too late");
        let text = chain(&refused);
        assert!(text.contains("the destination owns the guest already"), "{text}");
        assert_eq!(refused.code(), 1);
        world.channel.send(&FromDestination::Running).expect("room");
    });
    run(&mut scene, |state| state == State::Away).expect("it runs there");
    scene.destination.join().expect("a good end");
    assert!(!scene.qemu.has_heard("cont"));
}

/// A vmemd that notes changes, and refuses modes.
struct Vmemd(Sender<Change>);

impl Service for Vmemd {
    fn start(&mut self) -> Result<(), Refusal> {
        Ok(())
    }

    fn release(&mut self) -> Result<(), Refusal> {
        Ok(())
    }

    fn stop(&mut self) {}

    fn set(&mut self, change: Change, answer: Later) {
        answer.answer(match &change.mode {
            Some(_) => Err(Refusal::new("not this mode")),
            None => Ok(()),
        });
        let _ = self.0.send(change);
    }
}

fn vmemd(directory: &Path) -> (Server, Receiver<Change>) {
    let (sender, changes) = channel();
    let listener = socket::bind(&directory.join("vmemd.sock")).expect("a socket");
    let about = About::new("", Duty::Serve).expect("this process");
    (Server::start(listener, about, Vmemd(sender)).expect("a server"), changes)
}

#[test]
fn change_reaches_vmemd_and_its_refusal_comes_back() {
    let mut scene = controlled(Mode::Auto, |world| {
        world.ready(true);
        let set = |words: &str| execute(&cli(&world.directory, &format!("set guest0 {words}"))).map_err(|error| chain(&error));
        wait_status(&mut client(&world.directory), |status| status.phase == MigrationPhase::Rounds);
        let text = set("--switch-now").expect_err("there is no vmemd");
        assert!(text.contains("the source's vmemd does not obey"), "{text}");
        let (_server, changes) = vmemd(&world.directory);
        set("--bandwidth 1M --max-downtime 300").expect("it is done");
        let change = Change {
            bandwidth: Some(1 << 20),
            max_downtime_ms: Some(300),
            ..Change::default()
        };
        assert_eq!(changes.recv_timeout(LIMIT), Ok(change));
        let text = set("--mode hybrid").expect_err("it is refused");
        assert!(text.contains("is not changed: not this mode"), "{text}");
        let recorded = || {
            let text = std::fs::read_to_string(world.directory.join("record")).ok()?;
            let record: Outgoing = serde_json::from_str(&text).ok()?;
            (record.vmemd == ["serve", "--bandwidth", "1048576"]).then_some(())
        };
        let until = Instant::now() + LIMIT;
        while recorded().is_none() {
            assert!(Instant::now() < until, "a later vmemd does not know the limit");
            thread::sleep(Duration::from_millis(10));
        }
        world.fail("enough");
    });
    let arguments = ["serve", "--bandwidth", "unlimited"].map(str::to_owned);
    scene.migration.export.set_arguments(&arguments);
    run(&mut scene, |_| false).expect_err("it was given up");
    scene.destination.join().expect("a good end");
}

#[test]
fn change_that_comes_before_vmemd_is_ready_is_made_when_it_is() {
    let mut scene = controlled_by(Gate::starting, Mode::Auto, |world| {
        // This thread may be here before anybody listens.
        drop(client(&world.directory));
        let line = cli(&world.directory, "set guest0 --bandwidth 1M");
        let sets = thread::spawn(move || execute(&line));
        thread::sleep(Duration::from_millis(300));
        assert!(!sets.is_finished(), "{:?}", sets.join());
        let (_server, changes) = vmemd(&world.directory);
        sets.join().expect("no panic").expect("it is done");
        assert_eq!(changes.recv_timeout(LIMIT).expect("a change").bandwidth, Some(1 << 20));
        world.fail("enough");
    });
    run(&mut scene, |_| false).expect_err("it was given up");
    scene.destination.join().expect("a good end");
}

#[test]
fn abort_of_a_recover_of_a_guest_that_was_given_away_is_refused_from_the_first_moment() {
    let directory = tempfile::tempdir().expect("a directory");
    let signals = Signals::default();
    let state_dir = StateDir::new(directory.path(), "out", "guest0").expect("a state directory");
    let control = Control::listen(&state_dir, SESSION, Gate::resuming(&signals, true)).expect("a socket");
    let refused = execute(&cli(state_dir.directory(), "abort guest0")).expect_err("the destination has it");
    let text = chain(&refused);
    assert!(text.contains("the destination owns the guest already"), "{text}");
    signals.check().expect("nobody has given up");
    drop(control);
}

#[test]
fn client_that_asks_for_what_a_vmemctl_does_not_do_is_told_so() {
    let mut scene = controlled(Mode::Auto, |world| {
        let mut client = client(&world.directory);
        for refused in [client.start(LIMIT), client.release(LIMIT), client.stop(LIMIT)] {
            assert!(matches!(refused, Err(ControlError::Refused { .. })), "{refused:?}");
        }
        world.fail("enough");
    });
    run(&mut scene, |_| false).expect_err("it was given up");
    scene.destination.join().expect("a good end");
}

#[test]
fn socket_of_a_vmemctl_that_was_killed_is_no_vmemctl() {
    let directory = tempfile::tempdir().expect("a directory");
    let state_dir = StateDir::new(directory.path(), "out", "guest0").expect("a state directory");
    drop(socket::bind(&state_dir.path(SOCKET)).expect("a socket"));
    for words in ["abort guest0", "set guest0 --switch-now"] {
        let refused = execute(&cli(state_dir.directory(), words)).expect_err("nobody is there");
        assert!(chain(&refused).contains("no vmemctl is at work"), "{refused:?}");
    }
    execute(&cli(state_dir.directory(), "status")).expect("it is shown");
    // The next one replaces it.
    let signals = Signals::default();
    let control = Control::listen(&state_dir, SESSION, Gate::new(&signals)).expect("a socket");
    execute(&cli(state_dir.directory(), "status guest0")).expect("it is shown");
    drop(control);
    let unknown = execute(&cli(state_dir.directory(), "status guest1")).expect_err("no such guest");
    assert!(chain(&unknown).contains("no migration of a guest"), "{unknown:?}");
}

#[test]
fn vmemctl_that_does_not_answer_is_an_error_after_a_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let state_dir = StateDir::new(directory.path(), "out", "guest0").expect("a state directory");
    let _listener = socket::bind(&state_dir.path(SOCKET)).expect("a socket");
    let began = Instant::now();
    let late = execute(&cli(state_dir.directory(), "abort guest0")).expect_err("no answer");
    assert!(chain(&late).contains("cannot be asked"), "{late:?}");
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
}
