// SPDX-License-Identifier: GPL-2.0-or-later
//! Lines over time, as SVG. That is little enough to be written here; a crate for it would bring fonts and rasters along.

use std::fmt::Write;

/// Panels below each other.
pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    /// Of the values.
    pub(crate) unit: &'a str,
    pub(crate) panels: Vec<Panel>,
}

/// What is in one coordinate system.
pub(crate) struct Panel {
    pub(crate) name: String,
    pub(crate) lines: Vec<Line>,
}

/// Values over time.
pub(crate) struct Line {
    pub(crate) name: &'static str,
    pub(crate) colour: &'static str,
    /// Its width in pixels.
    pub(crate) width: f64,
    /// Seconds, and a value.
    pub(crate) points: Vec<(f64, f64)>,
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
impl Chart<'_> {
    /// The drawing, as a file.
    pub(crate) fn svg(&self) -> String {
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
            let style = format!(r#"fill="none" stroke="{}" stroke-width="{}""#, line.colour, line.width);
            let _ = writeln!(out, r#"<path d="M{}" {style}/>"#, path.join("L"));
            let (at, key) = (LEFT + width + 12.0, top + 6.0 + number as f64 * KEY);
            let _ = writeln!(out, r#"<path d="M{at} {key}h24" {style}/>"#);
            let _ = writeln!(
                out,
                r#"<text x="{}" y="{}">{}</text>"#,
                at + 30.0,
                key + 4.0,
                escape(line.name)
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

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_axes_are_round() {
        for (most, size) in [(1.2, 0.2), (0.0, 0.2), (10.0, 2.0), (57.0, 10.0), (192.0, 50.0)] {
            let found = step(most);
            assert!((found - size).abs() < 1e-9, "{most}: {found}");
        }
        assert_eq!((trimmed(0.25), trimmed(150.0)), ("0.25".to_owned(), "150".to_owned()));
    }
}
