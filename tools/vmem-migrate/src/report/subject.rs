// SPDX-License-Identifier: GPL-2.0-or-later
//! Whose output this is. `vmemctl listen` has a process for each guest, and all of these write to the same streams.

use std::borrow::Cow;
use std::sync::OnceLock;

use serde_json::Value;

use crate::name::public_session;

/// The guest of this process, if others write to its streams, too.
static SUBJECT: OnceLock<Subject> = OnceLock::new();

#[derive(Debug)]
struct Subject {
    guest: String,
    session: String,
}

/// All output of this process is about this guest.
pub(crate) fn set(guest: &str, session: &str) {
    // A process has one guest.
    let _ = SUBJECT.set(Subject {
        guest: guest.escape_debug().to_string(),
        session: public_session(session).to_owned(),
    });
}

impl Subject {
    fn event(&self, event: &Value) -> Value {
        let mut event = event.clone();
        if let Value::Object(fields) = &mut event {
            for (name, value) in [("guest", &self.guest), ("session", &self.session)] {
                fields.entry(name).or_insert_with(|| Value::String(value.clone()));
            }
        }
        event
    }

    fn line(&self, text: &str) -> String {
        format!("{}: {text}", self.guest)
    }
}

/// An event, with the guest and the first half of the session's number.
pub(super) fn event(event: &Value) -> Cow<'_, Value> {
    SUBJECT
        .get()
        .map_or(Cow::Borrowed(event), |subject| Cow::Owned(subject.event(event)))
}

/// A line for people, with the guest.
pub(super) fn line(text: &str) -> Cow<'_, str> {
    SUBJECT
        .get()
        .map_or(Cow::Borrowed(text), |subject| Cow::Owned(subject.line(text)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn output_names_its_guest_unless_it_does_so_already() {
        let subject = Subject {
            guest: "web".to_owned(),
            session: "0123".to_owned(),
        };
        assert_eq!(
            subject.event(&json!({"event": "done"})),
            json!({"event": "done", "guest": "web", "session": "0123"})
        );
        assert_eq!(subject.event(&json!({"guest": "a"}))["guest"], "a");
        assert_eq!(subject.line("time  1 s"), "web: time  1 s");
        assert_eq!(
            line("no process of a test has a subject"),
            "no process of a test has a subject"
        );
    }
}
