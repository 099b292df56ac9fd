// SPDX-License-Identifier: GPL-2.0
//! A stream that a thread of its own writes to, and the lines that wait for it.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

/// Lines that wait for a stream that cannot be written to, at most. A program says a few a second.
pub(super) const LINES: usize = 4096;

/// Bytes of these lines, at most. Most lines are short; one that another host says can have a mebibyte.
const BYTES: usize = 4 << 20;

/// To the beginning of the line, and nothing is on it any more.
pub(super) const CLEAR: &str = "\r\x1b[K";

/// Who reads a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reader {
    Person,
    /// Each line is a JSON object.
    Machine,
}

/// What is to be written.
#[derive(Debug)]
enum Item {
    Line(String),
    /// Here, so many lines are missing.
    Lost {
        lines: u64,
        reader: Reader,
    },
    /// The line that is below all others on a terminal, and is replaced again and again. Empty: there is none any more.
    Status(String),
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    /// Of the lines.
    bytes: usize,
    /// The latest one that has not been written.
    status: Option<String>,
    /// The thread has taken something, and is not back.
    is_writing: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// A stream that nobody waits for.
#[derive(Debug)]
pub(super) struct Printer {
    /// `None` if there is no thread: then nothing is printed. A process that cannot start a thread does not get far.
    shared: Option<Arc<Shared>>,
}

impl Printer {
    /// Prints on `stream`, each line behind `prefix`.
    pub(super) fn new(name: &str, prefix: &'static str, stream: impl Write + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let inside = Arc::clone(&shared);
        let thread = thread::Builder::new().name(name.to_owned());
        let started = thread.spawn(move || inside.write(prefix, stream));
        Self {
            shared: started.is_ok().then_some(shared),
        }
    }

    /// A line; it is lost if too many wait already, which the reader is told in its place.
    pub(super) fn print(&self, line: &str, reader: Reader) {
        let Some(shared) = &self.shared else { return };
        let mut queue = shared.lock();
        if queue.items.len() < LINES && queue.bytes + line.len() <= BYTES {
            queue.bytes += line.len();
            queue.items.push_back(Item::Line(line.to_owned()));
        } else if let Some(Item::Lost { lines, .. }) = queue.items.back_mut() {
            *lines += 1;
        } else {
            queue.items.push_back(Item::Lost { lines: 1, reader });
        }
        shared.changed.notify_all();
    }

    /// What is below all lines. Only the latest one counts.
    pub(super) fn status(&self, text: String) {
        let Some(shared) = &self.shared else { return };
        shared.lock().status = Some(text);
        shared.changed.notify_all();
    }

