// SPDX-License-Identifier: GPL-2.0
//! The last word to the source, which may have to be waited for: until it has heard it, it does not know what to do with its QEMU.

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

/// How long a source is waited for that nobody here needs any more: as long as it tries to reach this host by itself.
const TIMEOUT: Duration = Duration::from_secs(600);

/// How often it is looked whether it is over.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The last word of a guest's move, until the source has heard it.
pub(super) struct FinalMessage {
    /// In the state that the word is due in.
    pub(super) owner: Owner<Destination>,
    pub(super) channel: Option<Channel>,
    pub(super) state_dir: StateDir,
    pub(super) word: FromDestination,
}

impl FinalMessage {
    /// Says it, and removes the record once the source has heard it. FAILED is said until it is heard: the guest stands still as long as it
    /// is not. The others are recorded, and given up after a while: `receive --resume` says them again.
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

    /// Waits for a connection of the source. The record stays, and says what the source has to hear.
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

/// Whether the source has heard it on this connection.
fn send_once(mut channel: Channel, word: &FromDestination, report: &Report) -> bool {
    if let FromDestination::Complete { .. } | FromDestination::Gone { .. } = word {
        // One that has just come back asks first whether the guest runs.
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
            state_dir: StateDir::new(directory, "in", "guest0").expect("a place"),
            word,
        }
    }

    #[test]
    fn source_that_never_comes_back_is_not_waited_for_and_the_record_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let state_dir = StateDir::new(directory.path(), "in", "guest0").expect("a place");
        let record = serde_json::json!({"phase": Phase::Complete});
        state_dir.write(&record).expect("a record");
        drop(state_dir);
        let listener = Security::Loopback.listen(([127, 0, 0, 1], 0).into()).expect("a port");
        let mut listener = Listener::open(listener, Security::Loopback).expect("a door");
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
        let state_dir = StateDir::new(directory.path(), "in", "guest0").expect("a place");
        let left: Option<serde_json::Value> = state_dir.read().expect("a record");
        assert_eq!(left.map(|left| left["phase"].clone()), Some(record["phase"].clone()));
    }

    #[test]
    fn wait_for_the_source_ends_by_a_signal_and_the_record_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let state_dir = StateDir::new(directory.path(), "in", "guest0").expect("a place");
        let record = serde_json::json!({"phase": Phase::Failed});
        state_dir.write(&record).expect("a record");
        drop(state_dir);
        let listener = Security::Loopback.listen(([127, 0, 0, 1], 0).into()).expect("a port");
        let mut listener = Listener::open(listener, Security::Loopback).expect("a door");
        let word = FromDestination::Failed { reason: String::new() };
        let signals = Signals::default();
        signals.raise();
        let last = last(State::Failed, directory.path(), word);
        let result = last.send(&mut listener, &Report::new(true), &signals);
        assert!(matches!(result, Err(Error::Detached(_))), "{result:?}");
        let state_dir = StateDir::new(directory.path(), "in", "guest0").expect("a place");
        let left: Option<serde_json::Value> = state_dir.read().expect("a record");
        assert_eq!(left.map(|left| left["phase"].clone()), Some(record["phase"].clone()));
    }
}
