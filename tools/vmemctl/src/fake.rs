// SPDX-License-Identifier: GPL-2.0
//! A QEMU that is none, for tests: it has a state, knows a few commands, and dies when it is told to.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use vmem_qmp::Qmp;

/// What it is and does.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) status: &'static str,
    pub(crate) migration: &'static str,
    /// It ends when it hears this, after having done it, and without a reply.
    pub(crate) dies_of: &'static str,
    /// It refuses this.
    pub(crate) refuses: &'static str,
    /// It has heard this.
    pub(crate) heard: Vec<String>,
}

/// A handle of it.
#[derive(Clone)]
pub(crate) struct Qemu(Arc<Mutex<State>>);

impl Qemu {
    /// One that listens at `path` until its client leaves or it dies.
    pub(crate) fn start(path: &Path, status: &'static str, migration: &'static str) -> Self {
        let qemu = Self(Arc::new(Mutex::new(State {
            status,
            migration,
            dies_of: "",
            refuses: "",
            heard: Vec::new(),
        })));
        let listener = UnixListener::bind(path).expect("a socket");
        let (inside, path) = (qemu.clone(), path.to_owned());
        thread::spawn(move || {
            let _ = inside.serve(&listener);
            let _ = std::fs::remove_file(path);
        });
        qemu
    }

    pub(crate) fn connect(path: &Path) -> Qmp {
        Qmp::connect(path, Duration::from_secs(5)).expect("a QEMU")
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it has heard this command.
    pub(crate) fn has_heard(&self, command: &str) -> bool {
        self.state().heard.iter().any(|heard| heard == command)
    }

    fn serve(&self, listener: &UnixListener) -> std::io::Result<()> {
        let (socket, _) = listener.accept()?;
        let mut out = socket.try_clone()?;
        writeln!(out, "{}", json!({"QMP": {}}))?;
        for line in BufReader::new(socket).lines() {
            let command: Value = serde_json::from_str(&line?)?;
            let name = command["execute"].as_str().unwrap_or_default().to_owned();
            let reply = self.carry_out(&name);
            let state = self.state();
            if name == "quit" || name == state.dies_of {
                break;
            }
            drop(state);
            writeln!(out, "{reply}")?;
        }
        Ok(())
    }

    fn carry_out(&self, name: &str) -> Value {
        let mut state = self.state();
        state.heard.push(name.to_owned());
        if name == state.refuses {
            return json!({"error": {"class": "GenericError", "desc": "not now"}});
        }
        match name {
            "cont" => state.status = "running",
            "stop" => state.status = "paused",
            "query-status" => return json!({"return": {"status": state.status}}),
            "query-migrate" => return json!({"return": {"status": state.migration}}),
            _ => {}
        }
        json!({"return": {}})
    }
}
