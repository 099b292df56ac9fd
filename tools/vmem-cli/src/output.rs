// SPDX-License-Identifier: GPL-2.0
//! Standard output and standard error, which threads of their own write to.
//!
//! A terminal can be stopped (Ctrl-S), the reader of a pipe can hang. Nothing that serves pages, or moves a guest, waits for either: a line
//! goes into a queue, and is lost if that is full. How many were lost is said in their place, once the stream takes lines again.

mod printer;

use std::io::{self, IsTerminal};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use printer::{CLEAR, Printer, Reader};

pub use printer::dropped;

/// How long the end of the program waits for what has been said.
const LAST_WORDS: Duration = Duration::from_secs(10);

static OUT: LazyLock<Printer> = LazyLock::new(|| {
    // Where both are one terminal, a bar may not have been cleared yet.
    let is_shared = io::stdout().is_terminal() && io::stderr().is_terminal();
    Printer::new("stdout", if is_shared { CLEAR } else { "" }, io::stdout())
});
static ERR: LazyLock<Printer> = LazyLock::new(|| Printer::new("stderr", "", io::stderr()));

/// A line on standard output.
pub fn out(line: &str) {
    OUT.print(line, Reader::Person);
}

/// A line on standard output that is a JSON object. If such lines are lost, an object says so: `{"event":"dropped","lines":N}`.
pub fn json(line: &str) {
    OUT.print(line, Reader::Machine);
}

/// A line on standard error.
pub fn err(line: &str) {
    ERR.print(line, Reader::Person);
}

/// The text below all lines of a terminal at standard error; none if it is empty.
pub(crate) fn status(text: String) {
    ERR.status(text);
}

/// Waits until what has been said is written, for a while: a stream that takes nothing does not keep the process.
pub fn flush() {
    let until = Instant::now() + LAST_WORDS;
    OUT.flush(until);
    ERR.flush(until);
}
