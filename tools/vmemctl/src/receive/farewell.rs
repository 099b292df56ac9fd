// SPDX-License-Identifier: GPL-2.0
//! The last word to the source, which may have to be waited for: until it has heard it, it does not know what to do with its QEMU.

use std::time::{Duration, Instant};

use vmem_cli::chain;

use super::door::{self, Door, Visitor};
use crate::channel::Channel;
use crate::failure::{Failure, Trouble};
use crate::message::{FromDestination, FromSource};
use crate::record::Place;
use crate::report::Report;
use crate::signals::Signals;

/// How long a source is waited for that nobody here needs any more: as long as it tries to reach this host by itself.
const PATIENCE: Duration = Duration::from_secs(600);

/// How often it is looked whether it is over.
const GLANCE: Duration = Duration::from_millis(100);

/// Says the last word, and removes the record once the source has heard it. FAILED is said until it is heard: the guest stands still as
/// long as it is not. The others are recorded, and given up after a while: `receive --resume` says them again.
pub(super) fn say_last(
    channel: Option<Channel>,
    place: &Place,
    word: &FromDestination,
    door: &mut Door,
    report: &Report,
    signals: &Signals,
) -> Result<(), Failure> {
    let patience = match word {
        FromDestination::Failed { .. } => None,
        _ => Some(PATIENCE),
    };
    say_within(patience, channel, place, word, door, report, signals)
}

fn say_within(
    patience: Option<Duration>,
    channel: Option<Channel>,
    place: &Place,
    word: &FromDestination,
    door: &mut Door,
    report: &Report,
    signals: &Signals,
) -> Result<(), Failure> {
    if !tell(patience, channel, door, word, report, signals)? {
        let what = match word {
            FromDestination::Gone { reason } => format!("the guest has ended here ({reason})"),
            _ => "the guest is here with all its memory".to_owned(),
        };
        return Err(Failure::Unheard(Trouble::other(what)));
    }
    place.remove();
    door.nobody();
    match word {
        FromDestination::Complete { .. } => Ok(()),
        FromDestination::Gone { reason } => Err(Failure::Gone(Trouble::other(reason.as_str()))),
        FromDestination::Failed { reason } => Err(Failure::AtSource(Trouble::other(reason.as_str()))),
        other => Err(Failure::Unfinished(Trouble::other(format!("{other:?}")))),
    }
}

/// Whether the source has heard the word, on this connection or on one that it makes within `patience`.
fn tell(
    patience: Option<Duration>,
    channel: Option<Channel>,
    door: &mut Door,
    word: &FromDestination,
    report: &Report,
    signals: &Signals,
) -> Result<bool, Failure> {
    let until = patience.map(|patience| Instant::now() + patience);
    let mut channel = channel;
    loop {
        let heard = channel.as_mut().is_some_and(|channel| tell_once(channel, word, report));
        if heard {
            return Ok(true);
        }
        report.note("the source has not heard how it ended: 'vmemctl recover' there asks");
        channel = loop {
            // The record stays, and says what the source has to hear.
            signals.check().map_err(|stopped| Failure::Detached(stopped.into()))?;
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(false);
            }
            if let Some(Visitor::Recover(channel)) = door.wait_for(GLANCE) {
                break Some(channel);
            }
        };
    }
}

/// Whether the source has heard it on this connection.
fn tell_once(channel: &mut Channel, word: &FromDestination, report: &Report) -> bool {
    if let FromDestination::Complete { .. } | FromDestination::Gone { .. } = word {
        // One that has just come back asks first whether the guest runs.
        let _ = channel.say(&FromDestination::Running);
    }
    let until = Instant::now() + door::PATIENCE;
    let mut said = channel.say(word);
    while said.is_ok() {
        match channel.hear(until) {
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
    use vmem_migrate::Phase;

    #[test]
    fn source_that_never_comes_back_is_not_waited_for_and_the_record_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = Place::new(directory.path(), "in", "guest0").expect("a place");
        let record = serde_json::json!({"phase": Phase::Complete});
        place.write(&record).expect("a record");
        let listener = Security::Loopback.listen(([127, 0, 0, 1], 0).into()).expect("a port");
        let mut door = Door::open(listener, Security::Loopback).expect("a door");
        let word = FromDestination::Complete {
            summary: serde_json::Value::Null,
        };
        let patience = Some(Duration::from_millis(50));
        let signals = Signals::default();
        let result = say_within(patience, None, &place, &word, &mut door, &Report::new(true), &signals);
        assert!(
            matches!(&result, Err(failure @ Failure::Unheard(_)) if failure.code() == 7),
            "{result:?}"
        );
        let left: Option<serde_json::Value> = place.read().expect("a record");
        assert_eq!(left.map(|left| left["phase"].clone()), Some(record["phase"].clone()));
    }

    #[test]
    fn wait_for_the_source_ends_by_a_signal_and_the_record_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = Place::new(directory.path(), "in", "guest0").expect("a place");
        let record = serde_json::json!({"phase": Phase::Failed});
        place.write(&record).expect("a record");
        let listener = Security::Loopback.listen(([127, 0, 0, 1], 0).into()).expect("a port");
        let mut door = Door::open(listener, Security::Loopback).expect("a door");
        let word = FromDestination::Failed { reason: String::new() };
        let signals = Signals::default();
        signals.raise();
        let result = say_last(None, &place, &word, &mut door, &Report::new(true), &signals);
        assert!(matches!(result, Err(Failure::Detached(_))), "{result:?}");
        let left: Option<serde_json::Value> = place.read().expect("a record");
        assert_eq!(left.map(|left| left["phase"].clone()), Some(record["phase"].clone()));
    }
}
