// SPDX-License-Identifier: GPL-2.0-or-later
//! A signal in each phase. Before COMMIT the guest continues here and no record is left. After COMMIT the move can be continued.

use vmem_cli::chain;

use super::*;

/// The channel on which a destination gets the signals of the source, to raise one at the right moment.
type Raise = std::sync::mpsc::Receiver<Signals>;

/// A scene in which `destination` raises the signal.
fn raised(destination: impl FnOnce(Channel, &TcpListener, Signals) + Send + 'static) -> Scene {
    let (sender, raise): (_, Raise) = std::sync::mpsc::channel();
    let scene = scene(move |channel, listener, _| destination(channel, listener, raise.recv().expect("signals")));
    sender.send(scene.migration.signals.clone()).expect("a destination");
    scene
}

fn expect_abort(channel: &mut Channel) {
    loop {
        let heard = channel.recv_within::<FromSource>(LIMIT).expect("a word");
        if let FromSource::Abort { reason } = heard {
            assert!(reason.contains("SIGINT"), "{reason}");
            break;
        }
    }
    let reason = "as you say".to_owned();
    channel.send(&FromDestination::Failed { reason }).expect("room");
}

/// Checks that the guest continues at the source, and that no record is left.
fn expect_at_source(scene: Scene, result: Result<(), Error>) {
    let Scene {
        directory,
        qemu,
        migration,
        destination,
    } = scene;
    drop(migration);
    let failure = result.expect_err("a signal");
    assert!(chain(&failure).contains("SIGINT"), "{failure:?}");
    assert!(matches!(failure, Error::AtSource(_)), "{failure:?}");
    assert_eq!(failure.code(), 2);
    destination.join().expect("a good end");
    assert_eq!(qemu.state().status, "running");
    assert!(!directory.path().join("out.guest0").exists());
}

/// Checks that the destination owns the guest, and that this is recorded.
fn expect_detached(scene: Scene, result: Result<(), Error>, phase: Phase) {
    let failure = result.expect_err("it was interrupted");
    assert!(matches!(failure, Error::Detached(_)), "{failure:?}");
    assert_eq!(failure.code(), 6);
    scene.destination.join().expect("a good end");
    assert_eq!(noted(scene.directory.path().into()), Some(phase));
    assert!(!scene.qemu.has_heard("cont"));
    assert!(!scene.qemu.has_heard("quit"));
}

#[test]
fn signal_while_another_client_has_the_monitor_ends_the_move() {
    use clap::Parser;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("qmp");
    // The socket accepts the connection, and sends no greeting.
    let _busy = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let (state, qmp) = (directory.path().to_str().expect("a path"), path.to_str().expect("a path"));
    let cli = crate::options::cli::Cli::parse_from(["vmemctl", "--state", state, "migrate", "--qmp", qmp, "--to", "127.0.0.1:1"]);
    let crate::options::cli::Command::Migrate(args) = &cli.command else {
        panic!("not migrate")
    };
    let signals = Signals::default();
    let raise = signals.clone();
    let (began, thread) = (
        Instant::now(),
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            raise.raise();
        }),
    );
    let cause = prepare(&cli.common, args, Report::new(true), signals)
        .map(drop)
        .expect_err("a signal");
    assert!(cause.is_signal(), "{cause:?}");
    assert!(began.elapsed() < Duration::from_secs(8), "not after the time for a command");
    thread.join().expect("a good end");
}

#[test]
fn signal_while_the_destination_prepares_ends_the_move() {
    let mut scene = raised(|mut channel, _, signals| {
        let heard = channel.recv_within::<FromSource>(LIMIT).expect("a word");
        assert!(matches!(heard, FromSource::Offer { .. }), "{heard:?}");
        signals.raise();
        expect_abort(&mut channel);
    });
    at_the_beginning(&mut scene);
    let result = offer(&mut scene);
    assert!(!scene.qemu.has_heard("migrate"));
    expect_at_source(scene, result);
}

#[test]
fn signal_while_the_state_connection_is_made_ends_the_move() {
    let mut scene = raised(|mut channel, listener, signals| {
        channel.recv_within::<FromSource>(LIMIT).expect("an offer");
        channel
            .send(&FromDestination::Ready {
                rounds: false,
                verify: false,
            })
            .expect("room");
        // The connection is accepted, and WELCOME is not sent.
        let _silent = listener.accept().expect("a connection");
        signals.raise();
        expect_abort(&mut channel);
    });
    at_the_beginning(&mut scene);
    let result = offer(&mut scene);
    expect_at_source(scene, result);
}

