// SPDX-License-Identifier: GPL-2.0-or-later
//! A vmemd that fills regions from a store, started again whenever it ends before they are complete.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use std::os::unix::process::CommandExt;

use rustix::process::Signal;
use vmem::FilesOption;
use vmem_cli::Signals;
use vmem_control::Event;
use vmem_process::{Process, scope};
use vmem_store::UserKey;
use vmem_store_source::Address;

use crate::error::Error;

/// The longest line of vmemd that is accepted, in bytes.
const LONGEST: u64 = 1 << 20;

/// Events that wait to be read. vmemd drops what is not taken in time.
const QUEUE: usize = 256;

/// The pause before a vmemd is started again.
const PAUSE: Duration = Duration::from_secs(2);

/// How long a vmemd may take to end that was asked to.
const END: Duration = Duration::from_secs(10);

/// How long a vmemd may take to make the regions.
const START: Duration = Duration::from_secs(60);

/// How often signals are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What a vmemd's exit code means (vmemd(8)).
const COMPLETE: i32 = 0;
const LOCAL: i32 = 1;
const UNUSABLE: i32 = 3;
const UNREADABLE: i32 = 4;
const KERNEL: i32 = 5;
const OTHER_MEMORY: i32 = 7;

/// What happens to the pages.
#[derive(Debug)]
pub(crate) enum News {
    /// An event of vmemd.
    Event(Event),
    /// vmemd has ended, and another one is started.
    Restarted(String),
    /// vmemd has ended, and another one cannot be started yet.
    NotRestarted(String),
    /// All pages are present.
    Complete,
    /// The pages will not all be present.
    Failed(String),
}

/// How a vmemd is started.
#[derive(Clone)]
pub(crate) struct Command {
    pub(crate) program: PathBuf,
    /// All of its arguments but those that say whether the regions exist.
    pub(crate) arguments: Vec<String>,
    /// Arguments that say how regions are made, which the next vmemd finds.
    pub(crate) of_new_regions: Vec<String>,
    /// Becomes a part of the name of its scope.
    pub(crate) name: String,
    /// The key of the store. vmemd gets it over its standard input: other users can read the arguments of a process, and its environment stays
    /// in its children.
    pub(crate) key: Option<UserKey>,
}

/// The vmemd of a restore.
pub(crate) struct Filler {
    command: Command,
    child: Child,
    process: Process,
    events: Receiver<Event>,
    /// The regions were ready once: the next vmemd goes on with them.
    was_ready: bool,
}

impl Filler {
    /// Starts a vmemd that makes the regions.
    pub(crate) fn start(command: Command) -> Result<Self, Error> {
        let (child, process, events) = spawn(&command, false)?;
        Ok(Self {
            command,
            child,
            process,
            events,
            was_ready: false,
        })
    }

    /// The process ID of vmemd.
    pub(crate) fn pid(&self) -> i32 {
        self.process.number()
    }

    /// What happens next, if something does within `limit`.
    pub(crate) fn news(&mut self, limit: Duration) -> Result<Option<News>, Error> {
        match self.events.recv_timeout(limit) {
            Ok(event) => {
                self.was_ready |= matches!(event, Event::Ready { .. });
                Ok(Some(News::Event(event)))
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait().map_err(vmem_cli::Error::call("cannot wait for vmemd"))?;
                let why = format!("vmemd has ended ({status})");
                match status.code() {
                    Some(COMPLETE) => Ok(Some(News::Complete)),
                    Some(UNREADABLE) => Ok(Some(News::Failed(format!(
                        "{why}: pages of the checkpoint cannot be read; a touch of them is an error for the guest"
                    )))),
                    Some(LOCAL | UNUSABLE | KERNEL | OTHER_MEMORY) => Ok(Some(News::Failed(why))),
                    _ if !self.was_ready => Ok(Some(News::Failed(why))),
                    // The store is away, or vmemd was killed. The guest waits for its pages, for as long as it takes.
                    _ => {
                        thread::sleep(PAUSE);
                        match spawn(&self.command, true) {
                            Ok(next) => {
                                (self.child, self.process, self.events) = next;
                                Ok(Some(News::Restarted(why)))
                            }
                            // Memory or processes may be short for a while. The next call comes here again.
                            Err(error) => Ok(Some(News::NotRestarted(format!("{why}; {}", vmem_cli::chain(&error))))),
                        }
                    }
                }
            }
        }
    }

