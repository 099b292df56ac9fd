// SPDX-License-Identifier: GPL-2.0-or-later
//! Tables of what was measured, for people and for the documentation.

use std::fmt::Write;

use crate::book::{Book, Figures, median};
use crate::goals::{self, Goal};
use crate::method::Method;
use crate::seconds::seconds;

/// Where the documentation's tables begin and end.
pub(crate) const BEGIN: &str = ".. begin measured\n";
pub(crate) const END: &str = ".. end measured\n";

/// The plots beside the document, and what they are called there.
pub(crate) const PLOTS: [(&str, &str); 2] = [
    ("migration-work.svg", "the guest's work over time"),
    ("migration-left.svg", "memory that is to be sent over time"),
];

const HEAD: [&str; 11] = [
    "way",
    "order -> stop",
    "stop -> runs",
    "(reported)",
    "stop -> complete",
    "order -> complete",
    "guest's own gap",
    "client's wait",
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
        let lines = Method::ALL.iter().map(|method| (*method, book.line(*method, load)));
        let lines: Vec<(Method, Vec<&Figures>)> = lines.filter(|(_, trials)| !trials.is_empty()).collect();
        let data = book.data_bytes(load);
        let rows: Vec<Vec<String>> = lines.iter().map(|(method, trials)| row(*method, trials, data)).collect();
        let counts = || lines.iter().map(|(_, trials)| trials.len());
        let rounds = rounds_text(counts().min().unwrap_or_default(), counts().max().unwrap_or_default());
        let _ = writeln!(out, "\nguest {load}, {rounds}\n");
        out.push_str(&table(&HEAD.map(str::to_owned), &rows));
    }
    if let Some(text) = parts(book) {
        let _ = writeln!(out, "\n{text}");
    }
    let _ = writeln!(out, "\nGoals\n");
    out.push_str(&goals_table(book));
    if !book.failures.is_empty() {
        let _ = writeln!(out, "\nNot in the tables, because they failed:\n");
    }
    for failure in &book.failures {
        // What QEMU says of a virtual processor has many lines.
        let error = failure.error.lines().next().unwrap_or_default();
        let _ = writeln!(out, "{}: {error}", failure.trial.name());
    }
    out
}

/// What part of the time from the stop until the guest runs is whose.
fn parts(book: &Book) -> Option<String> {
    let ours = || book.trials.iter().filter(|figures| figures.trial.method.mode().is_some());
    let saved = median(ours().filter_map(|figures| figures.stop_to_saved))?;
    let after = median(ours().filter_map(|figures| Some(figures.stop_to_runs? - figures.stop_to_saved?)))?;
    let qemu = book.trials.iter().filter(|figures| figures.trial.method == Method::Precopy);
    let qemu = median(qemu.filter_map(|figures| figures.stop_to_runs));
    let mut text = format!(
        "Of \"stop -> runs\" of vmem with rounds, {} are QEMU's saving of the devices and vmemd's last take of the log, and {} the way of the\n\
         devices' state to the destination's QEMU, which loads it and continues (medians of all moves with rounds).",
        seconds(saved),
        seconds(after)
    );
    if let Some(qemu) = qemu {
        let _ = write!(
            text,
            " QEMU's own pre-copy takes {} for\nboth, and for the last of the memory.",
            seconds(qemu)
        );
    }
    Some(text)
}

fn goals_table(book: &Book) -> String {
    let mut head = vec!["goal".to_owned()];
    head.extend(book.loads().iter().map(|load| short(load)));
    head.push("verdict".to_owned());
    let row = |goal: Goal| [vec![goal.text], goal.figures, vec![goal.verdict]].concat();
    let rows: Vec<Vec<String>> = goals::goals(book).into_iter().map(row).collect();
    table(&head, &rows)
}

/// A load, in a column.
fn short(load: &str) -> String {
    match load.strip_prefix("writing ").and_then(|rest| rest.split_once(" times ")) {
        Some((times, _)) => format!("{times} x"),
        None => load.split(' ').next().unwrap_or_default().to_owned(),
    }
}

