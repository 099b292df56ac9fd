// SPDX-License-Identifier: GPL-2.0
//! Tables of what was measured, for people and for the documentation.

use std::fmt::Write;

use crate::book::{Book, Figures, median};
use crate::method::Method;

/// Where the documentation's tables begin and end.
const BEGIN: &str = ".. begin measured\n";
const END: &str = ".. end measured\n";

const HEAD: [&str; 8] = [
    "way",
    "guest's own gap",
    "client's wait",
    "(reported)",
    "complete after",
    "on the wire",
    "work meanwhile",
    "touch p50 / p99 / max",
];

/// The tables.
pub(crate) fn text(book: &Book) -> String {
    let mut out = String::new();
    for line in &book.setting {
        let _ = writeln!(out, "{line}");
    }
    for load in book.loads() {
        let rows: Vec<[String; 8]> = Method::ALL
            .iter()
            .map(|method| (method, book.line(*method, load)))
            .filter(|(_, trials)| !trials.is_empty())
            .map(|(method, trials)| row(*method, &trials))
            .collect();
        let rounds = Method::ALL.iter().map(|method| book.line(*method, load).len()).max();
        let _ = writeln!(out, "\nguest {load}, {}\n", rounds_text(rounds.unwrap_or_default()));
        out.push_str(&table(&rows));
    }
    if !book.failures.is_empty() {
        let _ = writeln!(out, "\nNot in the tables, because they failed:\n");
    }
    for failure in &book.failures {
        // What QEMU says of a virtual processor has many lines.
        let _ = writeln!(out, "{}", failure.lines().next().unwrap_or_default());
    }
    out
}

/// `document` with the tables of `book` instead of those that it has. None if it has no place for them.
pub(crate) fn replace(document: &str, book: &Book) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    let mut indented = String::new();
    for line in text(book).lines() {
        let _ = writeln!(indented, "{}", format!("  {line}").trim_end());
    }
    Some(format!("{before}{BEGIN}\n::\n\n{indented}\n{END}{after}"))
}

fn rounds_text(rounds: usize) -> String {
    match rounds {
        1 => "moved once".into(),
        rounds => format!("moved {rounds} times, medians"),
    }
}

fn row(method: Method, trials: &[&Figures]) -> [String; 8] {
    let given_up = trials.iter().filter(|trial| !trial.done).count();
    if given_up > 0 {
        let mut row = std::array::from_fn(|_| String::new());
        row[0] = method.name().into();
        row[1] = format!("not moved in {given_up} of {} rounds", trials.len());
        return row;
    }
    let of = |figure: fn(&Figures) -> f64| median(trials.iter().map(|trial| figure(trial))).unwrap_or_default();
    let pace = median(trials.iter().filter_map(|trial| trial.pace));
    let reported = median(trials.iter().filter_map(|trial| trial.reported_downtime));
    [
        method.name().into(),
        seconds(of(|trial| trial.guest_gap)),
        seconds(of(|trial| trial.client_wait)),
        reported.map_or_else(|| "-".into(), seconds),
        seconds(of(|trial| trial.total)),
        format!("{:.1} MiB{}", of(|trial| trial.bytes as f64) / 1048576.0, overhead(trials)),
        pace.map_or_else(
            || "-".into(),
            |pace| format!("{:.0} pages, {:.0} %", of(|trial| trial.work as f64), pace * 100.0),
        ),
        [
            of(|trial| trial.touch_p50),
            of(|trial| trial.touch_p99),
            of(|trial| trial.touch_max),
        ]
        .map(seconds)
        .join(" / "),
    ]
}

/// What was sent for each byte that is not zero.
fn overhead(trials: &[&Figures]) -> String {
    let ratios = trials
        .iter()
        .filter_map(|trial| Some(trial.bytes as f64 / trial.data_bytes? as f64));
    median(ratios).map_or_else(String::new, |ratio| format!(" (x {ratio:.3})"))
}

/// Three digits and a unit.
pub(crate) fn seconds(seconds: f64) -> String {
    let (value, unit) = match seconds {
        long if long >= 1.0 => (long, "s"),
        middling if middling >= 1e-3 => (middling * 1e3, "ms"),
        short => (short * 1e6, "us"),
    };
    match value {
        value if value >= 100.0 => format!("{value:.0} {unit}"),
        value if value >= 10.0 => format!("{value:.1} {unit}"),
        value => format!("{value:.2} {unit}"),
    }
}

fn table(rows: &[[String; 8]]) -> String {
    let head = HEAD.map(str::to_owned);
    let mut widths = [0; 8];
    for row in rows.iter().chain([&head]) {
        // What spans columns does not make them wide.
        let spans = row[2..].iter().all(String::is_empty);
        for (width, cell) in widths.iter_mut().zip(row).take(if spans { 1 } else { 8 }) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits() {
        for (value, text) in [
            (1.234, "1.23 s"),
            (0.0123, "12.3 ms"),
            (0.000_002_5, "2.50 us"),
            (0.123, "123 ms"),
        ] {
            assert_eq!(seconds(value), text);
        }
    }

    #[test]
    fn a_document_without_a_place_is_not_changed() {
        let book = Book {
            setting: vec!["here".into()],
            trials: vec![],
            failures: vec![],
        };
        assert_eq!(replace("nothing\n", &book), None);
        let document = format!("before\n{BEGIN}old\n{END}after\n");
        assert_eq!(
            replace(&document, &book),
            Some(format!("before\n{BEGIN}\n::\n\n  here\n\n{END}after\n"))
        );
    }
}
