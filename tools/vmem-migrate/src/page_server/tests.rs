// SPDX-License-Identifier: GPL-2.0-or-later
//! A page server that continues what an earlier vmemctl served. The vmemd is a fake.

use std::fs;
use std::path::Path;
use std::thread::sleep;

use super::*;
use crate::daemon::fake::shell;

const SESSION: &str = "0123456789abcdef0123456789abcdef";
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn supervision_that_cannot_begin_is_tried_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let state_dir = StateDir::new(directory.path(), "out", "guest0").expect("a state directory");
    // An earlier vmemctl has left it. It ends when it has its order.
    let mut left = Daemon::spawn(Path::new("sh"), &shell("ready; order; end 2"), SESSION, &state_dir).expect("a process");
    left.wait_for(LIMIT, listens).expect("it is ready");
    drop(left);
    let (record, aside) = (state_dir.path("vmemd.pid"), state_dir.path("aside"));
    fs::rename(&record, &aside).expect("a record");
    fs::create_dir(&record).expect("a directory");

    let mut pages = PageServer::again(&[], Vec::new(), SESSION, &state_dir);
    let news = pages.news();
    let [News::Note(why)] = &news[..] else { panic!("{news:?}") };
    assert!(why.ends_with("; tried again in 1 s"), "{why}");
    pages.release();
    assert!(pages.news().is_empty(), "it is tried again at once");

    fs::remove_dir(&record).expect("a directory");
    fs::rename(&aside, &record).expect("a record");
    let until = Instant::now() + LIMIT;
    while !pages.news().iter().any(|news| matches!(news, News::Ended(_))) {
        assert!(Instant::now() < until, "it has not had its order");
        sleep(Duration::from_millis(10));
    }
    pages.stop();
}
