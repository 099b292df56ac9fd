// SPDX-License-Identifier: GPL-2.0-or-later
//! A fake QEMU for tests: it has a state, knows a few commands, and dies when it is told to. It has a process of its own, which does
//! nothing.

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use vmem_qemu::Qmp;

use vmem_qemu::recorded;

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
    /// It does not save its devices to the end.
    pub(crate) never_saves: bool,
    /// The socket for the stream that `getfd` has given to it.
    stream: Option<UnixStream>,
    /// Events that it sends by itself, each after a command, or after "loaded": the other QEMU's word that it has the state.
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
            never_saves: false,
            stream: None,
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
                inside.close_stream();
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

    /// Closes its end of the stream.
    pub(crate) fn close_stream(&self) {
        let stream = self.state().stream.take();
        // The relay may have closed it already.
        let _ = stream.map(|stream| stream.shutdown(Shutdown::Both));
    }

    /// Writes the end of a state that it would not have finished.
    pub(crate) fn finish_saving(&self) {
        let mut state = self.state();
        let stream = state.stream.as_mut().expect("a stream");
        stream.write_all(&recorded::END[recorded::END.len() - 1..]).expect("room");
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
        let mut lines = Lines {
            socket,
            bytes: Vec::new(),
        };
        while let Some((line, file)) = lines.next()? {
            let command: Value = serde_json::from_slice(&line)?;
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
            if let Some(file) = file {
                self.state().stream = Some(file.into());
            }
            let mut reply = self.carry_out(&name, &command["arguments"]);
            reply["id"] = command["id"].clone();
            let dies = name == "quit" || name == self.state().dies_of;
            if dies {
                return Ok(Then::Die);
            }
            writeln!(out, "{reply}")?;
            self.say_after(&name, &mut out)?;
            if name == "migrate-continue" {
                self.save(out.try_clone()?)?;
            }
        }
        Ok(Then::Listen)
    }

    /// Sends the event that follows this.
    fn say_after(&self, what: &str, out: &mut UnixStream) -> std::io::Result<()> {
        let said = self.state().says.clone();
        let event = said.into_iter().find(|(after, _)| *after == what).map(|(_, event)| event);
        event.map_or(Ok(()), |event| writeln!(out, "{event}"))
    }

    /// Writes the rest of the state, and waits for the other QEMU's word that it has it.
    fn save(&self, mut out: UnixStream) -> std::io::Result<()> {
        let (stream, never_saves) = {
            let state = self.state();
            (state.stream.as_ref().map(UnixStream::try_clone), state.never_saves)
        };
        let Some(mut stream) = stream.transpose()? else {
            return Ok(());
        };
        let (last, all) = recorded::END.split_last().expect("bytes");
        stream.write_all(all)?;
        if !never_saves {
            stream.write_all(&[*last])?;
        }
        let qemu = self.clone();
        thread::spawn(move || {
            if stream.read(&mut [0; 64]).is_ok_and(|length| length > 0) {
                // The connection may be closed already.
                let _ = qemu.say_after("loaded", &mut out);
            }
        });
        Ok(())
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
                    Some("suppress-vmdesc") => json!(false),
                    _ => json!(true),
                }});
            }
            "query-memory-size-summary" => return json!({"return": {"base-memory": 4096}}),
            _ => {}
        }
        json!({"return": {}})
    }
}

/// The lines of a client, with the files that come with them.
struct Lines {
    socket: UnixStream,
    bytes: Vec<u8>,
}

impl Lines {
    fn next(&mut self) -> std::io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
        let mut file = None;
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                return Ok(Some((self.bytes.drain(..=end).collect(), file)));
            }
            let mut bytes = [0; 4096];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut with = RecvAncillaryBuffer::new(&mut space);
            let got = recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut with,
                RecvFlags::empty(),
            )?;
            for message in with.drain() {
                if let RecvAncillaryMessage::ScmRights(mut files) = message {
                    file = files.next().or(file);
                }
            }
            if got.bytes == 0 {
                return Ok(None);
            }
            self.bytes.extend_from_slice(&bytes[..got.bytes]);
        }
    }
}
