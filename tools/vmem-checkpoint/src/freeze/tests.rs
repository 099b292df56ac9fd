// SPDX-License-Identifier: GPL-2.0-or-later
//! Freezing with a stand-in for the agent, which speaks its protocol.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::*;
use crate::deputy::DONE;

/// A guest agent; the commands that it got.
pub(crate) struct FakeAgent {
    pub(crate) socket: PathBuf,
    commands: Arc<Mutex<Vec<String>>>,
    _directory: tempfile::TempDir,
}

impl FakeAgent {
    /// `refuses`: commands that are refused. `silent`: commands that are never answered.
    pub(crate) fn start(refuses: &'static str, silent: &'static str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("agent");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let commands = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&commands);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (mut reader, mut line) = (BufReader::new(&client), Vec::new());
                while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                    let text: Vec<u8> = line.drain(..).filter(|byte| *byte != 0xff).collect();
                    let command: Value = serde_json::from_slice(&text).expect("a command");
                    let name = command["execute"].as_str().expect("a name").to_owned();
                    let (answer, mark) = match name.as_str() {
                        "guest-sync-delimited" => (json!({"return": command["arguments"]["id"]}), &[0xff][..]),
                        name if name == refuses => (json!({"error": {"class": "GenericError", "desc": "disabled"}}), &[][..]),
                        _ => (json!({"return": 2}), &[][..]),
                    };
                    let is_silent = name == silent;
                    if !name.starts_with("guest-sync") {
                        shared.lock().expect("no panic").push(name);
                    }
                    let bytes = [mark, answer.to_string().as_bytes(), b"\n"].concat();
                    if !is_silent && (&client).write_all(&bytes).is_err() {
                        break;
                    }
                }
            }
        });
        Self {
            socket,
            commands,
            _directory: directory,
        }
    }

    pub(crate) fn commands(&self) -> Vec<String> {
        self.commands.lock().expect("no panic").clone()
    }

    pub(crate) fn options(&self, freeze: Freeze) -> Options {
        Options {
            socket: self.socket.clone(),
            freeze,
            limit: Duration::from_millis(300),
            deputy: Vec::new(),
        }
    }
}

const FREEZE: &str = "guest-fsfreeze-freeze";
const THAW: &str = "guest-fsfreeze-thaw";

#[test]
fn file_systems_are_thawed_when_asked_and_once() {
    let agent = FakeAgent::start("", "");
    let mut frozen = Frozen::begin(&agent.options(Freeze::Auto), true)
        .expect("a guest")
        .expect("frozen");
    assert_eq!(frozen.count(), 2);
    assert_eq!(agent.commands(), [FREEZE]);
    frozen.thaw().expect("thawed");
    drop(frozen);
    assert_eq!(agent.commands(), [FREEZE, THAW]);
}

#[test]
fn file_systems_are_thawed_after_a_panic() {
    let agent = FakeAgent::start("", "");
    let died = catch_unwind(AssertUnwindSafe(|| {
        let _frozen = Frozen::begin(&agent.options(Freeze::Always), true);
        panic!("on purpose");
    }));
    assert!(died.is_err());
    assert_eq!(agent.commands(), [FREEZE, THAW]);
}

#[test]
fn agent_that_is_missing_matters_only_if_file_systems_must_be_frozen() {
    let options = |freeze| Options {
        socket: PathBuf::from("/nowhere/agent"),
        freeze,
        limit: Duration::from_millis(100),
        deputy: Vec::new(),
    };
    let why = Frozen::begin(&options(Freeze::Auto), true)
        .expect("no error")
        .expect_err("not frozen");
    assert!(why.contains("cannot connect"), "{why}");
    assert!(Frozen::begin(&options(Freeze::Always), true).is_err_and(|error| error.is_passing()));
    assert!(Frozen::begin(&options(Freeze::Never), true).expect("no error").is_err());
}

#[test]
fn agent_that_must_be_there_may_take_as_long_as_for_any_answer() {
    let options = |freeze| Options {
        limit: 2 * PRESENCE,
        ..FakeAgent::start("", "").options(freeze)
    };
    assert_eq!(options(Freeze::Always).presence(), 2 * PRESENCE);
    assert_eq!(options(Freeze::Auto).presence(), PRESENCE);
}

#[test]
fn paused_guest_is_not_frozen() {
    let agent = FakeAgent::start("", "");
    let why = Frozen::begin(&agent.options(Freeze::Auto), false)
        .expect("no error")
        .expect_err("not frozen");
    assert!(why.contains("paused"), "{why}");
    assert!(Frozen::begin(&agent.options(Freeze::Always), false).is_err());
    assert_eq!(agent.commands(), Vec::<String>::new());
}

#[test]
fn what_another_client_has_frozen_is_not_thawed() {
    let agent = FakeAgent::start(FREEZE, "");
    let why = Frozen::begin(&agent.options(Freeze::Auto), true)
        .expect("no error")
        .expect_err("not frozen");
    assert!(why.contains("disabled"), "{why}");
    assert_eq!(agent.commands(), [FREEZE]);
}

#[test]
fn freeze_without_an_answer_is_thawed() {
    let agent = FakeAgent::start("", FREEZE);
    let why = Frozen::begin(&agent.options(Freeze::Auto), true)
        .expect("no error")
        .expect_err("not frozen");
    assert!(why.contains("has not answered"), "{why}");
    assert_eq!(agent.commands(), [FREEZE, THAW]);
}

#[test]
fn guest_that_may_stay_frozen_is_an_error() {
    let agent = FakeAgent::start("", THAW);
    let mut frozen = Frozen::begin(&agent.options(Freeze::Auto), true)
        .expect("a guest")
        .expect("frozen");
    assert!(matches!(frozen.thaw(), Err(Error::NotThawed(_))));
}

#[test]
fn deputy_thaws_only_if_its_principal_has_not() {
    let agent = FakeAgent::start("", "");
    deputize(&mut &[DONE][..], &agent.socket, Duration::from_millis(300)).expect("nothing to do");
    assert_eq!(agent.commands(), Vec::<String>::new());
    deputize(&mut &[][..], &agent.socket, Duration::from_millis(300)).expect("thawed");
    assert_eq!(agent.commands(), [THAW]);
}

#[test]
fn deputy_is_told_and_ends() {
    let agent = FakeAgent::start("", "");
    let file = agent.socket.with_file_name("said");
    let script = format!("cat > {}", file.display());
    let options = Options {
        deputy: ["sh", "-c", &script].map(OsString::from).to_vec(),
        ..agent.options(Freeze::Auto)
    };
    let mut frozen = Frozen::begin(&options, true).expect("a guest").expect("frozen");
    frozen.thaw().expect("thawed");
    assert_eq!(std::fs::read(&file).expect("a file"), [DONE]);
}