    /// Waits until all of it is written, but not longer than `until`.
    pub(super) fn flush(&self, until: Instant) {
        let Some(shared) = &self.shared else { return };
        let left = until.saturating_duration_since(Instant::now());
        let is_busy = |queue: &mut Queue| queue.is_writing || !queue.items.is_empty() || queue.status.is_some();
        drop(shared.changed.wait_timeout_while(shared.lock(), left, is_busy));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next thing to write. What was taken before has been written.
    fn next(&self) -> Item {
        let mut queue = self.lock();
        queue.is_writing = false;
        self.changed.notify_all();
        loop {
            let item = queue.items.pop_front();
            if let Some(item) = item.or_else(|| queue.status.take().map(Item::Status)) {
                if let Item::Line(line) = &item {
                    queue.bytes -= line.len();
                }
                queue.is_writing = true;
                return item;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn write(&self, prefix: &str, mut stream: impl Write) {
        let mut status = String::new();
        loop {
            let line = match self.next() {
                Item::Line(line) => line,
                Item::Lost { lines, reader } => lost(lines, reader),
                Item::Status(text) => {
                    status = text;
                    // Who has gone misses it; so with all that follows.
                    let _ = stream.write_all(format!("{CLEAR}{status}").as_bytes());
                    let _ = stream.flush();
                    continue;
                }
            };
            let text = if status.is_empty() {
                format!("{prefix}{line}\n")
            } else {
                format!("{CLEAR}{line}\n{status}")
            };
            let _ = stream.write_all(text.as_bytes());
            let _ = stream.flush();
        }
    }
}

/// The JSON object in the place of so many that are missing.
pub fn dropped(lines: u64) -> String {
    format!(r#"{{"event":"dropped","lines":{lines}}}"#)
}

/// What stands in the place of lines that are missing.
fn lost(lines: u64, reader: Reader) -> String {
    match reader {
        Reader::Person => format!("{lines} lines were lost: nobody took them"),
        Reader::Machine => dropped(lines),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::os::unix::net::UnixStream;
    use std::thread::{JoinHandle, sleep};
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn printer() -> (Printer, UnixStream) {
        let (stream, reader) = UnixStream::pair().expect("a pair");
        (Printer::new("test", "", stream), reader)
    }

    /// Reads up to the line `last`.
    fn read(reader: UnixStream) -> JoinHandle<Vec<String>> {
        thread::spawn(move || {
            let mut lines = BufReader::new(reader).lines().map_while(Result::ok);
            let mut found: Vec<_> = lines.by_ref().take_while(|line| line != "last").collect();
            found.push("last".to_owned());
            found
        })
    }

    #[test]
    fn who_prints_does_not_wait_for_a_stream_that_takes_nothing() {
        for reader in [Reader::Person, Reader::Machine] {
            let (printer, stream) = printer();
            let (since, many) = (Instant::now(), 3 * LINES);
            // More than a socket takes.
            let line = |number| format!("{number:0>500}");
            (0..many).for_each(|number| printer.print(&line(number), reader));
            printer.flush(Instant::now() + Duration::from_millis(50));
            assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
            // It is taken again: what waited comes in order, and how much was lost is said at its place.
            let reading = read(stream);
            printer.flush(Instant::now() + LONG);
            printer.print("last", reader);
            let lines = reading.join().expect("lines");
            let came = lines.len() - 2;
            assert!(came >= LINES, "{came}");
            assert!((0..came).all(|number| lines[number] == line(number)));
            assert_eq!(lines[came], lost((many - came) as u64, reader));
        }
    }

    #[test]
    fn reader_that_is_slow_misses_nothing() {
        let (printer, stream) = printer();
        let reading = thread::spawn(move || {
            let lines = BufReader::with_capacity(1000, stream).lines().map_while(Result::ok);
            let slow = lines.inspect(|_| sleep(Duration::from_micros(100)));
            slow.take_while(|line| line != "last").count()
        });
        for number in 0..LINES - 1 {
            printer.print(&format!("{number:0>500}"), Reader::Machine);
        }
        printer.print("last", Reader::Machine);
        assert_eq!(reading.join().expect("lines"), LINES - 1);
    }

    #[test]
    fn long_lines_are_bounded_by_their_bytes() {
        let (printer, stream) = printer();
        let line = "x".repeat(1 << 20);
        (0..64).for_each(|_| printer.print(&line, Reader::Person));
        let held = printer.shared.as_ref().expect("a thread").lock().bytes;
        assert!(held <= BYTES, "{held}");
        let reading = read(stream);
        printer.flush(Instant::now() + LONG);
        printer.print("last", Reader::Person);
        let lines = reading.join().expect("lines");
        assert!(lines.iter().any(|line| line.ends_with("lines were lost: nobody took them")));
    }

    #[test]
    fn status_stays_below_the_lines_and_only_the_latest_counts() {
        let (printer, mut stream) = printer();
        let mut expect = |text: String| {
            let mut found = vec![0; text.len()];
            stream.set_read_timeout(Some(LONG)).expect("a socket");
            stream.read_exact(&mut found).expect("bytes");
            assert_eq!(String::from_utf8_lossy(&found), text);
        };
        printer.status("half".to_owned());
        expect(format!("{CLEAR}half"));
        printer.print("a line", Reader::Person);
        expect(format!("{CLEAR}a line\nhalf"));
        printer.status(String::new());
        expect(CLEAR.to_owned());
        printer.print("the end", Reader::Person);
        expect("the end\n".to_owned());
        // More than a socket takes: what is said meanwhile waits.
        let long = "x".repeat(1 << 20);
        printer.print(&long, Reader::Person);
        (0..100).for_each(|number| printer.status(number.to_string()));
        expect(format!("{long}\n{CLEAR}99"));
    }
}
