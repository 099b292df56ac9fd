// SPDX-License-Identifier: GPL-2.0-or-later
//! A stopped terminal, for tests: a process whose standard output and standard error are full, and that no process reads.

use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

/// This variable is set in that process.
const MARK: &str = "VMEMCTL_TEST_UNREAD";

/// How long the process may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs `body` in such a process, which must succeed. `test` is the path of the calling test, which the process executes.
pub(crate) fn run(test: &str, body: impl FnOnce()) {
    if std::env::var_os(MARK).is_some() {
        vmem_cli::log::init(vmem_cli::log::Verbosity::default());
        fill(std::io::stdout());
        fill(std::io::stderr());
        body();
        // The test harness would wait for a reader.
        std::process::exit(0);
    }
    let test = test.split_once("::").map_or(test, |(_, test)| test);
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args([test, "--exact", "--nocapture"])
        .env(MARK, "")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a process");
    let until = Instant::now() + TIMEOUT;
    let status = loop {
        match child.try_wait().expect("a process") {
            Some(status) => break status,
            None if Instant::now() < until => sleep(Duration::from_millis(20)),
            None => {
                child.kill().expect("a process");
                break child.wait().expect("a process");
            }
        }
    };
    assert!(status.success(), "{test} waits for its reader, or fails: {status}");
}

/// Writes until the pipe is full.
fn fill(stream: impl AsFd) {
    let flags = fcntl_getfl(&stream).expect("a pipe");
    fcntl_setfl(&stream, flags | OFlags::NONBLOCK).expect("a pipe");
    for length in [4096, 1] {
        while rustix::io::write(&stream, &vec![b'x'; length]).is_ok() {}
    }
    assert_eq!(rustix::io::write(&stream, b"x"), Err(Errno::AGAIN));
    fcntl_setfl(&stream, flags).expect("a pipe");
}
