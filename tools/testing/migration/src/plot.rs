// SPDX-License-Identifier: GPL-2.0-or-later
//! Plots of moves: one panel for each load, one line for each way.

use crate::book::{Book, Figures};
use crate::chart::{Chart, Line, Panel};
use crate::method::Method;

/// Points of a line: more are not seen.
const POINTS: usize = 80;

/// The guest's work over time, compared with what it does undisturbed.
pub(crate) fn work(book: &Book) -> String {
    let points = |figures: &Figures| figures.pace_over_time.clone();
    plot(
        book,
        "The guest's work over time, from the order to move",
        "of undisturbed",
        points,
    )
}

/// The memory that is to be sent over time.
pub(crate) fn left(book: &Book) -> String {
    let points = |figures: &Figures| {
        let in_mib = |(time, bytes): &(f64, u64)| (*time, *bytes as f64 / f64::from(1 << 20));
        figures.left_over_time.iter().map(in_mib).collect()
    };
    plot(
        book,
        "Memory that is to be sent over time, from the order to move",
        "MiB",
        points,
    )
}

fn plot(book: &Book, title: &str, unit: &str, points: impl Fn(&Figures) -> Vec<(f64, f64)>) -> String {
    let panels = book.loads().into_iter().map(|load| Panel {
        name: format!("guest {load}"),
        lines: Method::ALL
            .iter()
            // The same ways; their lines would only hide each other.
            .filter(|method| !method.has_tls())
            .filter_map(|method| typical(&book.line(*method, load)).map(|figures| (method, figures)))
            .map(|(method, figures)| Line {
                name: method.name(),
                colour: colour(*method),
                // Those of vmem are thick.
                width: if method.mode().is_some() { 2.2 } else { 1.2 },
                points: thin(points(figures)),
            })
            .filter(|line| line.points.len() > 1)
            .collect(),
    });
    let panels = panels.filter(|panel| !panel.lines.is_empty()).collect();
    Chart { title, unit, panels }.svg()
}

/// The trial whose duration is the median, or the longer one of two.
fn typical<'a>(trials: &[&'a Figures]) -> Option<&'a Figures> {
    let mut trials = trials.to_vec();
    trials.sort_by(|one, other| one.total.total_cmp(&other.total));
    trials.get(trials.len() / 2).copied()
}

/// Fewer points: each is the mean of those that are left out.
fn thin(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(POINTS).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let count = chunk.len() as f64;
        let sum = chunk.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / count, sum.1 / count)
    };
    match size {
        1 => points,
        size => points.chunks(size).map(mean).collect(),
    }
}

/// A colour for each way.
fn colour(method: Method) -> &'static str {
    match method {
        Method::Precopy => "#1f77b4",
        Method::PrecopyAutoConverge => "#17becf",
        Method::PrecopyXbzrle => "#9467bd",
        Method::Multifd => "#8c564b",
        Method::Postcopy => "#7f7f7f",
        Method::PostcopyAfterRound => "#bcbd22",
        Method::PostcopyPreempt => "#c7a5d8",
        Method::VmemHybrid | Method::VmemHybridTls => "#d62728",
        Method::VmemPrecopy | Method::VmemPrecopyTls => "#2ca02c",
        Method::VmemPostcopy | Method::VmemPostcopyTls => "#ff7f0e",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::tests::book;

    #[test]
    fn each_load_has_a_panel_and_each_way_a_line() {
        let book = book(&[
            (Method::VmemHybrid, "idle", 0.1, 1.0),
            (Method::Postcopy, "idle", 0.2, 1.0),
            (Method::Postcopy, "writing", 0.2, 1.0),
        ]);
        for svg in [work(&book), left(&book)] {
            assert_eq!(svg.matches("font-weight").count(), 2, "{svg}");
            // A line, and its sign in the key.
            assert_eq!(svg.matches(r#"fill="none""#).count(), 6, "{svg}");
            assert!(svg.starts_with("<!-- SPDX") && svg.ends_with("</svg>\n") && svg.contains("vmem hybrid"));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn thin_lines_keep_the_mean() {
        let points: Vec<(f64, f64)> = (0..1000).map(|number| (f64::from(number), 2.0)).collect();
        let thin = thin(points);
        assert!(thin.len() <= POINTS && thin.iter().all(|(_, value)| (value - 2.0).abs() < 1e-9));
    }
}
