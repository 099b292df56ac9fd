// SPDX-License-Identifier: GPL-2.0-or-later
//! Checkpoints with a stand-in for the guest agent, which speaks its protocol.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use super::guest::Guest;
use super::store::Store;
use crate::failure::{Outcome, ensure, equal};
use crate::world::wait_until;

const SOCKET: &str = "/tmp/vmem-checkpoint-agent";

/// How often the stand-in looks whether a client is there.
const POLL: Duration = Duration::from_millis(10);

/// Answers at a socket, one client after the other, and remembers the commands. Ends when it is dropped and its client has gone.
struct Agent {
    commands: Arc<Mutex<Vec<String>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// `slow`: the command that is answered after a second only.
    fn start(slow: &'static str) -> Outcome<Self> {
        let _ = fs::remove_file(SOCKET);
        let listener = UnixListener::bind(SOCKET)?;
        listener.set_nonblocking(true)?;
        let commands = Arc::new(Mutex::new(Vec::new()));
        let is_over = Arc::new(AtomicBool::new(false));
        let (shared, ends) = (Arc::clone(&commands), Arc::clone(&is_over));
        let thread = thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                match listener.accept() {
                    // The client may end at any moment.
                    Ok((client, _)) => drop(serve(&client, &shared, slow)),
                    Err(_) => sleep(POLL),
                }
            }
        });
        Ok(Self {
            commands,
            is_over,
            thread: Some(thread),
        })
    }

    fn commands(&self) -> Vec<String> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
        let _ = fs::remove_file(SOCKET);
    }
}

fn serve(client: &UnixStream, commands: &Mutex<Vec<String>>, slow: &str) -> Outcome {
    let (mut reader, mut writer, mut line) = (BufReader::new(client), client, Vec::new());
    while reader.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line).into_owned();
        line.clear();
        let after = |mark: &str| text.split_once(mark).map(|(_, rest)| rest.to_owned());
        if let Some(id) = after("\"id\":") {
            let id: String = id.chars().take_while(char::is_ascii_digit).collect();
            let answer = format!("{{\"return\": {id}}}\n");
            writer.write_all(&[&[0xff], answer.as_bytes()].concat())?;
            continue;
        }
        let name = ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw", "guest-set-time"]
            .into_iter()
            .find(|name| text.contains(name))
            .ok_or(text.clone())?;
        commands.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
        if name == slow {
            sleep(Duration::from_secs(1));
        }
        writer.write_all(b"{\"return\": 2}\n")?;
    }
    Ok(())
}

pub(super) fn frozen(store: &Store, guest: &mut Guest) -> Outcome {
    let agent = Agent::start("")?;
    let said = guest.create(store, &["--agent", SOCKET, "--freeze", "always"])?;
    ensure!(
        said.contains("\"frozen_file_systems\":2") && !said.contains("\"frozen_seconds\":null"),
        "{said}"
    );
    equal!(agent.commands(), ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]);
    equal!(guest.status()?, "running");
    drop(agent);
    let said = guest.create(store, &["--agent", SOCKET])?;
    ensure!(
        said.contains("\"frozen_file_systems\":0") && said.contains("cannot connect to the socket of the guest agent"),
        "{said}"
    );
    let qmp = guest.qmp().to_string_lossy().into_owned();
    let output = store.end("create", &["--qmp", &qmp, "--agent", SOCKET, "--freeze", "always"])?;
    equal!(output.status.code(), Some(1));
    equal!(guest.status()?, "running");
    Ok(())
}

pub(super) fn killed(store: &Store, guest: &mut Guest) -> Outcome {
    let agent = Agent::start("guest-fsfreeze-freeze")?;
    let socket = PathBuf::from(SOCKET);
    let mut child = store
        .command("create")?
        .arg("--qmp")
        .arg(guest.qmp())
        .arg("--agent")
        .arg(&socket)
        .spawn()?;
    wait_until("it freezes", || Ok(!agent.commands().is_empty()))?;
    child.kill()?;
    child.wait()?;
    wait_until("another process thaws", || {
        Ok(agent.commands() == ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"])
    })?;
    equal!(guest.status()?, "running");
    Ok(())
}
