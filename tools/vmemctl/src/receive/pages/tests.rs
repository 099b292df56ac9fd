// SPDX-License-Identifier: GPL-2.0
//! What follows when a vmemd ends.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::sync::atomic::AtomicU32;

use super::*;
use crate::process::Process;
use crate::receive::regions::State;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn only_what_is_certain_is_not_tried_again() {
    let exited = |code: i32| Exit::of(Some(ExitStatus::from_raw(code << 8)));
    assert_eq!(
        [0, 2, 4, 7].map(exited),
        [Exit::Complete, Exit::SourceLost, Exit::Unreadable, Exit::OtherMemory]
    );
    for code in [1, 3, 5, 6, 101] {
        assert_eq!(exited(code), Exit::Again, "{code}");
    }
    assert_eq!(Exit::of(Some(ExitStatus::from_raw(9))), Exit::Again, "killed");
    assert_eq!(Exit::of(None), Exit::Again, "not started");
}

/// Regions that are plain or not, and how often a vmemd was started for them, in vain.
#[derive(Clone, Default)]
struct Scene {
    plain: Arc<AtomicBool>,
    started: Arc<AtomicU32>,
}

impl Scene {
    fn pages(&self, first: First, keep: bool) -> Pages {
        let scene = self.clone();
        let regions = Regions::fake(move || State {
            exist: true,
            mapped: true,
            plain: scene.plain.load(Ordering::SeqCst),
            attached: true,
            present: 0,
        });
        let started = Arc::clone(&self.started);
        let start = move || {
            started.fetch_add(1, Ordering::SeqCst);
            Err(DaemonError::TimedOut(Duration::from_secs(5)))
        };
        Pages::supervise(start, regions, LossPolicy::Retry, first, keep).expect("a thread")
    }

    fn started(&self) -> u32 {
        self.started.load(Ordering::SeqCst)
    }
}

/// A vmemd that another `receive` has left.
fn left() -> (Child, First) {
    let child = Command::new("sleep").arg("1000").spawn().expect("a process");
    let process = Process::of_child(&child).expect("a process");
    (child, First::Left(process))
}

fn end(mut child: Child) {
    child.kill().expect("a child");
    child.wait().expect("a child");
}

fn trouble(pages: &mut Pages) -> String {
    match pages.news(PATIENCE) {
        Some(News::Trouble(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn vmemd_that_cannot_be_started_is_tried_again() {
    let mut pages = Scene::default().pages(First::Missing, true);
    let why = "vmemd was not ready within 5 s; started again";
    assert_eq!(trouble(&mut pages), why);
    assert_eq!(trouble(&mut pages), format!("{why} in 1 s"));
    assert_eq!(trouble(&mut pages), format!("{why} in 2 s"));
    pages.stop();
}

#[test]
fn vmemd_that_serves_is_left_alone_and_followed_by_another_when_it_ends() {
    let (scene, (child, first)) = (Scene::default(), left());
    let mut pages = scene.pages(first, true);
    assert!(pages.news(Duration::from_millis(500)).is_none());
    assert_eq!(scene.started(), 0);
    end(child);
    assert!(trouble(&mut pages).contains("has ended; started again"));
    trouble(&mut pages);
    assert!(scene.started() > 0);
}

#[test]
fn vmemd_that_ends_before_the_guest_is_here_is_not_started_again_until_it_is() {
    let (scene, (child, first)) = (Scene::default(), left());
    let mut pages = scene.pages(first, false);
    pages.check().expect("it lives");
    end(child);
    let until = Instant::now() + PATIENCE;
    while pages.check().is_ok() {
        assert!(Instant::now() < until);
    }
    thread::sleep(Duration::from_millis(200));
    assert_eq!(scene.started(), 0);
    pages.keep();
    trouble(&mut pages);
    assert!(scene.started() > 0, "now the guest needs one");
}

#[test]
fn memory_that_is_plain_needs_no_vmemd() {
    let (scene, (child, first)) = (Scene::default(), left());
    let mut pages = scene.pages(first, true);
    scene.plain.store(true, Ordering::SeqCst);
    end(child);
    assert!(matches!(pages.news(PATIENCE), Some(News::Ended(End::Complete(Value::Null)))));
    assert!(pages.news(Duration::from_millis(100)).is_none());
    assert_eq!(scene.started(), 0);
}
