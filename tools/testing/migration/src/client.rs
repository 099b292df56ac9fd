// SPDX-License-Identifier: GPL-2.0-or-later
//! A client that talks to a guest all the time, and notes how long it had to wait for an answer.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::harm::ensure_unharmed;
use crate::patience::patience;

/// From an answer to the next question.
const INTERVAL: Duration = Duration::from_millis(5);

/// A client; it hangs up when dropped.
pub(crate) struct Client {
    stop: Arc<AtomicBool>,
    waits: Arc<Mutex<Waits>>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What it has waited since the last mark.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Waits {
    /// The longest time from a question to its answer.
    pub(crate) longest: Duration,
    /// Answers.
    pub(crate) answers: u64,
}

impl Client {
    /// Connects, and starts to talk.
    pub(crate) fn start(service: SocketAddr) -> Result<Self> {
        let connection = TcpStream::connect_timeout(&service, patience()).context("the client cannot connect")?;
        connection.set_nodelay(true)?;
        connection.set_read_timeout(Some(patience()))?;
        let (stop, waits) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let thread = thread::spawn({
            let (stop, waits) = (Arc::clone(&stop), Arc::clone(&waits));
            move || talk(connection, &stop, &waits)
        });
        Ok(Self {
            stop,
            waits,
            thread: Some(thread),
        })
    }

    /// What it has waited since the last mark.
    pub(crate) fn waits(&self) -> Waits {
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what it has waited.
    pub(crate) fn mark(&self) {
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = Waits::default();
    }

    /// Hangs up. That an answer was missing or wrong is an error.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(anyhow!("the client has panicked")),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Each answer is the question and a number that has grown by one: the guest goes on where it was, and the connection holds.
fn talk(mut connection: TcpStream, stop: &AtomicBool, waits: &Mutex<Waits>) -> Result<()> {
    let mut answers = BufReader::new(connection.try_clone()?);
    let mut last: Option<u64> = None;
    for question in 0_u64.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let asked = Instant::now();
        connection
            .write_all(format!("{question}\n").as_bytes())
            .context("the client cannot ask")?;
        let mut answer = String::new();
        answers.read_line(&mut answer).context("the client got no answer")?;
        let waited = asked.elapsed();
        let (echo, number) = answer.trim_end().split_once(' ').context("the client got half an answer")?;
        ensure!(
            echo == question.to_string(),
            "the client asked {question} and was answered {answer:?}"
        );
        let number: u64 = number
            .parse()
            .with_context(|| format!("the client got the answer {answer:?}"))?;
        if let Some(last) = last {
            ensure_unharmed!(number == last + 1, "the guest has answered as number {number} after {last}");
        }
        last = Some(number);
        {
            let mut waits = waits.lock().unwrap_or_else(PoisonError::into_inner);
            waits.longest = waits.longest.max(waited);
            waits.answers += 1;
        }
        thread::sleep(INTERVAL);
    }
    Ok(())
}
