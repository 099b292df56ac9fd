// SPDX-License-Identifier: GPL-2.0-or-later
//! How much a message of a daemon may have. `Documentation/control.rst` has the same numbers. Both ends keep to them: a daemon sends no
//! more, and a client that gets more ends the connection.

use std::fmt::{self, Formatter};
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

/// The most regions in one message: as many exports as a source may have.
pub const MAX_REGIONS: usize = 1024;

/// The longest text that a daemon sends, in bytes. What is longer is cut.
pub const LONGEST_TEXT: usize = 4096;

/// Stands for the end of a text that is cut.
const CUT: &str = "...";

/// Reads a list of regions, of [`MAX_REGIONS`] at most. A region takes 30 times the memory of the shortest text for one.
pub(crate) fn regions<'de, D: Deserializer<'de>, R: Deserialize<'de>>(deserializer: D) -> Result<Vec<R>, D::Error> {
    list(deserializer, MAX_REGIONS, "regions")
}

/// Reads a list of `most` things at most.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    most: usize,
    things: &'static str,
) -> Result<Vec<T>, D::Error> {
    struct List<T> {
        most: usize,
        things: &'static str,
        of: PhantomData<T>,
    }

    impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
            write!(f, "at most {} {}", self.most, self.things)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = list.next_element()? {
                if all.len() == self.most {
                    return Err(A::Error::custom(format_args!("more than {} {}", self.most, self.things)));
                }
                all.push(one);
            }
            Ok(all)
        }
    }

    deserializer.deserialize_seq(List {
        most,
        things,
        of: PhantomData,
    })
}

/// The most runs of pages in one message.
pub const MAX_RUNS: usize = 4096;

/// Reads a list of runs of pages, of [`MAX_RUNS`] at most.
pub(crate) fn runs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(u64, u64)>, D::Error> {
    list(deserializer, MAX_RUNS, "runs")
}

/// Cuts a text that is longer than [`LONGEST_TEXT`].
pub(crate) fn cut(text: &mut String) {
    if text.len() > LONGEST_TEXT {
        let fits = (0..=LONGEST_TEXT - CUT.len()).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(fits.unwrap_or_default());
        text.push_str(CUT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error;
    use crate::event::{Event, Figures, Phase, Region, Status};
    use crate::message::{Answer, LONGEST_REPLY, Message, Reply};
    use crate::migration::Migration;
    use crate::rounds::{Rounds, Settled};

    fn region(name: &str) -> Region {
        Region {
            name: name.to_owned(),
            bytes: u64::MAX,
            present_bytes: u64::MAX,
            unreadable_pages: u64::MAX,
            phase: Phase::Unreadable,
            ..Region::default()
        }
    }

    #[test]
    fn more_regions_than_a_message_may_have_are_an_error_that_says_so() {
        let line = |form: &str, count: usize| form.replace("REGIONS", &vec!["{}"; count].join(","));
        for form in [
            r#"{"event":"ready","source":"","regions":[REGIONS]}"#,
            r#"{"event":"holding","source":"","regions":[REGIONS]}"#,
            r#"{"event":"progress","seconds":0,"regions":[REGIONS]}"#,
            r#"{"id":1,"answer":"status","state":"ready","figures":{"seconds":0,"regions":[REGIONS]}}"#,
        ] {
            Message::parse(line(form, MAX_REGIONS).as_bytes()).expect("as many as there may be");
            let error = Message::parse(line(form, MAX_REGIONS + 1).as_bytes()).expect_err(form);
            assert!(error.to_string().contains("more than 1024 regions"), "{error}");
            // As many as a line may have.
            let many = line(form, LONGEST_REPLY / 3 - form.len());
            assert!(many.len() < LONGEST_REPLY);
            assert!(matches!(Message::parse(many.as_bytes()), Err(error::Error::Foreign(_))));
        }
        // The last event is heard, without its regions.
        let form = r#"{"event":"end","exit_code":2,"error":null,"seconds":0,"regions":[REGIONS]}"#;
        let end = Message::parse(line(form, MAX_REGIONS + 1).as_bytes()).expect("the end");
        let (exit_code, error, figures) = (2, None, None);
        assert_eq!(
            end,
            Message::Event(Event::End {
                exit_code,
                error,
                figures
            })
        );
    }

    #[test]
    fn more_runs_than_a_message_may_have_are_an_error_and_as_many_fit_on_a_line() {
        let touched = |count: usize| {
            let run = format!("[{},{}]", u64::MAX, u64::MAX);
            let runs = vec![run.as_str(); count].join(",");
            format!(
                r#"{{"event":"touched","region":"{}","runs":[{runs}],"missed":{}}}"#,
                "x".repeat(31),
                u64::MAX
            )
        };
        let line = touched(MAX_RUNS);
        assert!(line.len() < LONGEST_REPLY);
        Message::parse(line.as_bytes()).expect("as many as there may be");
        let error = Message::parse(touched(MAX_RUNS + 1).as_bytes()).expect_err("too many");
        assert!(error.to_string().contains("more than 4096 runs"), "{error}");
    }

    #[test]
    fn longest_message_of_a_daemon_fits_on_a_line() {
        // A control character takes six bytes.
        let text = "\u{1}".repeat(10 * LONGEST_TEXT);
        let event_text = text.clone();
        let figures = Figures {
            regions: vec![region(&"x".repeat(31)); 2 * MAX_REGIONS],
            ..Figures::default()
        };
        let mut event = Event::End {
            exit_code: 255,
            error: Some(text.clone()),
            figures: Some(figures.clone()),
        };
        event.cut();
        let mut ready = Event::Ready {
            source: text,
            regions: figures.regions,
        };
        ready.cut();
        let rounds = Rounds {
            mode: event_text.clone(),
            ..Rounds::default()
        };
        let mut others = [
            Event::Migration(Box::new(Migration {
                guest: event_text.clone(),
                to: event_text.clone(),
                mode: event_text.clone(),
                rounds: Some(rounds.clone()),
                ..Migration::default()
            })),
            Event::Rounds(rounds),
            Event::Settled(Settled {
                reason: event_text.clone(),
                ..Settled::default()
            }),
            Event::Failed { error: event_text },
        ];
        others.iter_mut().for_each(Event::cut);
        let mut status = Status::default();
        status.apply(&ready);
        status.apply(&event);
        others.iter().for_each(|other| status.apply(other));
        let answer = Answer::Status(Box::new(status));
        let lines = [
            serde_json::to_string(&event).expect("JSON"),
            serde_json::to_string(&Reply { id: u64::MAX, answer }).expect("JSON"),
        ];
        for line in lines {
            assert!(line.len() < LONGEST_REPLY / 2, "{}", line.len());
            Message::parse(line.as_bytes()).expect("a client takes it");
        }
    }

    #[test]
    fn text_is_cut_between_characters() {
        for (character, length) in [
            ("x", LONGEST_TEXT),
            ("\u{e4}", LONGEST_TEXT - 1),
            ("\u{1f600}", LONGEST_TEXT - 1),
        ] {
            let mut text = character.repeat(LONGEST_TEXT + 1);
            cut(&mut text);
            assert_eq!(text.len(), length, "{character}");
            assert!(text.ends_with(CUT));
        }
        let mut fits = "x".repeat(LONGEST_TEXT);
        cut(&mut fits);
        assert!(!fits.contains(CUT));
    }
}
