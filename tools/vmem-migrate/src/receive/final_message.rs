// SPDX-License-Identifier: GPL-2.0-or-later
//! The final message to the source: FAILED, GONE or COMPLETE. Until the source has received it, the source does not know what to do with
//! its QEMU.

use std::time::{Duration, Instant};

use crate::Owner;
use crate::destination::{Action, Destination, Event};
use vmem_cli::{Signals, chain};

use super::listener::{self, IncomingConnection, Listener};
use crate::channel::Channel;
use crate::error::{Cause, Error};
use crate::message::{FromDestination, FromSource};
use crate::record::StateDir;
use crate::report::Report;

/// How long to wait for a source that the guest no longer needs: as long as the source tries to reconnect by itself.
const TIMEOUT: Duration = Duration::from_secs(600);

/// How often the wait for the source checks for signals.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The final message of a move, until the source has confirmed it.
pub(super) struct FinalMessage {
    /// The state machine, in the state of the final message.
    pub(super) owner: Owner<Destination>,
    pub(super) channel: Option<Channel>,
    pub(super) state_dir: StateDir,
    pub(super) word: FromDestination,
}

impl FinalMessage {
    /// Sends the message, and removes the record once the source has confirmed it. FAILED is sent until the source confirms it, because the
    /// guest runs on neither host until then. GONE and COMPLETE are recorded. This process stops sending them after [`TIMEOUT`], and
    /// `receive --resume` sends them again.
    pub(super) fn send(self, listener: &mut Listener, report: &Report, signals: &Signals) -> Result<(), Error> {
        let patience = match self.word {
            FromDestination::Failed { .. } => None,
            _ => Some(TIMEOUT),
        };
        self.send_within(patience, listener, report, signals)
    }

    fn send_within(
        mut self,
        patience: Option<Duration>,
        listener: &mut Listener,
        report: &Report,
        signals: &Signals,
    ) -> Result<(), Error> {
        let until = patience.map(|patience| Instant::now() + patience);
        loop {
            let told = self.channel.take().map(|channel| send_once(channel, &self.word, report));
            let (event, failure) = match told {
                Some(true) => (Event::Heard, None),
                Some(false) => (Event::Lost, None),
                None => {
                    report.note("the source has not heard how it ended: 'vmemctl recover' there asks");
                    self.wait_for_source(until, listener, signals)
                }
            };
            let due = self.owner.on(event);
            if due.is_ok_and(|due| due.contains(&Action::Forget)) {
                self.state_dir.remove();
                listener.release_guest();
            }
            if self.owner.is_over() {
                return self.result(failure);
            }
        }
    }

    /// Waits until the source connects. The record stays, and `receive --resume` can send the message again.
    fn wait_for_source(&mut self, until: Option<Instant>, listener: &mut Listener, signals: &Signals) -> (Event, Option<Error>) {
        loop {
            if let Err(stopped) = signals.check() {
                return (Event::Signal, Some(Error::Detached(stopped.into())));
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                let what = match &self.word {
                    FromDestination::Gone { reason } => format!("the guest has ended here ({reason})"),
                    _ => "the guest is here with all its memory".to_owned(),
                };
                return (Event::Unheard, Some(Error::Unheard(Cause::other(what))));
            }
            if let Some(IncomingConnection::Recover(channel)) = listener.wait_for(POLL_INTERVAL) {
                self.channel = Some(channel);
                return (Event::Back, None);
            }
        }
    }

    fn result(self, failure: Option<Error>) -> Result<(), Error> {
        match (failure, self.word) {
            (Some(failure), _) => Err(failure),
            (None, FromDestination::Gone { reason }) => Err(Error::Gone(Cause::other(reason))),
            (None, FromDestination::Failed { reason }) => Err(Error::AtSource(Cause::other(reason))),
            (None, _) => Ok(()),
        }
    }
}

/// Sends the message on this connection. Returns whether the source has confirmed it.
fn send_once(mut channel: Channel, word: &FromDestination, report: &Report) -> bool {
    if let FromDestination::Complete { .. } | FromDestination::Gone { .. } = word {
        // A source that has just reconnected first asks whether the guest runs.
        let _ = channel.send(&FromDestination::Running);
    }
    let until = Instant::now() + listener::TIMEOUT;
    let mut said = channel.send(word);
    while said.is_ok() {
        match channel.recv(until) {
            Ok(Some(FromSource::Heard | FromSource::Abort { .. })) => return true,
            Ok(Some(_)) => {}
            Ok(None) => return false,
            Err(error) => said = Err(error),
        }
    }
    if let Err(error) = said {
        report.note(&format!("the source's vmemctl: {}", chain(&error)));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Security;
    use std::path::Path;

    use crate::Phase;
    use crate::destination::State;

    fn last(state: State, directory: &Path, word: FromDestination) -> FinalMessage {
        FinalMessage {
            owner: Owner::new(state),
            channel: None,
            state_dir: StateDir::new(directory, "in", "guest0").expect("a state directory"),
            word,
        }
    }

    /// The state directory, which nobody holds any more. A process that another test has just started holds its lock until it executes a program.
    fn reopened(directory: &Path) -> StateDir {
        let open = || StateDir::new(directory, "in", "guest0");
        let retried = (0..1000).find_map(|_| {
            open().ok().or_else(|| {
                std::thread::sleep(Duration::from_millis(10));
                None
            })
        });
        retried.unwrap_or_else(|| open().expect("a state directory"))
    }

    #[test]
    fn record_stays_if_the_source_never_reconnects() {
        let directory = tempfile::tempdir().expect("a directory");
        let state_dir = StateDir::new(directory.path(), "in", "guest0").expect("a state directory");
        let record = serde_json::json!({"phase": Phase::Complete});
        state_dir.write(&record).expect("a record");
        drop(state_dir);
        let listener = Security::Loopback.listen(([127, 0, 0, 1], 0).into()).expect("a port");
        let mut listener = Listener::open(listener, Security::Loopback).expect("a listener");
        let word = FromDestination::Complete {
            summary: serde_json::Value::Null,
        };
        let patience = Some(Duration::from_millis(50));
        let signals = Signals::default();
        let last = last(State::Complete, directory.path(), word);
        let result = last.send_within(patience, &mut listener, &Report::new(true), &signals);
        assert!(
            matches!(&result, Err(failure @ Error::Unheard(_)) if failure.code() == 7),
            "{result:?}"
        );
        let left: Option<serde_json::Value> = reopened(directory.path()).read().expect("a record");
        assert_eq!(left.map(|left| left["phase"].clone()), Some(record["phase"].clone()));
    }

    #[test]
    fn record_stays_if_a_signal_ends_the_wait() {
        let directory = tempfile::tempdir().expect("a directory");
        let state_dir = StateDir::new(directory.path(), "in", "guest0").expect("a state directory");
        let record = serde_json::json!({"phase": Phase::Failed});
        state_dir.write(&record).expect("a record");
        drop(state_dir);
        let listener = Security::Loopback.listen(([127, 0, 0, 1], 0).into()).expect("a port");
        let mut listener = Listener::open(listener, Security::Loopback).expect("a listener");
        let word = FromDestination::Failed { reason: String::new() };
        let signals = Signals::default();
        signals.raise();
        let last = last(State::Failed, directory.path(), word);
        let result = last.send(&mut listener, &Report::new(true), &signals);
        assert!(matches!(result, Err(Error::Detached(_))), "{result:?}");
        let left: Option<serde_json::Value> = reopened(directory.path()).read().expect("a record");
        assert_eq!(left.map(|left| left["phase"].clone()), Some(record["phase"].clone()));
    }
}
