// SPDX-License-Identifier: GPL-2.0
//! Plots of moves, as SVG: one panel for each load, one line for each way. A plot of lines is little enough to be written here; a crate for it would
//! bring fonts and rasters along.

use std::fmt::Write;

use crate::book::{Book, Figures};
use crate::method::Method;

/// A plot of all loads.
struct Plot<'a> {
    title: &'a str,
    unit: &'a str,
    panels: Vec<Panel>,
}

/// What is in one coordinate system.
struct Panel {
    name: String,
    lines: Vec<Line>,
}

/// A way's line.
struct Line {
    method: Method,
    /// Seconds since the order, and a value.
    points: Vec<(f64, f64)>,
}

/// Sizes, in pixels.
const WIDTH: f64 = 860.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 240.0;
const PANEL: f64 = 170.0;
const GAP: f64 = 50.0;
const TOP: f64 = 50.0;
/// A line in the key.
const KEY: f64 = 13.0;
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
                method: *method,
                points: thin(points(figures)),
            })
            .filter(|line| line.points.len() > 1)
            .collect(),
    });
    let panels = panels.filter(|panel| !panel.lines.is_empty()).collect();
    Plot { title, unit, panels }.svg()
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

/// A colour for each way; those of vmem are thick.
fn style(method: Method) -> String {
    let colour = match method {
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
    };
    let width = if method.mode().is_some() { 2.2 } else { 1.2 };
    format!(r#"fill="none" stroke="{colour}" stroke-width="{width}""#)
}

impl Plot<'_> {
    fn svg(&self) -> String {
        let height = TOP + self.panels.len() as f64 * (PANEL + GAP);
        let mut out = format!(
            "<!-- SPDX-License-Identifier: GPL-2.0 -->\n<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
             <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{}</text>\n",
            escape(self.title)
        );
        for (number, panel) in self.panels.iter().enumerate() {
            panel.draw(&mut out, self.unit, TOP + number as f64 * (PANEL + GAP));
        }
        out + "</svg>\n"
    }
}

impl Panel {
    fn draw(&self, out: &mut String, unit: &str, top: f64) {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let (longest, highest) = points().fold((0.0, 0.0), |most: (f64, f64), point| {
            (most.0.max(point.0), most.1.max(point.1))
        });
        // A step of the axes is 1, 2 or 5 times a power of ten.
        let (across, up) = (step(longest), step(highest));
        let (longest, highest) = (up_to(longest, across), up_to(highest, up));
        let width = WIDTH - LEFT - RIGHT;
        let x = |time: f64| LEFT + time / longest * width;
        let y = |value: f64| top + PANEL - value / highest * PANEL;
        let _ = writeln!(
            out,
            r#"<text x="{LEFT}" y="{}" font-weight="bold">{}</text>"#,
            top - 6.0,
            escape(&self.name)
        );
        for number in 0..=(longest / across).round() as u32 {
            let time = f64::from(number) * across;
            let _ = writeln!(out, r##"<path d="M{:.0} {top}V{}" stroke="#eee"/>"##, x(time), top + PANEL);
            let _ = writeln!(
                out,
                r#"<text x="{:.0}" y="{}" text-anchor="middle">{}</text>"#,
                x(time),
                top + PANEL + 14.0,
                seconds_of_axis(time)
            );
        }
        for number in 0..=(highest / up).round() as u32 {
            let value = f64::from(number) * up;
            let _ = writeln!(out, r##"<path d="M{LEFT} {:.0}H{}" stroke="#eee"/>"##, y(value), LEFT + width);
            let _ = writeln!(
                out,
                r#"<text x="{}" y="{:.0}" text-anchor="end">{}</text>"#,
                LEFT - 6.0,
                y(value) + 4.0,
                trimmed(value)
            );
        }
        let _ = writeln!(
            out,
            r#"<text x="{}" y="{}" text-anchor="end">{unit}</text>"#,
            LEFT + width,
            top - 6.0
        );
        for (number, line) in self.lines.iter().enumerate() {
            let path: Vec<String> = line
                .points
                .iter()
                .map(|(time, value)| format!("{:.0} {:.0}", x(*time), y(*value)))
                .collect();
            let style = style(line.method);
            let _ = writeln!(out, r#"<path d="M{}" {style}/>"#, path.join("L"));
            let (at, key) = (LEFT + width + 12.0, top + 6.0 + number as f64 * KEY);
            let _ = writeln!(out, r#"<path d="M{at} {key}h24" {style}/>"#);
            let _ = writeln!(
                out,
                r#"<text x="{}" y="{}">{}</text>"#,
                at + 30.0,
                key + 4.0,
                escape(line.method.name())
            );
        }
    }
}

/// A round number, of which there are three to seven in this.
fn step(most: f64) -> f64 {
    let most = if most > 0.0 { most } else { 1.0 };
    let power = 10_f64.powf((most / 5.0).log10().floor());
    match most / 5.0 / power {
        small if small < 1.5 => power,
        middling if middling < 3.5 => 2.0 * power,
        _ => 5.0 * power,
    }
}

/// The least multiple of `step` that is not less.
fn up_to(most: f64, step: f64) -> f64 {
    (most / step).ceil().max(1.0) * step
}

fn seconds_of_axis(time: f64) -> String {
    if time == 0.0 {
        "0".into()
    } else {
        format!("{} s", trimmed(time))
    }
}

/// Without digits that tell nothing.
fn trimmed(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
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
    fn steps_of_axes_are_round() {
        for (most, size) in [(1.2, 0.2), (0.0, 0.2), (10.0, 2.0), (57.0, 10.0), (192.0, 50.0)] {
            let found = step(most);
            assert!((found - size).abs() < 1e-9, "{most}: {found}");
        }
        assert_eq!((trimmed(0.25), trimmed(150.0)), ("0.25".to_owned(), "150".to_owned()));
    }

    #[test]
    fn thin_lines_keep_the_mean() {
        let points: Vec<(f64, f64)> = (0..1000).map(|number| (f64::from(number), 2.0)).collect();
        let thin = thin(points);
        assert!(thin.len() <= POINTS && thin.iter().all(|(_, value)| (value - 2.0).abs() < 1e-9));
    }
}
