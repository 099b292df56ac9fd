// SPDX-License-Identifier: GPL-2.0-or-later
//! A stand-in for QEMU.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use vmem_qemu::Qmp;
use vmem_qemu::recorded::END;

/// What is unusual about this QEMU.
#[derive(Clone, Copy)]
pub(crate) struct Habit {
    /// Bytes of its state that it writes.
    pub(crate) written: usize,
    /// It refuses to migrate.
    pub(crate) refuses: bool,
    /// It waits before the switchover.
    pub(crate) waits: bool,
    /// It refuses bandwidth limits that it had before.
    pub(crate) refuses_bandwidth: bool,
    /// It refuses to change its capabilities.
    pub(crate) refuses_capabilities: bool,
    /// It closes the first connection on which a capability is switched off, before it does that.
    pub(crate) hangs_up: bool,
    /// The guest's memory has the end of a state, which QEMU sends while the guest runs.
    pub(crate) feigns_end: bool,
    /// It writes more after the end of the state.
    pub(crate) goes_on: bool,
    /// It cannot make overlays.
    pub(crate) refuses_overlays: bool,
    /// It does not continue a guest that was stopped.
    pub(crate) refuses_cont: bool,
}

/// Bytes of devices that are saved alone.
pub(crate) const DEVICES: usize = 60_000;

impl Default for Habit {
    fn default() -> Self {
        Self {
            written: END.len(),
            refuses: false,
            waits: false,
            refuses_bandwidth: false,
            refuses_capabilities: false,
            hangs_up: false,
            feigns_end: false,
            goes_on: false,
            refuses_overlays: false,
            refuses_cont: false,
        }
    }
}

#[derive(Default)]
struct State {
    status: String,
    /// The run state that the guest gets back.
    before: String,
    migration: String,
    capabilities: BTreeSet<String>,
    commands: Vec<String>,
    /// QEMU's end of the stream.
    stream: Option<UnixStream>,
    /// The file for the devices alone.
    devices: Option<File>,
    out: Option<UnixStream>,
    has_hung_up: bool,
}

impl State {
    fn emit(&self, name: &str, data: &Value) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time");
        let timestamp = json!({"seconds": now.as_secs(), "microseconds": now.subsec_micros()});
        if let Some(mut out) = self.out.as_ref() {
            let _ = writeln!(out, "{}", json!({"event": name, "timestamp": timestamp, "data": data}));
        }
    }

    /// The migration is over, without success: the guest is what it was.
    fn end_migration(&mut self, how: &str) {
        if self.migration != "active" {
            return;
        }
        self.migration = how.to_owned();
        self.stream = None;
        self.status = self.before.clone();
        if self.status == "running" {
            self.emit("RESUME", &Value::Null);
        }
    }
}

