// SPDX-License-Identifier: GPL-2.0-or-later
//! A queue of lines, and the thread that writes them to a stream.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

/// The most lines that wait for a blocked stream. A program prints a few per second.
pub(super) const MAX_LINES: usize = 4096;

/// The most bytes of these lines. Most lines are short; a line with text of another host can have 1 MiB.
const MAX_BYTES: usize = 4 << 20;

/// The terminal sequence that clears the current line.
pub(super) const CLEAR: &str = "\r\x1b[K";

/// The format of a line, and so of a message about dropped lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LineFormat {
    Text,
    /// Each line is a JSON object.
    Json,
}

/// An item of the queue.
#[derive(Debug)]
enum Item {
    Line(String),
    /// Stands for lines that were dropped.
    Dropped {
        lines: u64,
        format: LineFormat,
    },
    /// The status line below all other lines of a terminal; empty to remove it.
    Status(String),
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    /// Number of bytes of the lines.
    bytes: usize,
    /// The latest status line, if it has not been written.
    status: Option<String>,
    /// Whether the thread is writing an item.
    is_writing: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// Prints to a stream without waiting for it.
#[derive(Debug)]
pub(super) struct Printer {
    /// `None` if the thread could not be started: then nothing is printed.
    shared: Option<Arc<Shared>>,
}

impl Printer {
    /// Prints to `stream`, with `prefix` before each line.
    pub(super) fn new(name: &str, prefix: &'static str, stream: impl Write + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let inside = Arc::clone(&shared);
        let thread = thread::Builder::new().name(name.to_owned());
        let started = thread.spawn(move || inside.write(prefix, stream));
        Self {
            shared: started.is_ok().then_some(shared),
        }
    }

    /// Queues a line. If the queue is full, the line is dropped, and a message in its place says so.
    pub(super) fn print(&self, line: &str, format: LineFormat) {
        let Some(shared) = &self.shared else { return };
        let mut queue = shared.lock();
        if queue.items.len() < MAX_LINES && queue.bytes + line.len() <= MAX_BYTES {
            queue.bytes += line.len();
            queue.items.push_back(Item::Line(line.to_owned()));
        } else if let Some(Item::Dropped { lines, .. }) = queue.items.back_mut() {
            *lines += 1;
        } else {
            queue.items.push_back(Item::Dropped { lines: 1, format });
        }
        shared.changed.notify_all();
    }

    /// Sets the status line. Only the latest one is written.
    pub(super) fn status(&self, text: String) {
        let Some(shared) = &self.shared else { return };
        shared.lock().status = Some(text);
        shared.changed.notify_all();
    }

    /// Waits until all lines are written, at most until `until`.
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

    /// The next item to write. The item taken before has been written.
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
                Item::Dropped { lines, format } => dropped_notice(lines, format),
                Item::Status(text) => {
                    status = text;
                    // Errors are ignored: the reader of the stream is gone.
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

/// The JSON object that stands for dropped lines.
pub fn dropped(lines: u64) -> String {
    format!(r#"{{"event":"dropped","lines":{lines}}}"#)
}

/// The message that stands for dropped lines.
fn dropped_notice(lines: u64, format: LineFormat) -> String {
    match format {
        LineFormat::Text => format!("{lines} lines were dropped: the output was blocked"),
        LineFormat::Json => dropped(lines),
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
    fn print_never_blocks_on_a_stalled_stream_and_reports_dropped_lines() {
        for format in [LineFormat::Text, LineFormat::Json] {
            let (printer, stream) = printer();
            let (since, many) = (Instant::now(), 3 * MAX_LINES);
            // More than a socket takes.
            let line = |number| format!("{number:0>500}");
            (0..MAX_LINES / 2).for_each(|number| printer.print(&line(number), format));
            // The thread fills the socket meanwhile, and blocks: lines are dropped at one place only.
            printer.flush(Instant::now() + Duration::from_millis(500));
            (MAX_LINES / 2..many).for_each(|number| printer.print(&line(number), format));
            assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
            // It is taken again: what waited comes in order, and how much was lost is said at its place.
            let reading = read(stream);
            printer.flush(Instant::now() + LONG);
            printer.print("last", format);
            let lines = reading.join().expect("lines");
            let came = lines.len() - 2;
            assert!(came >= MAX_LINES, "{came}");
            assert!((0..came).all(|number| lines[number] == line(number)));
            assert_eq!(lines[came], dropped_notice((many - came) as u64, format));
        }
    }

    #[test]
    fn slow_reader_loses_no_line_within_the_queue() {
        let (printer, stream) = printer();
        let reading = thread::spawn(move || {
            let lines = BufReader::with_capacity(1000, stream).lines().map_while(Result::ok);
            let slow = lines.inspect(|_| sleep(Duration::from_micros(100)));
            slow.take_while(|line| line != "last").count()
        });
        for number in 0..MAX_LINES - 1 {
            printer.print(&format!("{number:0>500}"), LineFormat::Json);
        }
        printer.print("last", LineFormat::Json);
        assert_eq!(reading.join().expect("lines"), MAX_LINES - 1);
    }

    #[test]
    fn queue_is_bounded_in_bytes() {
        let (printer, stream) = printer();
        let line = "x".repeat(1 << 20);
        (0..64).for_each(|_| printer.print(&line, LineFormat::Text));
        let held = printer.shared.as_ref().expect("a thread").lock().bytes;
        assert!(held <= MAX_BYTES, "{held}");
        let reading = read(stream);
        printer.flush(Instant::now() + LONG);
        printer.print("last", LineFormat::Text);
        let lines = reading.join().expect("lines");
        assert!(
            lines
                .iter()
                .any(|line| line.ends_with("lines were dropped: the output was blocked"))
        );
    }

    #[test]
    fn status_is_redrawn_below_lines_and_only_the_latest_is_written() {
        let (printer, mut stream) = printer();
        let mut expect = |text: String| {
            let mut found = vec![0; text.len()];
            stream.set_read_timeout(Some(LONG)).expect("a socket");
            stream.read_exact(&mut found).expect("bytes");
            assert_eq!(String::from_utf8_lossy(&found), text);
        };
        printer.status("half".to_owned());
        expect(format!("{CLEAR}half"));
        printer.print("a line", LineFormat::Text);
        expect(format!("{CLEAR}a line\nhalf"));
        printer.status(String::new());
        expect(CLEAR.to_owned());
        printer.print("the end", LineFormat::Text);
        expect("the end\n".to_owned());
        // More than a socket takes: what is said meanwhile waits.
        let long = "x".repeat(1 << 20);
        printer.print(&long, LineFormat::Text);
        (0..100).for_each(|number| printer.status(number.to_string()));
        expect(format!("{long}\n{CLEAR}99"));
    }
}
