// SPDX-License-Identifier: GPL-2.0
//! A vmemd that this program has started. It outlives this program, whatever that ends of.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::record::Place;

/// The file with the number of the latest vmemd's process.
const PID: &str = "vmemd.pid";

/// vmemd cannot be started, or ended at once.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    #[error("cannot start {}", .0.display())]
    Start(PathBuf, #[source] io::Error),
    #[error("vmemd ended ({status}): {last}")]
    Ended { status: String, last: String },
    #[error("vmemd was not ready within {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// What a vmemd says and how it ends.
#[derive(Debug)]
pub(crate) enum Says {
    /// A line of its standard output.
    Line(String),
    /// It has ended.
    Ended(ExitStatus),
}

/// A running vmemd.
pub(crate) struct Daemon {
    pid: Pid,
    orders: Option<ChildStdin>,
    says: Receiver<Says>,
    log: PathBuf,
}

impl Daemon {
    /// Starts vmemd with these arguments. What it says on standard error is in `place`, and so is the number of its process, for whoever
    /// comes after this program.
    pub(crate) fn start(arguments: &[String], place: &Place) -> Result<Self, DaemonError> {
        let program = program();
        let failed = |error| DaemonError::Start(program.clone(), error);
        let log = place.path("vmemd.log");
        let errors = File::options().create(true).append(true).open(&log).map_err(failed)?;
        let mut child = Command::new(&program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            // The terminal's signals are not for it.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        if let Err(error) = std::fs::write(place.path(PID), child.id().to_string()) {
            // Nobody could find it later.
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(error));
        }
        let orders = child.stdin.take();
        let (sender, says) = channel();
        let pid = Pid::from_child(&child);
        thread::Builder::new()
            .name("vmemd".to_owned())
            .spawn(move || listen(child, &sender))
            .map_err(failed)?;
        Ok(Self { pid, orders, says, log })
    }

    /// What it says next, if it does so within `limit`.
    pub(crate) fn hear(&mut self, limit: Duration) -> Option<Says> {
        match self.says.recv_timeout(limit) {
            Ok(says) => Some(says),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
        }
    }

    /// Waits for the line of its standard output that `wanted` makes something of.
    pub(crate) fn wait_for<T>(&mut self, limit: Duration, wanted: impl Fn(&str) -> Option<T>) -> Result<T, DaemonError> {
        loop {
            match self.hear(limit) {
                Some(Says::Line(line)) => {
                    if let Some(found) = wanted(&line) {
                        return Ok(found);
                    }
                }
                Some(Says::Ended(status)) => return Err(self.ended(status)),
                None => return Err(DaemonError::TimedOut(limit)),
            }
        }
    }

    /// Gives it an order on standard input.
    pub(crate) fn order(&mut self, word: &str) {
        if let Some(orders) = &mut self.orders {
            // If it has ended, that is heard.
            let _ = writeln!(orders, "{word}");
        }
    }

    /// There will be no more orders.
    pub(crate) fn no_more_orders(&mut self) {
        self.orders = None;
    }

    /// Asks it to end.
    pub(crate) fn stop(&mut self) {
        self.no_more_orders();
        // It may have ended. Its number is not another's as long as its end has not been heard.
        let _ = kill_process(self.pid, Signal::TERM);
    }

    /// Why it ended, with the last line of its log.
    pub(crate) fn ended(&self, status: ExitStatus) -> DaemonError {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let last = text.lines().last().unwrap_or_default();
        DaemonError::Ended {
            status: status.to_string(),
            last: last.strip_prefix("vmemd: ").unwrap_or(last).to_owned(),
        }
    }
}

fn listen(mut child: Child, sender: &Sender<Says>) {
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // Who does not listen any more has no use for it.
            let _ = sender.send(Says::Line(line));
        }
    }
    if let Ok(status) = child.wait() {
        let _ = sender.send(Says::Ended(status));
    }
}

/// The vmemd beside this program, or the one that `VMEMD` names.
fn program() -> PathBuf {
    let beside = || std::env::current_exe().ok().map(|path| path.with_file_name("vmemd"));
    std::env::var_os("VMEMD")
        .map(PathBuf::from)
        .or_else(|| beside().filter(|path| path.exists()))
        .unwrap_or_else(|| PathBuf::from("vmemd"))
}

/// A line of `vmemd --json`, if it is of this event.
pub(crate) fn event(line: &str, name: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(line).ok()?;
    (value.get("event")?.as_str()? == name).then_some(value)
}

/// Ends the vmemd that an earlier vmemctl has left behind in `place`, if its number is still its. Returns when it has let go of
/// everything.
pub(crate) fn end_left_over(place: &Place) {
    const PATIENCE: Duration = Duration::from_secs(2);
    const PAUSE: Duration = Duration::from_millis(20);
    let number = std::fs::read_to_string(place.path(PID)).unwrap_or_default();
    let Ok(pid) = number.parse() else { return };
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let is_vmemd = || std::fs::read_to_string(directory.join("comm")).is_ok_and(|name| name.trim() == "vmemd");
    // A zombie has let go of everything.
    let is_alive = || is_vmemd() && std::fs::read_link(directory.join("exe")).is_ok();
    for signal in [Signal::TERM, Signal::KILL] {
        let Some(pid) = Pid::from_raw(pid).filter(|_| is_alive()) else {
            return;
        };
        // It may be ending by itself.
        let _ = kill_process(pid, signal);
        let until = Instant::now() + PATIENCE;
        while is_alive() && Instant::now() < until {
            thread::sleep(PAUSE);
        }
    }
}