/// `document` with the tables of `book` instead of those that it has. None if it has no place for them.
pub(crate) fn replace(document: &str, book: &Book) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    let mut measured = String::new();
    if !book.trials.is_empty() {
        for (file, name) in PLOTS {
            let _ = writeln!(measured, ".. image:: {file}\n   :alt: {name}\n");
        }
    }
    measured += "::\n\n";
    for line in text(book).lines() {
        let _ = writeln!(measured, "{}", format!("  {line}").trim_end());
    }
    Some(format!("{before}{BEGIN}\n{measured}\n{END}{after}"))
}

fn rounds_text(least: usize, most: usize) -> String {
    match (least, most) {
        (1, 1) => "moved once".into(),
        (least, most) if least == most => format!("moved {most} times, medians"),
        (least, most) => format!("moved {least} to {most} times, medians"),
    }
}

fn row(method: Method, trials: &[&Figures], data: Option<f64>) -> Vec<String> {
    let given_up = trials.iter().filter(|trial| !trial.done).count();
    if given_up > 0 {
        let mut row = vec![String::new(); HEAD.len()];
        row[0] = method.name().into();
        row[1] = format!("not moved in {given_up} of {} rounds", trials.len());
        let pace = median(trials.iter().filter_map(|trial| trial.pace));
        if let Some(pace) = pace {
            row[1] += &format!("; work meanwhile {:.0} %", pace * 100.0);
        }
        return row;
    }
    let of = |figure: fn(&Figures) -> f64| median(trials.iter().map(|trial| figure(trial))).unwrap_or_default();
    let time = |figure: fn(&Figures) -> Option<f64>| {
        let median = median(trials.iter().filter_map(|trial| figure(trial)));
        median.map_or_else(|| "-".into(), seconds)
    };
    let pace = median(trials.iter().filter_map(|trial| trial.pace));
    let bytes = of(|trial| trial.bytes as f64);
    let overhead = data.map_or_else(String::new, |data| format!(" (x {:.3})", bytes / data));
    vec![
        method.name().into(),
        time(|trial| trial.order_to_stop),
        time(|trial| trial.stop_to_runs),
        time(|trial| trial.reported_downtime),
        time(|trial| trial.stop_to_complete),
        time(|trial| Some(trial.total)),
        time(|trial| Some(trial.guest_gap)),
        time(|trial| Some(trial.client_wait)),
        format!("{:.1} MiB{overhead}", bytes / 1048576.0),
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

/// A table in fixed-width text.
pub(crate) fn table(head: &[String], rows: &[Vec<String>]) -> String {
    let mut widths = vec![0; head.len()];
    for row in rows.iter().map(Vec::as_slice).chain([head]) {
        // What spans columns does not make them wide.
        let spans = row[2..].iter().all(String::is_empty);
        for (width, cell) in widths.iter_mut().zip(row).take(if spans { 1 } else { head.len() }) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in std::iter::once(head).chain(rows.iter().map(Vec::as_slice)) {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::tests::book;

    #[test]
    fn a_document_without_a_place_is_not_changed() {
        let book = book(&[]);
        assert_eq!(replace("nothing\n", &book), None);
        let document = format!("before\n{BEGIN}old\n{END}after\n");
        let replaced = replace(&document, &book).expect("a place");
        assert!(
            replaced.starts_with(&format!("before\n{BEGIN}\n::\n\n  here\n")) && replaced.ends_with(&format!("\n{END}after\n"))
        );
        assert!(!replaced.contains("old") && !replaced.contains("image"));
    }

    #[test]
    fn tables_have_a_row_for_each_way_and_the_goals_a_column_for_each_load() {
        let moves = [
            (Method::VmemHybrid, "idle", 0.1, 1.0),
            (Method::Postcopy, "idle", 0.2, 1.0),
            (Method::Postcopy, "writing 0.5 times what the wire carries", 0.2, 1.0),
        ];
        let mut book = book(&moves);
        book.trials[2].done = false;
        let text = text(&book);
        for line in [
            "vmem hybrid     1.00 s         100 ms        100 ms      1.00 s            2.00 s             100 ms           100 ms         0.0 MiB (x 1.010)",
            "QEMU post-copy  not moved in 1 of 1 rounds; work meanwhile 50 %",
        ] {
            assert!(text.lines().any(|found| found.starts_with(line)), "{line}:\n{text}");
        }
        let head = text.lines().find(|line| line.starts_with("goal")).expect("goals");
        assert!(head.split_whitespace().eq(["goal", "idle", "0.5", "x", "verdict"]), "{head}");
    }
}
