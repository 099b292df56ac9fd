// SPDX-License-Identifier: GPL-2.0-or-later
//! QEMU does not answer, or closes its monitor.

use super::*;

/// Adds a present page at intervals, until this is dropped.
fn pages_come(present: &Arc<AtomicU64>) -> impl Drop + use<> {
    struct Trickle(Arc<AtomicU64>);
    impl Drop for Trickle {
        fn drop(&mut self) {
            self.0.store(1, Ordering::SeqCst);
        }
    }
    let over = Arc::new(AtomicU64::new(0));
    let (seen, present) = (Arc::clone(&over), Arc::clone(present));
    std::thread::spawn(move || {
        while seen.load(Ordering::SeqCst) == 0 {
            present.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(COMMAND);
        }
    });
    Trickle(over)
}

/// Unblocks the main loop after a time in which QEMU would have been given up if no page had arrived.
fn unblock_late(qemu: &fake::Qemu) {
    let qemu = qemu.clone();
    std::thread::spawn(move || {
        std::thread::sleep(SILENCE * 2);
        qemu.state().blocked = false;
    });
}

#[test]
fn late_commands_are_awaited_while_pages_arrive() {
    for command in ["query-migrate", "query-status", "cont"] {
        let mut scene = scene(Phase::Committed, "paused", "completed");
        scene.qemu.state().blocks_at = command;
        let pages = pages_come(&scene.present);
        unblock_late(&scene.qemu);
        assert_eq!(scene.finish(), State::Running);
        drop(pages);
        assert_eq!(scene.noted(), Phase::Running, "{command}");
        assert_eq!(scene.qemu.state().status, "running", "{command}");
    }
}

#[test]
fn silent_qemu_is_left_alive_if_no_page_arrives() {
    let mut scene = scene(Phase::Committed, "paused", "completed");
    scene.qemu.state().blocks_at = "cont";
    let ended = scene.finish();
    assert_eq!(ended, State::Left);
    assert_eq!(scene.noted(), Phase::Starting);
    assert!(scene.qemu.lives());
}

#[test]
fn closed_monitor_is_reconnected_while_qemu_lives() {
    for command in ["query-migrate", "query-status", "cont"] {
        let mut scene = scene(Phase::Committed, "paused", "completed");
        scene.qemu.state().hangs_up_at = command;
        assert_eq!(scene.finish(), State::Running);
        assert_eq!(scene.qemu.state().status, "running", "{command}");
    }
}

#[test]
fn qemu_without_socket_counts_as_alive() {
    for (phase, command) in [
        (Phase::Committed, "query-migrate"),
        (Phase::Committed, "query-status"),
        (Phase::Committed, "cont"),
        (Phase::Starting, "query-migrate"),
    ] {
        let mut scene = scene(phase, "paused", "completed");
        scene.qemu.state().leaves_at = command;
        let ended = scene.finish();
        assert_eq!(ended, State::Left, "{phase:?} {command}");
        assert!(scene.qemu.lives());
    }
}

#[test]
fn abort_kills_a_blocked_qemu() {
    let mut scene = scene(Phase::Prepared, "inmigrate", "active");
    scene.qemu.state().blocked = true;
    let qemu = scene.qemu.clone();
    let began = Instant::now();
    assert_eq!(scene.after(Event::Abort), State::Refused);
    assert!(!qemu.lives(), "it could be started later");
    assert!(began.elapsed() < 3 * TIMEOUT);
}
