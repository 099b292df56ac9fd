// SPDX-License-Identifier: GPL-2.0-or-later
//! Tables of results, for people and for the documentation.

use std::fmt::Write;

use vmem_figures::{Book, Cell, Figure, Line, Setting};

use crate::case::CASES;
use crate::goal::{best_userfault, verdicts};

/// A place for tables in the documentation.
struct Place {
    /// What is in it begins after this line, and ends before that.
    lines: (&'static str, &'static str),
    /// First and last of the cases that have their tables there.
    cases: (u8, u8),
    /// What the titles of its sections end with.
    suffix: &'static str,
}

const PLACES: [Place; 4] = [
    Place {
        lines: (".. begin measured\n", ".. end measured\n"),
        cases: (1, 9),
        suffix: "",
    },
    Place {
        lines: (".. begin measured writes\n", ".. end measured writes\n"),
        cases: (10, 12),
        suffix: ", writes",
    },
    Place {
        lines: (".. begin measured guest\n", ".. end measured guest\n"),
        cases: (13, 13),
        suffix: ", a guest's writes",
    },
    Place {
        lines: (".. begin measured backing\n", ".. end measured backing\n"),
        cases: (14, u8::MAX),
        suffix: ", backing",
    },
];

impl Place {
    /// What of the books has its place here.
    fn part(&self, books: &[Book]) -> Vec<Book> {
        let is_here = |line: &&Line| (self.cases.0..=self.cases.1).contains(&line.case);
        let part = |book: &Book| Book {
            setting: book.setting.clone(),
            lines: book.lines.iter().filter(is_here).cloned().collect(),
        };
        books.iter().map(part).filter(|book| !book.lines.is_empty()).collect()
    }
}

/// For a terminal.
pub(crate) fn text(books: &[Book]) -> String {
    let mut out = String::new();
    for book in books {
        let _ = write!(out, "\n{}\n{}", setting(&book.setting), table(book));
        let goals = goals(book);
        if !goals.is_empty() {
            let _ = writeln!(out, "\nGoals");
        }
        for [goal, line, figure, verdict] in goals {
            let _ = writeln!(out, "  {goal}\n    {line:<46} {figure:<22} {verdict}");
        }
    }
    out
}

/// As reStructuredText.
pub(crate) fn rst(books: &[Book]) -> String {
    let sections = PLACES.iter().map(|place| sections(place, &place.part(books)));
    sections.collect()
}

/// The sections of one place.
fn sections(place: &Place, books: &[Book]) -> String {
    let mut out = String::new();
    for book in books {
        let machine = match book.setting.counts_instructions() {
            true => "Instructions",
            false => "Time",
        };
        let title = format!("{machine}{}", place.suffix);
        let _ = writeln!(out, "{title}\n{}\n\n{}\n", "-".repeat(title.len()), setting(&book.setting));
        out.push_str(&simple_table(
            ["goal", "measured", "ratio or figure", "reached"],
            &goals(book),
        ));
        out.push_str(
            "\nAll figures: median [10 % .. 90 %], and the ratio to the userfaultfd mode that does best in that line. ::\n",
        );
        for line in table(book).lines() {
            let _ = writeln!(out, "{}", format!("  {line}").trim_end());
        }
        out.push('\n');
    }
    out
}

/// `document` with the tables of `books` instead of those that it has. A place for which the books have nothing stays as it is. `None` if a
/// place is missing.
pub(crate) fn replace(document: &str, books: &[Book]) -> Option<String> {
    let mut document = document.to_owned();
    for place in &PLACES {
        let books = place.part(books);
        if books.is_empty() {
            continue;
        }
        let (begin, end) = place.lines;
        let (before, rest) = document.split_once(begin)?;
        let (_, after) = rest.split_once(end)?;
        document = format!("{before}{begin}\n{}{end}{after}", sections(place, &books));
    }
    Some(document)
}

fn setting(setting: &Setting) -> String {
    format!(
        "Linux {}; {} x {} ({}), {} MiB, on {}; commit {}",
        setting.kernel, setting.cpus, setting.cpu, setting.accelerator, setting.memory_mib, setting.host_cpu, setting.commit
    )
}

