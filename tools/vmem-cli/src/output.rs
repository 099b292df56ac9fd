// SPDX-License-Identifier: GPL-2.0-or-later
//! Nonblocking output: threads write to standard output and standard error.
//!
//! A terminal can be stopped (Ctrl-S), and the reader of a pipe can hang. A program that serves pages or moves a guest must not wait for them: a
//! line goes into a queue, and is dropped if the queue is full. A message in its place says how many lines were dropped.

mod printer;

use std::io::{self, IsTerminal};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use printer::{CLEAR, LineFormat, Printer};

pub use printer::dropped;

/// How long [`flush`] waits.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

static OUT: LazyLock<Printer> = LazyLock::new(|| {
    // Where both are one terminal, a bar may not have been cleared yet.
    let is_shared = io::stdout().is_terminal() && io::stderr().is_terminal();
    Printer::new("stdout", if is_shared { CLEAR } else { "" }, io::stdout())
});
static ERR: LazyLock<Printer> = LazyLock::new(|| Printer::new("stderr", "", io::stderr()));

/// Prints a line on standard output.
pub fn out(line: &str) {
    OUT.print(line, LineFormat::Text);
}

/// Prints a JSON object as a line on standard output. If such lines are dropped, an object says so: `{"event":"dropped","lines":N}`.
pub fn json(line: &str) {
    OUT.print(line, LineFormat::Json);
}

/// Prints a line on standard error.
pub fn err(line: &str) {
    ERR.print(line, LineFormat::Text);
}

/// Sets the status line below all other lines of the terminal at standard error; an empty text removes it.
pub(crate) fn status(text: String) {
    ERR.status(text);
}

/// Waits until all lines are written, at most for 10 seconds: a blocked stream must not keep the process.
pub fn flush() {
    let until = Instant::now() + FLUSH_TIMEOUT;
    OUT.flush(until);
    ERR.flush(until);
}
