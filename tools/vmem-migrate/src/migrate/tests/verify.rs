// SPDX-License-Identifier: GPL-2.0-or-later
//! `--verify`: the state passes only after the destination has compared all memory.

use std::sync::mpsc;

use serde_json::Value;
use vmem_cli::chain;

use super::saving::{expect_abort_without_state, expect_back, ready, run};
use super::*;

/// Pages of the guest.
const PAGES: u64 = 512;

fn verifying(mut scene: Scene) -> Scene {
    let memory = MemoryBackend {
        id: "ram".to_owned(),
        bytes: PAGES * 4096,
        path: "/dev/shm/ram".into(),
    };
    scene.migration.verification = Some(Verification::new(&[memory]));
    scene
}

fn verified(pages: u64, different: &[u64]) -> FromDestination {
    let first: Vec<Value> = different
        .iter()
        .map(|page| json!({"region": "guest0.ram", "page": page}))
        .collect();
    let line = json!({"event": "verified", "pages": pages, "different": first.len(), "first": first});
    FromDestination::Pages { line }
}

fn expect_start(channel: &mut Channel) {
    let heard = channel.recv_within::<FromSource>(LIMIT).expect("a word");
    assert_eq!(heard, FromSource::Start);
}

/// All pages are present, which is not enough.
fn complete() -> FromDestination {
    let region = json!({"name": "guest0.ram", "bytes": PAGES * 4096, "present_bytes": PAGES * 4096, "phase": "filling"});
    let line = json!({"event": "progress", "seconds": 1.0, "verified_bytes": 4096, "regions": [region]});
    FromDestination::Pages { line }
}

/// A destination that gets START and no byte of the state; it says `word` then, and expects ABORT.
fn differs(word: FromDestination) -> impl FnOnce(Channel, Channel) + Send + 'static {
    move |mut channel, state| {
        expect_start(&mut channel);
        channel.send(&complete()).expect("room");
        channel.send(&word).expect("room");
        expect_abort_without_state(channel, state);
    }
}

#[test]
fn state_passes_only_after_all_memory_was_compared() {
    let mut scene = verifying(ready(|mut channel, state| {
        expect_start(&mut channel);
        channel.send(&complete()).expect("room");
        let (mut socket, early) = state.into_parts();
        assert!(early.is_empty());
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a socket");
        let nothing = socket.read(&mut [0; 1]).expect_err("the state is kept");
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
        channel.send(&verified(PAGES, &[])).expect("room");
        socket.set_read_timeout(Some(LIMIT)).expect("a socket");
        let mut all = vec![0; recorded::END.len()];
        socket.read_exact(&mut all).expect("the state");
        assert_eq!(all, recorded::END);
        socket.write_all(&[0, 1, 0, 4, 0, 0, 0, 0]).expect("room");
        expect_commit(&mut channel);
        channel.send(&FromDestination::Running).expect("room");
    }));
    run(&mut scene).expect("it runs there");
    scene.destination.join().expect("a good end");
}

#[test]
fn guest_continues_here_if_pages_differ_and_the_error_names_them() {
    let scene = verifying(ready(differs(verified(PAGES, &[3, PAGES - 1]))));
    let why = expect_back(scene);
    assert!(why.contains("2 of 512 pages"), "{why}");
    assert!(
        why.contains("page 3 of region guest0.ram, page 511 of region guest0.ram"),
        "{why}"
    );
}

#[test]
fn guest_continues_here_if_fewer_pages_were_compared_than_it_has() {
    let scene = verifying(ready(differs(verified(PAGES - 1, &[]))));
    let why = expect_back(scene);
    assert!(why.contains("511 pages"), "{why}");
}

/// A destination that answers the offer with this READY, and expects ABORT. Returns why the guest stays.
fn refused(verify: bool, is_wanted: bool) -> String {
    let (sender, offered) = mpsc::channel();
    let mut scene = scene(move |mut channel, _, _| {
        let heard = channel.recv_within::<FromSource>(LIMIT).expect("an offer");
        sender.send(heard).expect("a test");
        channel.send(&FromDestination::Ready { rounds: false, verify }).expect("room");
        let heard = channel.recv_within::<FromSource>(LIMIT).expect("a word");
        assert!(matches!(heard, FromSource::Abort { .. }), "{heard:?}");
    });
    at_the_beginning(&mut scene);
    if is_wanted {
        scene = verifying(scene);
    }
    let offer = offer_of(&scene.migration.record, &[], String::new(), false, false, is_wanted);
    let first = scene.migration.offer(&offer);
    let failure = scene.migration.run_until(first, |_| false).expect_err("no move");
    assert!(matches!(failure, Error::AtSource(_)), "{failure:?}");
    let heard = offered.recv().expect("an offer");
    assert!(
        matches!(heard, FromSource::Offer { verify, .. } if verify == is_wanted),
        "{heard:?}"
    );
    assert!(!scene.qemu.has_heard("migrate"), "the guest was not stopped");
    scene.destination.join().expect("a good end");
    chain(&failure)
}

#[test]
fn destination_that_cannot_compare_is_refused_before_the_guest_stops() {
    let why = refused(false, true);
    assert!(why.contains("--verify") && why.contains("older"), "{why}");
}

#[test]
fn comparison_that_was_not_offered_is_out_of_order() {
    let why = refused(true, false);
    assert!(why.contains("out of order"), "{why}");
}