/// One line for each goal and line of the book.
fn goals(book: &Book) -> Vec<[String; 4]> {
    let verdict = |reached| match reached {
        Some(true) => "yes",
        Some(false) => "no",
        None => "within the noise",
    };
    let row = |found: crate::goal::Verdict| {
        let figure = spread(found.figure);
        [found.goal.to_owned(), found.line, figure, verdict(found.reached).to_owned()]
    };
    verdicts(book).into_iter().map(row).collect()
}

fn table(book: &Book) -> String {
    let mut out = String::new();
    for case in CASES {
        let mut lines = book.lines.iter().filter(|line| line.case == case.number).peekable();
        if lines.peek().is_some() {
            let _ = writeln!(out, "\nCase {}: {}", case.number, case.title);
        }
        for line in lines {
            let _ = writeln!(out, "  {} ({})", line.what, unit(&book.setting, line));
            for cell in &line.cells {
                let figure = Figure::of(&cell.rounds).map_or_else(String::new, spread);
                let _ = writeln!(
                    out,
                    "{}",
                    format!("    {:<20} {figure:<24}{}", cell.by, ratio(line, cell)).trim_end()
                );
            }
        }
    }
    out
}

fn unit<'a>(setting: &Setting, line: &'a Line) -> &'a str {
    match line.unit.as_str() {
        "us" if setting.counts_instructions() => "1000 instructions",
        "us/page" if setting.counts_instructions() => "1000 instructions/page",
        unit => unit,
    }
}

/// Against the userfaultfd that does best here; what is not told apart from it is marked.
fn ratio(line: &Line, cell: &Cell) -> String {
    let Some(best) = best_userfault(line, cell).filter(|best| best.by != cell.by) else {
        return String::new();
    };
    Figure::of_ratio(cell, best).map_or_else(String::new, |ratio| {
        let noise = if ratio.differs_from_one() { "" } else { ", noise" };
        format!("{} of {}{noise}", spread(ratio), best.by)
    })
}

fn spread(figure: Figure) -> String {
    let [median, low, high] = [figure.median, figure.low, figure.high].map(short);
    format!("{median} [{low} .. {high}]")
}

/// Three digits.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A "simple table".
fn simple_table(head: [&str; 4], rows: &[[String; 4]]) -> String {
    let mut widths = head.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let line = |cells: [&str; 4]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join(" ").trim_end().to_owned() + "\n"
    };
    let rule = widths.map(|width| "=".repeat(width)).join(" ") + "\n";
    let mut out = format!("{rule}{}{rule}", line(head));
    for row in rows {
        out.push_str(&line([&row[0], &row[1], &row[2], &row[3]]));
    }
    out + &rule
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits() {
        for (value, text) in [(0.051, "0.05"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")] {
            assert_eq!(short(value), text);
        }
    }

    fn book(cases: &[u8]) -> Book {
        let setting = Setting {
            kernel: "6.18".into(),
            cpu: "some".into(),
            cpus: 2,
            memory_mib: 64,
            accelerator: "kvm".into(),
            host_cpu: "some".into(),
            commit: "none".into(),
        };
        let mut book = Book {
            setting,
            lines: Vec::new(),
        };
        for case in cases {
            book.add(*case, "figure", "us", "this", 1.0);
        }
        book
    }

    #[test]
    fn a_document_without_a_place_is_not_changed() {
        assert_eq!(replace("nothing\n", &[book(&[1])]), None);
        assert_eq!(replace("nothing\n", &[book(&[10])]), None);
    }

    #[test]
    fn each_case_goes_to_its_place_and_what_was_not_measured_stays() {
        let [(begin, end), (begin_writes, end_writes), ..] = PLACES.map(|place| place.lines);
        let document = format!("a\n{begin}old\n{end}b\n{begin_writes}old writes\n{end_writes}c\n");
        assert_eq!(replace(&document, &[]).as_deref(), Some(&*document));
        let writes = replace(&document, &[book(&[10])]).unwrap_or_default();
        assert!(writes.starts_with(&format!("a\n{begin}old\n{end}b\n{begin_writes}\nTime, writes\n")));
        assert!(writes.ends_with(&format!("{end_writes}c\n")) && !writes.contains("old writes"));
        let both = replace(&document, &[book(&[1, 10])]).unwrap_or_default();
        assert!(both.contains(&format!("{begin}\nTime\n----\n")) && both.contains("\nTime, writes\n"));
        assert!(!both.contains("old"));
    }
}
