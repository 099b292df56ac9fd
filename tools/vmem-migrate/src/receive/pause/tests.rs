// SPDX-License-Identifier: GPL-2.0-or-later
//! Loss and return of the source, while QEMU cannot always answer.

use std::time::Instant;

use tempfile::TempDir;
use vmem_qemu::{Process, QemuProcess};

use super::*;
use crate::fake;
use crate::receive::regions::{Regions, State};

/// How long QEMU may take for a command.
const COMMAND: Duration = Duration::from_millis(200);

const TIMEOUT: Duration = Duration::from_secs(20);

struct Scene {
    _directory: TempDir,
    qemu: fake::Qemu,
    state_dir: StateDir,
    pauser: Pauser,
}

/// A guest that runs here. `paused`: an earlier `receive` has recorded that it sent `stop`.
fn scene(status: &'static str, paused: bool) -> Scene {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("qmp");
    let qemu = fake::Qemu::start(&path, status, "completed");
    let state_dir = StateDir::new(directory.path(), "in", "guest0").expect("a state directory");
    if paused {
        fs::write(state_dir.path(PAUSED), "").expect("a file");
    }
    let inside = qemu.clone();
    let regions = Regions::fake(move || State {
        exist: true,
        mapped: inside.lives(),
        plain: false,
        attached: true,
        present: 0,
    });
    let process = QemuProcess::from(Process::open(qemu.pid()).expect("a process"));
    let monitor = Monitor::new(path, None, Some(process), regions, COMMAND);
    let pauser = Pauser::start(monitor, None, &state_dir).expect("a thread");
    Scene {
        _directory: directory,
        qemu,
        state_dir,
        pauser,
    }
}

impl Scene {
    fn is_noted(&self) -> bool {
        self.state_dir.path(PAUSED).exists()
    }

    fn wait(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let until = Instant::now() + TIMEOUT;
        while !is(self) {
            assert!(Instant::now() < until, "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_status(&self, status: &str) {
        self.wait(status, |scene| scene.qemu.state().status == status);
    }

    fn wait_heard(&self, command: &str) {
        self.wait(command, |scene| scene.qemu.has_heard(command));
    }
}

#[test]
fn guest_is_paused_while_its_source_is_lost() {
    let scene = scene("running", false);
    scene.pauser.source_gone();
    scene.wait_status("paused");
    assert!(scene.is_noted(), "for whoever takes this up");
    scene.pauser.source_back();
    scene.wait_status("running");
    scene.wait("nothing is noted", |scene| !scene.is_noted());
}

/// QEMU receives `stop` while its main loop waits for a page, and executes it when the source is back.
#[test]
fn late_stop_is_followed_by_cont_when_the_source_is_back() {
    let scene = scene("running", false);
    scene.qemu.state().blocks_at = "stop";
    scene.pauser.source_gone();
    scene.wait("stop is sent", |scene| scene.qemu.state().blocked);
    thread::sleep(2 * COMMAND);
    assert!(scene.is_noted(), "before the command is answered");
    // During an outage, each failed attempt to reconnect reports the loss again.
    scene.pauser.source_gone();
    scene.qemu.state().blocked = false;
    scene.pauser.source_back();
    scene.wait_heard("cont");
    scene.wait_status("running");
    scene.wait("nothing is noted", |scene| !scene.is_noted());
    let stops = scene.qemu.state().heard.iter().filter(|heard| *heard == "stop").count();
    assert_eq!(stops, 1, "one is not followed by others");
}

#[test]
fn guest_of_a_blocked_qemu_continues_when_the_source_is_back() {
    let scene = scene("running", false);
    scene.qemu.state().blocked = true;
    scene.pauser.source_gone();
    thread::sleep(3 * COMMAND);
    scene.pauser.source_back();
    scene.qemu.state().blocked = false;
    thread::sleep(4 * POLL_INTERVAL);
    assert_eq!(scene.qemu.state().status, "running");
    assert!(!scene.is_noted());
}

#[test]
fn guest_that_another_client_paused_stays_paused() {
    let scene = scene("paused", false);
    scene.pauser.source_gone();
    scene.wait_heard("query-status");
    scene.pauser.source_back();
    thread::sleep(4 * POLL_INTERVAL);
    assert!(!scene.qemu.has_heard("cont") && !scene.qemu.has_heard("stop"));
}

#[test]
fn guest_that_an_earlier_receive_paused_continues_when_the_source_is_back() {
    let scene = scene("paused", true);
    thread::sleep(2 * POLL_INTERVAL);
    assert!(!scene.qemu.has_heard("cont"), "nobody has said that it is");
    scene.pauser.source_back();
    scene.wait_status("running");
}

#[test]
fn paused_guest_continues_and_the_socket_closes_when_all_pages_are_present() {
    let scene = scene("paused", true);
    scene.pauser.finish();
    let until = Instant::now() + TIMEOUT;
    while scene.pauser.news_within(until - Instant::now()) != Some(News::Finished) {}
    assert_eq!(scene.qemu.state().status, "running");
    // QEMU talks to one client at a time.
    scene.wait("the socket is free", |scene| {
        Qmp::connect(&scene._directory.path().join("qmp"), COMMAND).is_ok()
    });
}

#[test]
fn closed_connection_does_not_mean_that_qemu_has_ended() {
    let scene = scene("running", false);
    scene.qemu.state().hangs_up_at = "query-status";
    scene.pauser.source_gone();
    scene.wait_status("paused");
    let news: Vec<News> = std::iter::from_fn(|| scene.pauser.news()).collect();
    assert!(!news.contains(&News::Gone), "{news:?}");
}

#[test]
fn permanent_source_loss_is_reported_for_a_paused_guest() {
    let scene = scene("running", false);
    let note = || match scene.pauser.news_within(TIMEOUT) {
        Some(News::Note(text)) => text,
        other => panic!("{other:?}"),
    };
    scene.pauser.source_gone();
    assert_eq!(note(), "the guest is paused until the source is back");
    scene.pauser.source_lost();
    assert_eq!(note(), "the guest is paused for good");
}

#[test]
fn end_of_qemu_is_reported() {
    let scene = scene("running", false);
    scene.qemu.state().dies_of = "query-status";
    scene.pauser.source_gone();
    let until = Instant::now() + TIMEOUT;
    while scene.pauser.news_within(until - Instant::now()) != Some(News::Gone) {}
}
