// SPDX-License-Identifier: GPL-2.0-or-later
//! The guest moves, and does not stand still meanwhile, although no process reads the output.

use super::*;
use crate::unread;

/// A message of the destination about its vmemd.
fn pages() -> FromDestination {
    let regions = json!([{"bytes": 8192, "present_bytes": 4096}]);
    FromDestination::Pages {
        line: json!({"event": "progress", "seconds": 1.0, "regions": regions}),
    }
}

#[test]
fn guest_moves_while_output_is_not_read() {
    let test = concat!(module_path!(), "::guest_moves_while_output_is_not_read");
    unread::run(test, || [true, false].into_iter().for_each(move_guest));
}

fn move_guest(json: bool) {
    let mut scene = scene(|mut channel, listener, _| {
        let state = welcome(listener, Purpose::State);
        channel.send(&pages()).expect("room");
        let heard = channel.recv_within::<FromSource>(LIMIT).expect("a word");
        assert_eq!(heard, FromSource::Start);
        channel.send(&pages()).expect("room");
        say_loaded(state);
        expect_commit(&mut channel);
        channel.send(&pages()).expect("room");
        channel.send(&FromDestination::Running).expect("room");
        channel.send(&pages()).expect("room");
        let summary = json!({"regions": []});
        channel.send(&FromDestination::Complete { summary }).expect("room");
        let heard = channel.recv_within::<FromSource>(LIMIT).expect("a word");
        assert_eq!(heard, FromSource::Heard);
    });
    at_the_beginning(&mut scene);
    scene.migration.report = Report::new(json);
    let event = |status: &str| json!({"event": "MIGRATION", "data": {"status": status}});
    scene.qemu.state().says = vec![("migrate", event("pre-switchover")), ("loaded", event("completed"))];
    let sent = |state| state == State::Committing;
    scene
        .migration
        .run_until(Some(Event::Ready), sent)
        .expect("its state is there");
    scene.migration.report.note("a note between the stop and COMMIT");
    follow(&mut scene.migration).expect("its memory is there");
    scene.destination.join().expect("a good end");
    assert!(scene.qemu.has_heard("quit"));
}

#[test]
fn signal_ends_the_move_while_output_is_not_read() {
    let test = concat!(module_path!(), "::signal_ends_the_move_while_output_is_not_read");
    unread::run(test, || {
        let mut scene = scene(|mut channel, _, _| {
            let heard = channel.recv_within::<FromSource>(LIMIT).expect("a word");
            assert!(matches!(heard, FromSource::Abort { .. }), "{heard:?}");
            let reason = "as you say".to_owned();
            channel.send(&FromDestination::Failed { reason }).expect("room");
        });
        scene.migration.report = Report::new(false);
        scene.migration.report.note("a note");
        scene.migration.signals.raise();
        let failure = commit(&mut scene.migration).expect_err("a signal");
        assert!(matches!(failure, Error::AtSource(_)), "{failure:?}");
        assert_eq!(scene.qemu.state().status, "running");
        scene.destination.join().expect("a good end");
    });
}
