// SPDX-License-Identifier: GPL-2.0-or-later
//! Log lines on standard error: when, how urgent, of which guest, and what.
//!
//! The thread of [`output`] writes them, so nothing that logs waits for a reader. Where systemd reads standard error
//! (`$JOURNAL_STREAM`, systemd.exec(5)), a line has its level as sd-daemon(3) writes it, and no time, because the journal adds one.

use std::fmt;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::{PoisonError, RwLock};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::output;

/// The options `-v` and `-q`: from errors only to everything; [`Level::INFO`] if neither is given.
pub type Verbosity = clap_verbosity_flag::Verbosity<clap_verbosity_flag::InfoLevel>;

/// What all lines are about.
static SUBJECT: RwLock<String> = RwLock::new(String::new());

/// Logs from now on what is as urgent as `verbosity` says, or more. Only the first call counts.
pub fn init(verbosity: Verbosity) {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(verbosity.tracing_level_filter())
        .with_writer(Line::default)
        .event_format(Format {
            is_journal: is_journal(),
        })
        .finish();
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// All lines from now on are about this: fields with their values, such as a guest, or the part of its session's number that others may
/// know.
pub fn set_subject(fields: &[(&str, &str)]) {
    let fields = fields.iter().map(|(name, value)| format!("{name}={}", value.escape_debug()));
    let subject = format!("{}: ", fields.collect::<Vec<_>>().join(" "));
    *SUBJECT.write().unwrap_or_else(PoisonError::into_inner) = subject;
}

/// What a line on standard error says, without when, how urgent and about what, if it is one of [`init`]'s.
pub fn message(line: &str) -> &str {
    let levels = [" ERROR ", "  WARN ", "  INFO ", " DEBUG ", " TRACE "];
    let said = levels
        .iter()
        .find_map(|level| Some(line.split_once(level)?.1))
        .unwrap_or(line);
    let is_field = |field: &str| {
        field
            .split_once('=')
            .is_some_and(|(name, _)| ["guest", "session"].contains(&name))
    };
    match said.split_once(": ") {
        Some((subject, rest)) if subject.split(' ').all(is_field) => rest,
        _ => said,
    }
}

/// Lines are about no guest from now on.
pub fn clear_subject() {
    SUBJECT.write().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Whether standard error is the journal's: `$JOURNAL_STREAM` has its device and inode.
fn is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let stderr = std::fs::metadata("/proc/self/fd/2");
    stderr.is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// How a line looks.
struct Format {
    is_journal: bool,
}

impl<S, N> FormatEvent<S, N> for Format
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        if self.is_journal {
            write!(writer, "<{}>", priority(level))?;
        } else {
            SystemTime.format_time(&mut writer)?;
            write!(writer, " {level:>5} ")?;
        }
        writer.write_str(&SUBJECT.read().unwrap_or_else(PoisonError::into_inner))?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// The number of a level in syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// Collects a line and has it printed.
#[derive(Default)]
struct Line(Vec<u8>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.0);
        let text = text.trim_end_matches('\n');
        if !text.is_empty() {
            output::err(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(is_journal: bool, log: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::INFO)
            .with_writer(move || writer.clone())
            .event_format(Format { is_journal })
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        let bytes = captured.0.lock().expect("no panic").clone();
        String::from_utf8(bytes).expect("text")
    }

    /// One test, because all lines of a process are about the same guest.
    #[test]
    fn line_has_time_level_and_guest_and_the_journal_gets_no_time() {
        let said = logged(false, || tracing::warn!("listening on {}", 7));
        let (time, rest) = said.split_once(' ').expect("a time");
        assert!(time.ends_with('Z') && time.contains('T'), "{said}");
        assert_eq!(rest, " WARN listening on 7\n");

        set_subject(&[("guest", "web\n1"), ("session", "0123abcd")]);
        let said = logged(true, || tracing::info!("it runs"));
        assert_eq!(said, "<6>guest=web\\n1 session=0123abcd: it runs\n");
        clear_subject();

        let said = logged(true, || tracing::error!("it does not run"));
        assert_eq!(said, "<3>it does not run\n");
        assert_eq!(logged(true, || tracing::debug!("a detail")), "");
    }

    #[test]
    fn message_of_a_line_is_what_was_said() {
        let time = "2026-11-26T21:07:25.694520Z";
        for (line, said) in [
            (format!("{time} ERROR region a: it is busy"), "region a: it is busy"),
            (format!("{time}  WARN session=0123: x=1: y"), "x=1: y"),
            (format!("{time}  INFO guest=a b session=0: y"), "guest=a b session=0: y"),
            ("sh: 1: no such command".to_owned(), "sh: 1: no such command"),
        ] {
            assert_eq!(message(&line), said);
        }
    }
}