    /// Ends vmemd: nobody needs the regions.
    pub(crate) fn stop(mut self) {
        self.process.signal(Signal::TERM);
        let until = Instant::now() + END;
        if !self.process.wait(until.saturating_duration_since(Instant::now())) {
            self.process.signal(Signal::KILL);
        }
        // It has ended, or is about to.
        let _ = self.child.wait();
    }
}

/// Waits until the regions exist.
pub(crate) fn wait_ready(filler: &mut Filler, signals: &Signals) -> Result<(), Error> {
    let until = Instant::now() + START;
    loop {
        signals.check()?;
        match filler.news(POLL_INTERVAL)? {
            Some(News::Event(Event::Ready { .. }) | News::Complete) => return Ok(()),
            Some(News::Failed(why) | News::Restarted(why) | News::NotRestarted(why)) => return Err(Error::other(why)),
            Some(News::Event(_)) | None => {}
        }
        if Instant::now() >= until {
            return Err(Error::other(format!(
                "vmemd has not made the regions within {} s",
                START.as_secs()
            )));
        }
    }
}

/// The arguments of a vmemd that fills a region for each memory of a checkpoint.
pub(crate) fn arguments(address: &Address, regions: &[(String, String)], has_key: bool) -> Vec<String> {
    let mut all = vec!["--source".to_owned(), format!("checkpoint:{address}")];
    for (memory, region) in regions {
        all.extend(["--region".to_owned(), format!("{memory}={region}")]);
    }
    if has_key {
        all.extend(["--key-file".to_owned(), "-".to_owned()]);
    }
    all
}

/// The arguments of vmemd that say where programs find the regions.
pub(crate) fn files(option: &FilesOption) -> Vec<String> {
    let argument = option.argument().into_iter();
    argument.flat_map(|argument| ["--files".to_owned(), argument]).collect()
}

/// The arguments of a vmemd that makes the regions of a guest.
pub(crate) fn of_new_regions() -> Vec<String> {
    // With poison, a touch of a page that is lost ends a process in the guest. Without it, the touch ends the guest.
    let has_poison = vmem::Control::open()
        .and_then(|control| control.features())
        .is_ok_and(|features| features.poison);
    match has_poison {
        true => ["--on-unreadable", "poison"].map(str::to_owned).to_vec(),
        false => Vec::new(),
    }
}

