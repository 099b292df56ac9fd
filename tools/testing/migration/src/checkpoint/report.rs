// SPDX-License-Identifier: GPL-2.0-or-later
//! Tables of what was measured of checkpoints, for people and for the documentation.

use std::fmt::Write;

use vmem_figures::{Figure, Line};

use super::goals::GOALS;
use super::results::Results;
use crate::report::{BEGIN, END, table};
use crate::seconds::seconds;

/// The plot beside the document.
pub(super) const PLOT: &str = "checkpoint-goals.svg";

/// The tables.
pub(super) fn text(results: &Results) -> String {
    let setting = &results.book.setting;
    let mut out = format!(
        "Linux {}, {} x {} ({}), {} MiB, on {}; commit {}\n{}\n\nGoals, as medians of the ratios of each round [10 % .. 90 %]\n\n",
        setting.kernel,
        setting.cpus,
        setting.cpu,
        setting.accelerator,
        setting.memory_mib,
        setting.host_cpu,
        setting.commit,
        results.guest
    );
    let goals: Vec<Vec<String>> = GOALS
        .iter()
        .map(|goal| {
            let ratio = goal.ratio(results);
            let ratio = ratio.map_or_else(String::new, |ratio| spread(ratio, |value| format!("{value:.3}")));
            vec![
                goal.text.into(),
                format!("<= {}", goal.limit),
                ratio,
                goal.verdict(results).into(),
            ]
        })
        .collect();
    out += &table(&["figure", "goal", "measured", "verdict"].map(str::to_owned), &goals);
    out += "\nFigures, medians [10 % .. 90 %]\n\n";
    let rows: Vec<Vec<String>> = results.book.lines.iter().flat_map(rows).collect();
    out += &table(&["figure", "by", "measured", "rounds"].map(str::to_owned), &rows);
    if !results.failures.is_empty() {
        out += "\nNot in the tables, because they failed:\n\n";
    }
    for failure in &results.failures {
        let _ = writeln!(out, "{failure}");
    }
    out
}

/// A row for each of those compared in a line.
fn rows(line: &Line) -> Vec<Vec<String>> {
    let row = |(number, cell): (usize, &vmem_figures::Cell)| {
        let what = if number == 0 { line.what.clone() } else { String::new() };
        let figure =
            Figure::of(&cell.rounds).map_or_else(String::new, |figure| spread(figure, |value| in_unit(value, &line.unit)));
        vec![what, cell.by.clone(), figure, cell.rounds.len().to_string()]
    };
    line.cells.iter().enumerate().map(row).collect()
}

/// A median, and between what the others are if there are others.
fn spread(figure: Figure, text: impl Fn(f64) -> String) -> String {
    let median = text(figure.median);
    if figure.low >= figure.high {
        return median;
    }
    format!("{median} [{} .. {}]", text(figure.low), text(figure.high))
}

fn in_unit(value: f64, unit: &str) -> String {
    match unit {
        "s" => seconds(value),
        "bytes" => format!("{:.2} MiB", value / f64::from(1 << 20)),
        "reads" => format!("{value:.0} reads"),
        unit => format!("{value:.2} {unit}"),
    }
}

/// `document` with the tables of `results` instead of those that it has. None if it has no place for them.
pub(super) fn replace(document: &str, results: &Results) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    let mut measured = format!(".. image:: {PLOT}\n   :alt: what was reached of each goal\n\n::\n\n");
    for line in text(results).lines() {
        let _ = writeln!(measured, "{}", format!("  {line}").trim_end());
    }
    Some(format!("{before}{BEGIN}\n{measured}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::super::names::{ARMING, UFFD_WP, VMEM_BENCH};
    use super::super::results::tests::results;
    use super::*;

    #[test]
    fn document_gets_the_tables_between_its_marks() {
        let results = results(&[(ARMING, VMEM_BENCH, 0.002), (ARMING, UFFD_WP, 0.001)]);
        assert_eq!(replace("nothing\n", &results), None);
        let document = replace(&format!("before\n{BEGIN}old\n{END}after\n"), &results).expect("a place");
        assert!(document.starts_with("before\n") && document.ends_with(&format!("\n{END}after\n")) && !document.contains("old"));
        let line = document
            .lines()
            .find(|line| line.contains("arming / userfaultfd-wp"))
            .expect("a goal");
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[words.len() - 4..], ["<=", "1", "2.000", "missed"]);
        assert!(document.contains("2.00 ms") && document.contains("not measured"));
    }
}
