// SPDX-License-Identifier: GPL-2.0-or-later
//! A guest that stands still by QMP `stop` while its devices are saved, which QEMU does not do by itself then, and that runs on on every path.
//!
//! This process continues the guest. If it cannot, or is killed, a deputy does: a second process that waits at a pipe for the death of this one.

use std::ffi::OsString;
use std::io::Read;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use vmem_qemu::{COMMAND_LIMIT, Qmp, guest};

use crate::deputy::{Deputy, is_needed};
use crate::error::Error;

/// How long a deputy tries to continue the guest.
const DEPUTY: Duration = Duration::from_secs(300);

/// The time between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// A guest that ran and stands still. If this is dropped, the deputy continues the guest.
#[derive(Debug)]
pub(crate) struct Standstill(Option<Deputy>);

impl Standstill {
    /// Stops a guest that runs.
    ///
    /// # Errors
    ///
    /// The deputy cannot be started; those of QEMU. The guest runs, or the deputy continues it.
    pub(crate) fn begin(qmp: &mut Qmp, deputy: &[OsString]) -> Result<Self, Error> {
        let standstill = Self(Deputy::start(deputy)?);
        qmp.execute("stop", json!({}))?;
        Ok(standstill)
    }

    /// Continues the guest.
    ///
    /// # Errors
    ///
    /// [`Error::NotResumed`]; the deputy tries then.
    pub(crate) fn end(mut self, qmp: &mut Qmp) -> Result<(), Error> {
        qmp.execute("cont", json!({})).map_err(Error::NotResumed)?;
        if let Some(deputy) = self.0.take() {
            deputy.dismiss();
        }
        Ok(())
    }
}

/// Waits until the process at the other end of `pipe` has ended, and continues the guest if it has not done so: tries for five minutes, and no
/// longer than there is a QEMU.
///
/// # Errors
///
/// The guest may stand still.
pub fn deputize(pipe: &mut dyn Read, socket: &Path) -> Result<(), Error> {
    if !is_needed(pipe) {
        return Ok(());
    }
    let until = Instant::now() + DEPUTY;
    loop {
        let continued = Qmp::connect(socket, COMMAND_LIMIT).and_then(|mut qmp| match guest::status(&mut qmp)?.as_str() {
            "paused" => qmp.execute("cont", json!({})).map(drop),
            _ => Ok(()),
        });
        match continued {
            // It has ended, and the guest with it.
            Ok(()) | Err(vmem_qemu::Error::Connect { .. }) => return Ok(()),
            Err(_) if Instant::now() < until => thread::sleep(RETRY_INTERVAL),
            Err(error) => return Err(Error::NotResumed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::sync::mpsc::{Receiver, channel};

    use serde_json::Value;

    use super::*;
    use crate::deputy::DONE;

    /// A QEMU that stands still after `stop`, and refuses `cont` so many times.
    fn qemu(refusals: usize) -> (tempfile::TempDir, PathBuf, Receiver<String>) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("qmp");
        let listener = UnixListener::bind(&path).expect("a socket");
        let (sender, receiver) = channel();
        thread::spawn(move || {
            let (mut status, mut refusals) = ("running", refusals);
            for mut client in listener.incoming().map_while(Result::ok) {
                writeln!(client, r#"{{"QMP": {{}}}}"#).expect("room");
                for line in BufReader::new(client.try_clone().expect("a socket"))
                    .lines()
                    .map_while(Result::ok)
                {
                    let command: Value = serde_json::from_str(&line).expect("JSON");
                    let name = command["execute"].as_str().unwrap_or_default().to_owned();
                    let mut answer = json!({"return": {}});
                    match name.as_str() {
                        "stop" => status = "paused",
                        "cont" if refusals > 0 => {
                            refusals -= 1;
                            answer = json!({"error": {"class": "GenericError", "desc": "not now"}});
                        }
                        "cont" => status = "running",
                        "query-status" => answer = json!({"return": {"status": status}}),
                        _ => {}
                    }
                    if matches!(name.as_str(), "stop" | "cont") && sender.send(name).is_err() {
                        return;
                    }
                    let _ = writeln!(client, "{answer}");
                }
            }
        });
        (directory, path, receiver)
    }

    fn connect(path: &Path) -> Qmp {
        Qmp::connect(path, COMMAND_LIMIT).expect("a QEMU")
    }

    #[test]
    fn guest_is_continued_and_its_deputy_dismissed() {
        let (directory, path, commands) = qemu(0);
        let said = directory.path().join("said");
        let deputy = ["sh", "-c", &format!("cat > {}", said.display())].map(OsString::from);
        let mut qmp = connect(&path);
        let standstill = Standstill::begin(&mut qmp, &deputy).expect("a guest that stands still");
        standstill.end(&mut qmp).expect("a guest that runs");
        assert_eq!(std::fs::read(said).expect("a file"), [DONE]);
        assert_eq!(commands.try_iter().collect::<Vec<_>>(), ["stop", "cont"]);
    }

    #[test]
    fn deputy_continues_the_guest_only_if_its_principal_has_not() {
        let (_directory, path, commands) = qemu(1);
        connect(&path).execute("stop", json!({})).expect("an answer");
        deputize(&mut &[DONE][..], &path).expect("nothing to do");
        assert_eq!(commands.try_iter().collect::<Vec<_>>(), ["stop"]);
        deputize(&mut &[][..], &path).expect("a guest that runs");
        assert_eq!(commands.try_iter().collect::<Vec<_>>(), ["cont", "cont"]);
        // It runs already, or there is no QEMU any more.
        deputize(&mut &[][..], &path).expect("a guest that runs");
        assert_eq!(commands.try_iter().count(), 0);
        deputize(&mut &[][..], Path::new("/nonexistent/qmp")).expect("no guest");
    }

    #[test]
    fn guest_that_cannot_be_continued_is_left_to_the_deputy() {
        let (directory, path, _commands) = qemu(1);
        let ended = directory.path().join("ended");
        let deputy = ["sh", "-c", &format!("[ -z \"$(cat)\" ] && touch {}", ended.display())].map(OsString::from);
        let mut qmp = connect(&path);
        let standstill = Standstill::begin(&mut qmp, &deputy).expect("a guest that stands still");
        assert!(matches!(standstill.end(&mut qmp), Err(Error::NotResumed(_))));
        let until = Instant::now() + Duration::from_secs(20);
        while !ended.exists() && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(ended.exists(), "the deputy was dismissed, or waits");
    }
}