fn spawn(command: &Command, resume: bool) -> Result<(Child, Process, Receiver<Event>), Error> {
    let failed = || vmem_cli::Error::call(format!("cannot start {}", command.program.display()));
    let mut child = scope::command(&command.program, "vmemd", &command.name)
        .args(&command.arguments)
        .args(resume.then_some("--resume"))
        .args(command.of_new_regions.iter().filter(|_| !resume))
        .arg("--json")
        .stdin(if command.key.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        // vmemd outlives this program. A process group of its own keeps signals of the terminal from vmemd.
        .process_group(0)
        .spawn()
        .map_err(failed())?;
    if let (Some(key), Some(mut input)) = (&command.key, child.stdin.take()) {
        // It fits into the pipe, so this does not wait. If vmemd has ended, its exit code says why.
        let _ = input.write_all(key.to_text().as_bytes());
    }
    let (sender, events) = sync_channel(QUEUE);
    let process = Process::of_child(&child).map_err(failed());
    let output = child.stdout.take();
    let reader = thread::Builder::new().name("vmemd".to_owned());
    let reading = reader.spawn(move || {
        let mut lines = output.map(BufReader::new);
        while let Some(event) = lines.as_mut().and_then(next) {
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    match (process, reading) {
        (Ok(process), Ok(_)) => Ok((child, process, events)),
        (process, reading) => {
            // Nobody would know what becomes of it.
            let _ = child.kill();
            let _ = child.wait();
            process?;
            reading.map_err(Error::Thread)?;
            Err(Error::other("vmemd cannot be watched"))
        }
    }
}

/// The next event of vmemd; what else it says is skipped. `None` at the end.
fn next(lines: &mut BufReader<ChildStdout>) -> Option<Event> {
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.take(LONGEST).read_until(b'\n', &mut line) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return None,
            Ok(_) => match serde_json::from_slice(&line) {
                Ok(event) => return Some(event),
                Err(error) => tracing::warn!("vmemd has sent a line that is no event: {error}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn key() -> UserKey {
        UserKey::from_bytes(&[0x5a; 32]).expect("32 bytes")
    }

    /// A script instead of vmemd.
    fn filler(directory: &tempfile::TempDir, script: &str) -> Filler {
        let program = directory.path().join("vmemd");
        std::fs::write(&program, format!("#!/bin/sh\ncd {}\n{script}\n", directory.path().display())).expect("a script");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("a script");
        let command = Command {
            program,
            arguments: vec!["--source".to_owned(), "checkpoint:/srv#guest0@1".to_owned()],
            of_new_regions: vec!["--mode".to_owned()],
            name: "guest0".to_owned(),
            key: Some(key()),
        };
        Filler::start(command).expect("a process")
    }

    const READY: &str = r#"echo '{"event":"ready","source":"s","regions":[]}'"#;

    #[test]
    fn vmemd_that_loses_the_store_is_started_again_with_its_regions() {
        let directory = tempfile::tempdir().expect("a directory");
        let script = format!("cat >> keys\necho \"$@\" >> arguments\n{READY}\n[ $(wc -l < arguments) = 1 ] && exit 2\nexit 0");
        let mut filler = filler(&directory, &script);
        let mut seen = Vec::new();
        loop {
            match filler.news(LONG).expect("news").expect("in time") {
                News::Event(_) => seen.push("event"),
                News::Restarted(why) => {
                    assert!(why.contains("exit status: 2"), "{why}");
                    seen.push("restarted");
                }
                News::Complete => break,
                News::Failed(why) | News::NotRestarted(why) => panic!("{why}"),
            }
        }
        assert_eq!(seen, ["event", "restarted", "event"]);
        let arguments = std::fs::read_to_string(directory.path().join("arguments")).expect("two lines");
        let lines: Vec<_> = arguments.lines().collect();
        assert!(!lines[0].contains("--resume") && lines[1].contains("--resume"), "{arguments}");
        assert!(lines[0].contains("--mode") && !lines[1].contains("--mode"), "{arguments}");
        // Each of them gets the key, and not as an argument.
        let keys = std::fs::read_to_string(directory.path().join("keys")).expect("two keys");
        assert_eq!(keys, "5a".repeat(32) + "\n" + &"5a".repeat(32) + "\n");
        assert!(!arguments.contains("5a5a"), "{arguments}");
    }

    #[test]
    fn vmemd_that_cannot_do_its_work_is_not_started_again() {
        let directory = tempfile::tempdir().expect("a directory");
        for (script, said) in [("exit 3", "3"), ("exit 2", "2"), ("exit 4", "cannot be read")] {
            let mut filler = filler(&directory, script);
            match filler.news(LONG).expect("news") {
                Some(News::Failed(why)) => assert!(why.contains(said), "{why}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn vmemd_that_cannot_be_started_again_yet_is_tried_again() {
        let directory = tempfile::tempdir().expect("a directory");
        // The program is away when it ends.
        let mut filler = filler(&directory, &format!("{READY}\nmv vmemd away\nexit 2"));
        assert!(matches!(filler.news(LONG).expect("news"), Some(News::Event(_))));
        match filler.news(LONG).expect("no error") {
            Some(News::NotRestarted(why)) => assert!(why.contains("exit status: 2") && why.contains("cannot start"), "{why}"),
            other => panic!("{other:?}"),
        }
        std::fs::rename(directory.path().join("away"), directory.path().join("vmemd")).expect("a script");
        assert!(matches!(filler.news(LONG).expect("news"), Some(News::Restarted(_))));
        filler.stop();
    }

    #[test]
    fn line_that_is_no_event_is_skipped() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut filler = filler(&directory, &format!("echo not an event\n{READY}\nexec sleep 1000"));
        assert!(matches!(
            filler.news(LONG).expect("news"),
            Some(News::Event(Event::Ready { .. }))
        ));
        filler.stop();
    }

    #[test]
    fn stopped_vmemd_has_ended() {
        let directory = tempfile::tempdir().expect("a directory");
        let filler = filler(&directory, "exec sleep 1000");
        let process = Process::open(filler.pid()).expect("it runs");
        filler.stop();
        assert!(process.wait(Duration::ZERO));
    }
}
