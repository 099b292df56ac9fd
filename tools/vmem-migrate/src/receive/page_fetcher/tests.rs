// SPDX-License-Identifier: GPL-2.0-or-later
//! What the page fetcher does when a vmemd ends.

use std::path::Path;
use std::sync::atomic::AtomicU32;

use rustix::process::Signal;
use tempfile::TempDir;
use vmem_process::Process;

use super::*;
use crate::daemon::fake::shell;
use crate::receive::regions::State as Look;

const TIMEOUT: Duration = Duration::from_secs(20);

#[test]
fn only_final_exit_codes_prevent_a_restart() {
    let exited = |code: i32| Exit::of(Some(code));
    assert_eq!(
        [0, 2, 4, 7].map(exited),
        [Exit::Complete, Exit::SourceLost, Exit::Unreadable, Exit::OtherMemory]
    );
    for code in [1, 3, 5, 6, 101] {
        assert_eq!(exited(code), Exit::Again, "{code}");
    }
    assert_eq!(Exit::of(None), Exit::Again, "killed, or not started");
}

/// Fake regions, and the number of attempts to start a vmemd for them. Each attempt fails.
#[derive(Clone, Default)]
struct Scene {
    plain: Arc<AtomicBool>,
    started: Arc<AtomicU32>,
}