/// Offers the guest, and runs until the signal ends the move.
fn offer(scene: &mut Scene) -> Result<(), Error> {
    let offer = offer_of(&scene.migration.record, &[], String::new(), false, false, false);
    let first = scene.migration.offer(&offer);
    scene.migration.run_until(first, |_| false)
}

/// Sends the state, and runs until the signal ends the move.
fn switch(scene: &mut Scene) -> Result<(), Error> {
    scene.migration.run_until(Some(Event::Ready), |_| false)
}

#[test]
fn signal_while_the_state_is_sent_ends_the_move() {
    let mut scene = raised(|mut channel, listener, signals| {
        let _state = welcome(listener, Purpose::State);
        thread::sleep(Duration::from_millis(200));
        signals.raise();
        expect_abort(&mut channel);
    });
    at_the_beginning(&mut scene);
    let result = switch(&mut scene);
    expect_at_source(scene, result);
}

#[test]
fn signal_after_the_stop_continues_the_guest_here() {
    let mut scene = raised(|mut channel, listener, signals| {
        let _state = welcome(listener, Purpose::State);
        let heard = channel.recv_within::<FromSource>(LIMIT).expect("a word");
        assert_eq!(heard, FromSource::Start);
        signals.raise();
        expect_abort(&mut channel);
    });
    at_the_beginning(&mut scene);
    let event = json!({"event": "MIGRATION", "data": {"status": "pre-switchover"}});
    scene.qemu.state().says.push(("migrate", event));
    let result = switch(&mut scene);
    assert!(scene.migration.stopped.is_some());
    expect_at_source(scene, result);
}

#[test]
fn signal_before_commit_continues_the_guest_here() {
    let mut scene = raised(|mut channel, _, signals| {
        signals.raise();
        expect_abort(&mut channel);
    });
    while scene.migration.signals.check().is_ok() {
        thread::sleep(Duration::from_millis(10));
    }
    let failure = commit(&mut scene.migration).expect_err("a signal");
    assert!(matches!(failure, Error::AtSource(_)), "{failure:?}");
    scene.destination.join().expect("a good end");
    assert_eq!(noted(scene.directory.path().into()), None);
    assert_eq!(scene.qemu.state().status, "running");
}

#[test]
fn signal_after_commit_leaves_the_guest_alone() {
    let mut scene = raised(|mut channel, _, signals| {
        expect_commit(&mut channel);
        signals.raise();
        let heard = channel.recv_within::<FromSource>(LIMIT);
        assert!(
            matches!(heard, Err(ChannelError::TimedOut(_) | ChannelError::Closed)),
            "{heard:?}"
        );
    });
    let began = Instant::now();
    let result = commit(&mut scene.migration);
    assert!(began.elapsed() < Duration::from_secs(8), "not when the destination is lost");
    // Closes the connection, as the end of the program does.
    let (ours, _) = std::os::unix::net::UnixStream::pair().expect("sockets");
    let socket = socket2::Socket::from(ours);
    scene.migration.channel = Channel::new(socket.try_clone().expect("a socket"), &socket).ok();
    expect_detached(scene, result, Phase::Committed);
}

#[test]
fn signal_during_reconnect_leaves_the_guest_alone() {
    let mut scene = raised(|mut channel, listener, signals| {
        expect_commit(&mut channel);
        drop(channel);
        // The next connection is accepted, and WELCOME is not sent.
        let _silent = listener.accept().expect("a connection");
        signals.raise();
        thread::sleep(Duration::from_millis(200));
    });
    let began = Instant::now();
    let result = commit(&mut scene.migration);
    assert!(began.elapsed() < Duration::from_secs(8), "not after the time for a greeting");
    expect_detached(scene, result, Phase::Committed);
}

#[test]
fn signal_while_pages_are_fetched_leaves_the_guest_alone() {
    let mut scene = raised(|mut channel, _, signals| {
        expect_commit(&mut channel);
        channel.send(&FromDestination::Running).expect("room");
        thread::sleep(Duration::from_millis(100));
        signals.raise();
        let heard = channel.recv_within::<FromSource>(LIMIT);
        assert!(matches!(heard, Err(ChannelError::Closed)), "{heard:?}");
    });
    commit(&mut scene.migration).expect("it runs there");
    let Scene {
        directory,
        qemu,
        mut migration,
        destination,
    } = scene;
    let failure = follow(&mut migration).expect_err("it was interrupted");
    drop(migration);
    assert!(matches!(failure, Error::Detached(_)), "{failure:?}");
    destination.join().expect("a good end");
    assert_eq!(noted(directory.path().into()), Some(Phase::Running));
    assert!(!qemu.has_heard("quit"));
}
