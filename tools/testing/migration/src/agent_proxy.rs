// SPDX-License-Identifier: GPL-2.0-or-later
//! Between a client and QEMU's socket for the guest agent: notes the commands, and can keep the answers back.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use anyhow::Result;

/// How often it looks whether a client is there, or this is over.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// The commands that are noted.
const NOTED: [&str; 3] = ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw", "guest-set-time"];
/// After this command, the client gets no answer if answers are kept back.
const KEPT_FROM: &str = "guest-fsfreeze-freeze";

/// A proxy with one client at a time, as QEMU's socket has. It ends when it is dropped.
pub(crate) struct AgentProxy {
    socket: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    commands: Mutex<Vec<&'static str>>,
    keeps_answers: AtomicBool,
    is_over: AtomicBool,
}

impl AgentProxy {
    /// In front of this socket.
    pub(crate) fn start(agent: &Path) -> Result<Self> {
        let socket = agent.with_extension("proxy");
        let listener = UnixListener::bind(&socket)?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared::default());
        let (of_thread, agent) = (Arc::clone(&shared), agent.to_owned());
        let thread = thread::spawn(move || {
            while !of_thread.is_over.load(Ordering::Relaxed) {
                match listener.accept() {
                    // The client may end at any moment.
                    Ok((client, _)) => drop(serve(&client, &agent, &of_thread)),
                    Err(_) => sleep(POLL_INTERVAL),
                }
            }
        });
        Ok(Self {
            socket,
            shared,
            thread: Some(thread),
        })
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The commands so far. They are forgotten.
    pub(crate) fn take_commands(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.shared.commands.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a client that freezes file systems gets no answer any more.
    pub(crate) fn keep_answers(&self, keeps: bool) {
        self.shared.keeps_answers.store(keeps, Ordering::Relaxed);
    }
}

impl Drop for AgentProxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
        let _ = fs::remove_file(&self.socket);
    }
}

fn serve(client: &UnixStream, agent: &Path, shared: &Shared) -> io::Result<()> {
    client.set_nonblocking(false)?;
    let agent = UnixStream::connect(agent)?;
    let is_kept = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = copy(&agent, client, |_| !is_kept.load(Ordering::Relaxed));
            let _ = client.shutdown(Shutdown::Both);
        });
        let copied = copy(client, &agent, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            if text.contains(KEPT_FROM) && shared.keeps_answers.load(Ordering::Relaxed) {
                is_kept.store(true, Ordering::Relaxed);
            }
            let noted = NOTED.into_iter().filter(|command| text.contains(command));
            shared.commands.lock().unwrap_or_else(PoisonError::into_inner).extend(noted);
            true
        });
        let _ = agent.shutdown(Shutdown::Both);
        copied
    })
}

/// Copies what is not to be kept back. A command of a client is one write, and comes in one piece.
fn copy(mut from: &UnixStream, mut to: &UnixStream, is_passed: impl Fn(&[u8]) -> bool) -> io::Result<()> {
    let mut bytes = [0; 4096];
    loop {
        match from.read(&mut bytes)? {
            0 => return Ok(()),
            read if is_passed(&bytes[..read]) => to.write_all(&bytes[..read])?,
            _ => {}
        }
    }
}
