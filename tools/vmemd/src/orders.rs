// SPDX-License-Identifier: GPL-2.0-or-later
//! Orders: words on lines of standard input.

use std::io::{BufRead, Read};

/// The longest line that can be an order.
const LONGEST: usize = 64;

/// How many lines that are no orders are reported. Who sends more than that does not send orders.
const REPORTED: usize = 10;

/// Reads orders until the end. `obey` takes one, or says that it is none. Each is reported with `report`, with an error if it is none: the
/// first of those, because anything can be at the other end.
pub(crate) fn listen(
    mut lines: impl BufRead,
    known: &str,
    mut obey: impl FnMut(&str) -> bool,
    report: impl Fn(&str, Option<&str>),
) {
    let mut wrong = 0;
    while let Some(line) = next(&mut lines) {
        let order = line.trim();
        if obey(order) {
            report(order, None);
        } else {
            wrong += 1;
            if wrong <= REPORTED {
                report(&order.escape_debug().to_string(), Some(known));
            }
        }
    }
}

/// The next line, of which no more than an order has is kept.
fn next(lines: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    lines.take(LONGEST as u64).read_until(b'\n', &mut line).ok()?;
    let is_whole = line.ends_with(b"\n");
    if line.is_empty() {
        return None;
    }
    if !is_whole && line.len() == LONGEST {
        skip(lines)?;
        line.extend_from_slice(b"...");
    }
    Some(String::from_utf8_lossy(&line).into_owned())
}

/// Reads up to the end of the line.
fn skip(lines: &mut impl BufRead) -> Option<()> {
    loop {
        let buffer = lines.fill_buf().ok()?;
        let (length, found) = match buffer.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        lines.consume(length);
        if found {
            return Some(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::{BufReader, repeat};

    use super::*;

    fn reports_of(input: impl BufRead) -> Vec<(String, bool)> {
        let reports = RefCell::new(Vec::new());
        listen(
            input,
            "start",
            |order| order == "start",
            |order, error| {
                reports.borrow_mut().push((order.to_owned(), error.is_none()));
            },
        );
        reports.into_inner()
    }

    #[test]
    fn word_that_is_no_order_is_reported_and_others_are_obeyed() {
        let expected = [("go", false), ("start", true), ("", false), ("start", true)];
        let expected = expected.map(|(order, obeyed)| (order.to_owned(), obeyed));
        assert_eq!(reports_of(&b"go\n start \n\nstart"[..]), expected);
    }

    #[test]
    fn a_line_without_end_is_not_kept() {
        let zeros = BufReader::new(repeat(0).take(100 << 20)).chain(&b"\nstart\n"[..]);
        let found = reports_of(zeros);
        assert_eq!(found.len(), 2);
        assert!(found[0].0.len() < 1000 && !found[0].1, "{}", found[0].0.len());
        assert_eq!(found[1], ("start".to_owned(), true));
    }

    #[test]
    fn lines_that_are_no_orders_do_not_fill_the_log() {
        let many = "x\n".repeat(1000) + "start\n";
        let found = reports_of(many.as_bytes());
        assert_eq!(found.len(), REPORTED + 1);
        assert_eq!(found[REPORTED], ("start".to_owned(), true));
    }
}
