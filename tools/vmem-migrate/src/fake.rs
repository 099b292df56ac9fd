// SPDX-License-Identifier: GPL-2.0
//! A fake QEMU for tests: it has a state, knows a few commands, and dies when it is told to. It has a process of its own, which does
//! nothing.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use vmem_qemu::Qmp;

/// The state of the fake, and what it does at which command.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) status: &'static str,
    pub(crate) migration: &'static str,
    /// It ends at this command, after executing it, and without a reply.
    pub(crate) dies_of: &'static str,
    /// It refuses this command.
    pub(crate) refuses: &'static str,
    /// Its main loop waits for a page: no command is executed or answered.
    pub(crate) blocked: bool,
    /// Its main loop blocks at this command, before the command is executed.
    pub(crate) blocks_at: &'static str,
    /// It closes the connection at this command, once, and does not execute it. It lives, and continues to listen.
    pub(crate) hangs_up_at: &'static str,
    /// As before, but it also stops listening.
    pub(crate) leaves_at: &'static str,
    /// Events that it sends by itself, each after a command.
    pub(crate) says: Vec<(&'static str, Value)>,
    /// The commands that it has executed or refused.
    pub(crate) heard: Vec<String>,
    process: Child,
}

/// What follows the end of a connection.
#[derive(PartialEq, Eq)]
enum Then {
    Listen,
    Leave,
    Die,
}

/// A handle of the fake.
#[derive(Clone)]
pub(crate) struct Qemu(Arc<Mutex<State>>);

impl Qemu {
    /// Starts a fake that listens at `path` until it dies.
    pub(crate) fn start(path: &Path, status: &'static str, migration: &'static str) -> Self {
        // The process ends when its input does, which is when this handle is dropped.
        let process = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        let qemu = Self(Arc::new(Mutex::new(State {
            status,
            migration,
            dies_of: "",
            refuses: "",
            blocked: false,
            blocks_at: "",
            hangs_up_at: "",
            leaves_at: "",
            says: Vec::new(),
            heard: Vec::new(),
            process: process.expect("a process"),
        })));
        let listener = UnixListener::bind(path).expect("a socket");
        let (inside, path) = (qemu.clone(), path.to_owned());
        thread::spawn(move || {
            let then = inside.serve_all(&listener);
            let _ = std::fs::remove_file(path);
            drop(listener);
            if then == Then::Die {
                let mut state = inside.state();
                state.process.kill().expect("a process");
                state.process.wait().expect("a process");
            }
        });
        qemu
    }

    pub(crate) fn connect(path: &Path) -> Qmp {
        Qmp::connect(path, Duration::from_secs(5)).expect("a QEMU")
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of its process.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.state().process.id()).expect("a number")
    }

    /// Whether its process lives.
    pub(crate) fn lives(&self) -> bool {
        self.state().process.try_wait().expect("a process").is_none()
    }

    /// Whether it has executed or refused this command.
    pub(crate) fn has_heard(&self, command: &str) -> bool {
        self.state().heard.iter().any(|heard| heard == command)
    }

    fn serve_all(&self, listener: &UnixListener) -> Then {
        loop {
            let Ok((socket, _)) = listener.accept() else {
                return Then::Leave;
            };
            match self.serve(socket) {
                Ok(Then::Listen) | Err(_) => {}
                Ok(then) => return then,
            }
        }
    }

    fn serve(&self, socket: UnixStream) -> std::io::Result<Then> {
        let mut out = socket.try_clone()?;
        self.wait_unblocked();
        writeln!(out, "{}", json!({"QMP": {}}))?;
        for line in BufReader::new(socket).lines() {
            let command: Value = serde_json::from_str(&line?)?;
            let name = command["execute"].as_str().unwrap_or_default().to_owned();
            {
                let mut state = self.state();
                if name == state.hangs_up_at {
                    state.hangs_up_at = "";
                    return Ok(Then::Listen);
                }
                if name == state.leaves_at {
                    return Ok(Then::Leave);
                }
                if name == state.blocks_at {
                    (state.blocked, state.blocks_at) = (true, "");
                }
            }
            self.wait_unblocked();
            let mut reply = self.carry_out(&name, &command["arguments"]);
            reply["id"] = command["id"].clone();
            let dies = name == "quit" || name == self.state().dies_of;
            if dies {
                return Ok(Then::Die);
            }
            let said = self.state().says.clone();
            let event = said.into_iter().find(|(after, _)| *after == name).map(|(_, event)| event);
            writeln!(out, "{reply}")?;
            if let Some(event) = event {
                writeln!(out, "{event}")?;
            }
        }
        Ok(Then::Listen)
    }

    /// Waits until the main loop is not blocked.
    fn wait_unblocked(&self) {
        while self.state().blocked {
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn carry_out(&self, name: &str, arguments: &Value) -> Value {
        let mut state = self.state();
        state.heard.push(name.to_owned());
        if name == state.refuses {
            return json!({"error": {"class": "GenericError", "desc": "not now"}});
        }
        match name {
            "cont" => state.status = "running",
            "migrate" => state.migration = "active",
            "migrate_cancel" if state.migration == "active" => state.migration = "cancelled",
            "stop" => state.status = "paused",
            "migrate-continue" => state.status = "postmigrate",
            "query-status" => return json!({"return": {"status": state.status}}),
            "query-migrate" => return json!({"return": {"status": state.migration}}),
            "qom-list" => return json!({"return": [{"name": "ram", "type": "child<memory-backend-file>"}]}),
            "qom-get" => {
                return json!({"return": match arguments["property"].as_str() {
                    Some("size") => json!(4096),
                    Some("mem-path") => json!("/dev/vmem/guest0.ram"),
                    _ => json!(true),
                }});
            }
            "query-memory-size-summary" => return json!({"return": {"base-memory": 4096}}),
            _ => {}
        }
        json!({"return": {}})
    }
}
