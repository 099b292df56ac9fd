// SPDX-License-Identifier: GPL-2.0
//! Standard output and standard error, which threads of their own write to.
//!
//! A terminal can be stopped (Ctrl-S), the reader of a pipe can hang. Nothing that serves pages waits for either: a line goes into a queue,
//! and is lost if that is full.

use std::io::{self, Write};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Lines that wait for a stream that cannot be written to, at most. A run says a few a second.
const LINES: usize = 4096;

/// How long the end waits for what has been said.
const LAST_WORDS: Duration = Duration::from_secs(10);

static OUT: LazyLock<Printer> = LazyLock::new(|| Printer::new("stdout", io::stdout()));
static ERR: LazyLock<Printer> = LazyLock::new(|| Printer::new("stderr", io::stderr()));

/// A line on standard output.
pub(crate) fn out(line: &str) {
    OUT.print(line);
}

/// A line on standard error.
pub(crate) fn err(line: &str) {
    ERR.print(line);
}

/// A line on standard error at once, for who draws there and has made room for it.
pub(crate) fn err_now(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Waits until what has been said is written, for a while: a stream that takes nothing does not keep the process.
pub(crate) fn flush() {
    let until = Instant::now() + LAST_WORDS;
    OUT.flush(until);
    ERR.flush(until);
}

enum Item {
    Line(String),
    /// Everything before it has been written.
    Flush(SyncSender<()>),
}

/// A stream, and the lines that wait for it.
struct Printer {
    /// None if there is no thread: then whoever prints writes, and waits.
    items: Option<SyncSender<Item>>,
    lost: &'static AtomicU64,
}

impl Printer {
    fn new(name: &str, mut stream: impl Write + Send + 'static) -> Self {
        // One for each stream, as long as the process.
        let lost: &'static AtomicU64 = Box::leak(Box::default());
        let (items, queue) = sync_channel(LINES);
        let thread = thread::Builder::new().name(name.to_owned());
        let started = thread.spawn(move || write(&queue, lost, &mut stream));
        Self {
            items: started.is_ok().then_some(items),
            lost,
        }
    }

    fn print(&self, line: &str) {
        match &self.items {
            Some(items) if items.try_send(Item::Line(line.to_owned())).is_ok() => {}
            Some(_) => drop(self.lost.fetch_add(1, Ordering::Relaxed)),
            None => err_now(line),
        }
    }

    fn flush(&self, until: Instant) {
        const MOMENT: Duration = Duration::from_millis(10);
        let Some(items) = &self.items else { return };
        let (done, written) = sync_channel(1);
        while items.try_send(Item::Flush(done.clone())).is_err() {
            if Instant::now() >= until {
                return;
            }
            thread::sleep(MOMENT);
        }
        // If it is not written by then, it will not be.
        let _ = written.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

fn write(queue: &Receiver<Item>, lost: &AtomicU64, stream: &mut impl Write) {
    for item in queue {
        // Who has gone misses it.
        match item {
            Item::Line(line) => {
                let _ = writeln!(stream, "{line}");
            }
            Item::Flush(done) => {
                let _ = stream.flush();
                let _ = done.send(());
            }
        }
        match lost.swap(0, Ordering::Relaxed) {
            0 => {}
            count => {
                let _ = writeln!(stream, "vmemd: {count} lines were lost: nobody took them");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn who_prints_does_not_wait_for_a_stream_that_takes_nothing() {
        let (stream, mut reader) = UnixStream::pair().expect("a pair");
        let printer = Printer::new("test", stream);
        let since = Instant::now();
        let line = "x".repeat(1000);
        (0..3 * LINES).for_each(|_| printer.print(&line));
        printer.flush(Instant::now() + Duration::from_millis(50));
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        // It is taken again: what waited comes, and how much was lost is said.
        let reading = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        printer.flush(Instant::now() + Duration::from_secs(10));
        printer.print("last");
        printer.flush(Instant::now() + Duration::from_secs(10));
        drop(printer);
        let text = reading.join().expect("no panic").expect("lines");
        assert!(text.lines().filter(|found| **found == line).count() >= LINES);
        assert!(text.contains("lines were lost"));
        assert!(text.lines().any(|line| line == "last"));
    }
}