impl Scene {
    fn pages(&self, first: Initial, keep: bool) -> PageFetcher {
        let scene = self.clone();
        let regions = Regions::fake(move || Look {
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
        PageFetcher::supervise(start, regions, LossPolicy::Retry, first, keep).expect("a thread")
    }

    fn started(&self) -> u32 {
        self.started.load(Ordering::SeqCst)
    }
}

const SESSION: &str = "0123456789abcdef";

/// A vmemd that an earlier `receive` has left.
struct Left {
    _directory: TempDir,
    process: Process,
}

impl Left {
    /// Starts a fake vmemd with this script. Returns it, and the daemon that has taken it over.
    fn new(script: &str) -> (Self, Initial) {
        let directory = tempfile::tempdir().expect("a directory");
        let state_dir = StateDir::new(directory.path(), "in", "guest0").expect("a state directory");
        let mut daemon = Daemon::spawn(Path::new("sh"), &shell(script), SESSION, &state_dir).expect("a process");
        let is_ready = |said: &DaemonEvent| match said {
            DaemonEvent::Event(event) => matches!(event, DaemonReport::Listening { .. }).then_some(()),
            DaemonEvent::Status(status) => status.listening.map(drop),
            _ => None,
        };
        daemon.wait_for(TIMEOUT, is_ready).expect("it is ready");
        let number = daemon.held().first().number();
        drop(daemon);
        let left = Self {
            _directory: directory,
            process: Process::open(number).expect("it lives"),
        };
        let daemon = Daemon::take_over(SESSION, Duty::Fetch, &state_dir)
            .expect("it can be found out")
            .expect("it is left");
        (left, Initial::Running(daemon))
    }

    fn end(&self) {
        self.process.signal(Signal::KILL);
        assert!(self.process.wait(TIMEOUT));
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        self.process.signal(Signal::KILL);
    }
}

fn cause(pages: &mut PageFetcher) -> String {
    match pages.news(TIMEOUT) {
        Some(News::Trouble(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn failed_start_of_vmemd_is_retried_with_growing_pauses() {
    let mut pages = Scene::default().pages(Initial::Missing, true);
    let why = "vmemd was not ready within 5 s; started again";
    assert_eq!(cause(&mut pages), why);
    assert_eq!(cause(&mut pages), format!("{why} in 1 s"));
    assert_eq!(cause(&mut pages), format!("{why} in 2 s"));
    pages.stop();
}

#[test]
fn left_vmemd_is_taken_over_and_restarted_when_it_ends() {
    let (scene, (left, first)) = (Scene::default(), Left::new("fetch; ready; serve"));
    let mut pages = scene.pages(first, true);
    assert!(matches!(pages.news(TIMEOUT), Some(News::Flow)), "it has reached the source");
    assert!(pages.news(Duration::from_millis(500)).is_none());
    assert_eq!(scene.started(), 0);
    left.end();
    assert!(cause(&mut pages).contains("has ended; started again"));
    cause(&mut pages);
    assert!(scene.started() > 0);
}

#[test]
fn vmemd_is_not_restarted_before_keep() {
    let (scene, (left, first)) = (Scene::default(), Left::new("fetch; ready; serve"));
    let mut pages = scene.pages(first, false);
    pages.reports().expect("it lives");
    left.end();
    let until = Instant::now() + TIMEOUT;
    while pages.reports().is_ok() {
        assert!(Instant::now() < until);
    }
    thread::sleep(Duration::from_millis(200));
    assert_eq!(scene.started(), 0);
    pages.keep();
    cause(&mut pages);
    assert!(scene.started() > 0, "now the guest needs one");
}

#[test]
fn vmemd_is_not_restarted_if_memory_is_plain() {
    let (scene, (left, first)) = (Scene::default(), Left::new("fetch; ready; serve"));
    let mut pages = scene.pages(first, true);
    assert!(matches!(pages.news(TIMEOUT), Some(News::Flow)));
    scene.plain.store(true, Ordering::SeqCst);
    left.end();
    assert!(matches!(pages.news(TIMEOUT), Some(News::Ended(End::Complete(Value::Null)))));
    assert!(pages.news(Duration::from_millis(100)).is_none());
    assert_eq!(scene.started(), 0);
}

#[test]
fn vmemd_that_has_all_pages_before_keep_is_no_failure_and_its_end_is_reported_later() {
    let scene = Scene::default();
    let (_left, first) = Left::new("fetch; ready; order; end 0");
    let mut pages = scene.pages(first, false);
    pages.reports().expect("it lives");
    scene.plain.store(true, Ordering::SeqCst);
    pages.release();
    let until = Instant::now() + TIMEOUT;
    while pages.over.is_none() {
        assert!(Instant::now() < until);
        pages.reports().expect("all pages are here");
    }
    pages.reports().expect("all pages are here");
    pages.keep();
    assert!(matches!(pages.news(TIMEOUT), Some(News::Ended(End::Complete(_)))));
    assert_eq!(scene.started(), 0);
}

#[test]
fn vmemd_that_claims_to_have_all_pages_before_keep_is_a_failure() {
    let scene = Scene::default();
    let (_left, first) = Left::new("fetch; ready; order; end 0");
    let mut pages = scene.pages(first, false);
    pages.release();
    let until = Instant::now() + TIMEOUT;
    while pages.reports().is_ok() {
        assert!(Instant::now() < until);
    }
}

#[test]
fn left_vmemd_reports_its_end() {
    let scene = Scene::default();
    let (_left, first) = Left::new("fetch; ready; order; end 0");
    let mut pages = scene.pages(first, true);
    assert!(matches!(pages.news(TIMEOUT), Some(News::Flow)));
    scene.plain.store(true, Ordering::SeqCst);
    pages.release();
    let mut told = Vec::new();
    let end = loop {
        match pages.news(TIMEOUT) {
            Some(News::DaemonReport(event)) => told.push(event),
            Some(News::Ended(end)) => break end,
            other => panic!("{other:?}"),
        }
    };
    assert!(told.contains(&crate::daemon::fake::said("release")), "{told:?}");
    let End::Complete(summary) = end else { panic!("{end:?}") };
    assert_eq!(summary["event"], "end", "with its last figures: {summary}");
    assert_eq!(scene.started(), 0);
}

#[test]
fn source_loss_of_a_left_vmemd_is_reported() {
    let scene = Scene::default();
    let (_left, first) = Left::new("fetch; ready; order; end 2");
    let mut pages = scene.pages(first, true);
    pages.release();
    let lost = loop {
        match pages.news(TIMEOUT) {
            Some(News::DaemonReport(_) | News::Flow) => {}
            other => break other,
        }
    };
    assert!(matches!(lost, Some(News::SourceLost(_))), "{lost:?}");
    pages.stop();
}

/// The source destroys its copy of the memory when it hears that the memory is complete.
#[test]
fn vmemd_that_reports_completion_of_incomplete_regions_is_restarted() {
    let scene = Scene::default();
    let (_left, first) = Left::new("fetch; ready; order; end 0");
    let mut pages = scene.pages(first, true);
    assert!(matches!(pages.news(TIMEOUT), Some(News::Flow)));
    pages.release();
    let trouble = loop {
        match pages.news(TIMEOUT) {
            Some(News::DaemonReport(_)) => {}
            Some(News::Trouble(trouble)) => break trouble,
            other => panic!("{other:?}"),
        }
    };
    assert!(trouble.contains("started again"), "{trouble}");
}

#[test]
fn vmemd_that_completes_all_memory_before_keep_is_no_failure() {
    let scene = Scene::default();
    let (left, first) = Left::new("fetch; ready; order; end 0");
    let mut pages = scene.pages(first, false);
    scene.plain.store(true, Ordering::SeqCst);
    pages.release();
    assert!(left.process.wait(TIMEOUT));
    let until = Instant::now() + TIMEOUT;
    let is_end = |report: &DaemonReport| matches!(report, DaemonReport::End { .. });
    while !pages.reports().expect("no failure").iter().any(is_end) {
        assert!(Instant::now() < until, "it has not said that it ends");
    }
    thread::sleep(Duration::from_millis(200));
    pages.reports().expect("no failure");
    pages.keep();
    assert!(matches!(pages.news(TIMEOUT), Some(News::Ended(End::Complete(_)))));
    assert_eq!(scene.started(), 0);
}

#[test]
fn reports_of_a_vmemd_that_has_ended_come_before_its_failure() {
    let scene = Scene::default();
    let (left, first) = Left::new("fetch; ready; order; end 8");
    let mut pages = scene.pages(first, false);
    pages.release();
    assert!(left.process.wait(TIMEOUT));
    // Until the supervisor has noticed its end.
    thread::sleep(Duration::from_secs(2));
    let reports = pages.reports().expect("what it has said");
    assert!(reports.contains(&crate::daemon::fake::said("release")), "{reports:?}");
    pages.reports().expect_err("it has ended");
    assert_eq!(scene.started(), 0);
}