pub(crate) struct FakeQemu {
    state: Arc<Mutex<State>>,
    socket: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

impl FakeQemu {
    pub(crate) fn start(status: &str, habit: Habit) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("qmp");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let state = Arc::new(Mutex::new(State {
            status: status.to_owned(),
            before: status.to_owned(),
            migration: "none".to_owned(),
            ..State::default()
        }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                serve(&client, &shared, habit);
            }
        });
        Self {
            state,
            socket,
            _directory: directory,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    pub(crate) fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    pub(crate) fn connect(&self) -> Qmp {
        Qmp::connect(&self.socket, Duration::from_secs(10)).expect("a QEMU")
    }

    pub(crate) fn status(&self) -> String {
        self.lock().status.clone()
    }

    pub(crate) fn set_before(&self, status: &str) {
        self.lock().before = status.to_owned();
    }

    pub(crate) fn commands(&self) -> Vec<String> {
        self.lock().commands.clone()
    }

    pub(crate) fn capabilities_on(&self) -> Vec<String> {
        self.lock().capabilities.iter().cloned().collect()
    }

    pub(crate) fn wait_for(&self, status: &str) {
        let until = Instant::now() + Duration::from_secs(20);
        while self.status() != status {
            assert!(Instant::now() < until, "it is {}", self.status());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn serve(client: &UnixStream, state: &Arc<Mutex<State>>, habit: Habit) {
    let mut out = client.try_clone().expect("a socket");
    state.lock().expect("no panic").out = Some(client.try_clone().expect("a socket"));
    let _ = writeln!(out, r#"{{"QMP": {{"version": {{}}, "capabilities": []}}}}"#);
    let (mut text, mut files) = (Vec::new(), Vec::new());
    while let Some(command) = next(client, &mut text, &mut files) {
        let id = command["id"].clone();
        if habit.hangs_up && command["arguments"]["capabilities"][0]["state"] == json!(false) {
            let mut state = state.lock().expect("no panic");
            if !std::mem::replace(&mut state.has_hung_up, true) {
                let _ = client.shutdown(std::net::Shutdown::Both);
                return;
            }
        }
        let answer = match execute(&command, state, habit, &mut files) {
            Ok(value) => json!({"return": value, "id": id}),
            Err(why) => json!({"error": {"class": "GenericError", "desc": why}, "id": id}),
        };
        let _guard = state.lock().expect("no panic");
        if writeln!(out, "{answer}").is_err() {
            return;
        }
    }
}

/// The next command, and the files that came with it.
fn next(client: &UnixStream, text: &mut Vec<u8>, files: &mut Vec<OwnedFd>) -> Option<Value> {
    loop {
        if let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            return serde_json::from_slice(&line).ok();
        }
        let mut bytes = [0; 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = RecvAncillaryBuffer::new(&mut space);
        let mut pieces = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg(client, &mut pieces, &mut with, RecvFlags::empty()).ok()?;
        for message in with.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                files.extend(rights);
            }
        }
        if got.bytes == 0 {
            return None;
        }
        text.extend_from_slice(&bytes[..got.bytes]);
    }
}

fn execute(command: &Value, shared: &Arc<Mutex<State>>, habit: Habit, files: &mut Vec<OwnedFd>) -> Result<Value, &'static str> {
    let name = command["execute"].as_str().unwrap_or_default();
    let mut state = shared.lock().expect("no panic");
    state.commands.push(name.to_owned());
    Ok(match name {
        "query-status" => json!({"status": state.status}),
        "query-migrate" => json!({"status": state.migration}),
        "query-migrate-capabilities" => state
            .capabilities
            .iter()
            .map(|name| json!({"capability": name, "state": true}))
            .collect(),
        "query-migrate-parameters" => json!({"max-bandwidth": 7, "mode": "normal"}),
        "migrate-set-parameters" if habit.refuses_bandwidth && command["arguments"]["max-bandwidth"] == json!(7) => {
            return Err("no limit");
        }
        "migrate-set-capabilities" if habit.refuses_capabilities => return Err("a migration is on"),
        "migrate-set-capabilities" => {
            for one in command["arguments"]["capabilities"].as_array().into_iter().flatten() {
                let name = one["capability"].as_str().unwrap_or_default().to_owned();
                match one["state"] == json!(true) {
                    true => state.capabilities.insert(name),
                    false => state.capabilities.remove(&name),
                };
            }
            json!({})
        }
        "migrate" if habit.refuses => return Err("no"),
        "migrate" => {
            let expected = ["events", "return-path", "x-ignore-shared"];
            if !expected.iter().all(|name| state.capabilities.contains(*name)) {
                return Err("not like this");
            }
            state.stream = files.pop().map(UnixStream::from);
            state.migration = "active".to_owned();
            state.before = state.status.clone();
            if let (true, Some(mut stream)) = (habit.feigns_end, state.stream.as_ref()) {
                let _ = stream.write_all(END);
                let shared = Arc::clone(shared);
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(100));
                    let mut state = shared.lock().expect("no panic");
                    if state.migration == "active" {
                        switch_over(&mut state, &shared, habit);
                    }
                });
                return Ok(json!({}));
            }
            match habit.waits {
                true => state.emit("MIGRATION", &json!({"status": "pre-switchover"})),
                false => switch_over(&mut state, shared, habit),
            }
            json!({})
        }
        "migrate-continue" => {
            switch_over(&mut state, shared, habit);
            json!({})
        }
        "migrate_cancel" => {
            if let (true, Some(mut stream)) = (habit.goes_on, state.stream.as_ref()) {
                let _ = stream.write_all(b"more");
            }
            state.end_migration("cancelled");
            json!({})
        }
        "stop" => {
            state.emit("STOP", &Value::Null);
            state.status = "paused".to_owned();
            json!({})
        }
        "cont" if habit.refuses_cont => return Err("not now"),
        "cont" => {
            state.emit("RESUME", &Value::Null);
            state.status = "running".to_owned();
            json!({})
        }
        "query-block" => json!([{
            "device": "disk0",
            "inserted": {"file": "/proc/self/exe", "drv": "raw", "node-name": "n0", "ro": false},
        }]),
        "transaction" if habit.refuses_overlays => return Err("no overlay"),
        "add-fd" => {
            state.devices = files.pop().map(File::from);
            json!({"fdset-id": 1, "fd": 9})
        }
        "remove-fd" => {
            state.devices = None;
            json!({})
        }
        "xen-save-devices-state" => {
            let before = std::mem::replace(&mut state.status, "save-vm".to_owned());
            let devices = state.devices.as_ref().and_then(|file| file.try_clone().ok());
            drop(state);
            let written = devices.is_some_and(|mut file| file.write_all(&vec![7; DEVICES]).is_ok());
            shared.lock().expect("no panic").status = before;
            match written {
                true => json!({}),
                false => return Err("cannot write"),
            }
        }
        _ => json!({}),
    })
}

/// Stops the guest and writes the state, then waits for an answer.
fn switch_over(state: &mut State, shared: &Arc<Mutex<State>>, habit: Habit) {
    if state.status == "running" {
        state.emit("STOP", &Value::Null);
    }
    state.status = "finish-migrate".to_owned();
    let mut stream = state
        .stream
        .as_ref()
        .and_then(|stream| stream.try_clone().ok())
        .expect("a stream");
    let _ = stream.write_all(&END[..habit.written]);
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        let mut answer = [0; 8];
        // The end of the stream is a failure, and so is every answer that does not come.
        if matches!(stream.read(&mut answer), Ok(0) | Err(_)) {
            shared.lock().expect("no panic").end_migration("failed");
        }
    });
}
