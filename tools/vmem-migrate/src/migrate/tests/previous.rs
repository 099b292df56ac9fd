// SPDX-License-Identifier: GPL-2.0-or-later
//! The guest moves to a host with a vmemctl of the version before.

use vmem_qemu::MemoryBackend;

use super::*;
use crate::previous::{self, Side};

#[test]
fn guest_moves_to_a_destination_of_the_version_before() {
    let mut scene = scene_with(|listener, _| {
        previous::play(Side::Destination, || listener.accept().expect("a connection").0);
    });
    at_the_beginning(&mut scene);
    scene.migration.retry = Duration::ZERO;
    let event = |status: &str| json!({"event": "MIGRATION", "data": {"status": status}});
    scene.qemu.state().says = vec![("migrate", event("pre-switchover")), ("migrate-continue", event("completed"))];
    let memory = MemoryBackend {
        id: "ram".to_owned(),
        bytes: 4096,
        path: "/dev/vmem/guest0.ram".into(),
    };
    let offer = offer_of(&scene.migration.record, &[memory], "8636".to_owned(), false, false, false);
    let first = scene.migration.offer(&offer);
    let moved = scene.migration.run_until(first, |_| false);
    // The fixture says why if a message was not understood.
    scene.destination.join().expect("a good end");
    moved.expect("the guest is there");
    assert!(scene.migration.export.is_released());
    assert!(scene.qemu.has_heard("quit") && !scene.qemu.has_heard("cont"));
    assert_eq!(noted(scene.directory.path().into()), None, "the move is forgotten");
}
