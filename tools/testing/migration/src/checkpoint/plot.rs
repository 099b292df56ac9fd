// SPDX-License-Identifier: GPL-2.0-or-later
//! What was reached of each goal, as SVG: a bar for each ratio, on a scale on which each goal is at the same place.

use std::fmt::Write;

use super::goals::GOALS;
use super::results::Results;
use crate::chart::escape;

/// Sizes, in pixels.
const WIDTH: f64 = 860.0;
const LEFT: f64 = 350.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 50.0;
const ROW: f64 = 24.0;
const BAR: f64 = 14.0;
/// Where the bar of a goal that is just reached ends, and the longest bar, in goals.
const LONGEST: f64 = 3.0;

/// The plot.
pub(super) fn goals(results: &Results) -> String {
    let measured: Vec<_> = GOALS.iter().filter_map(|goal| Some((goal, goal.ratio(results)?))).collect();
    let height = TOP + measured.len() as f64 * ROW + 30.0;
    let scale = (WIDTH - LEFT - RIGHT) / LONGEST;
    let mut out = format!(
        "<!-- SPDX-License-Identifier: GPL-2.0 -->\n<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"20\" y=\"20\" font-size=\"14\">Checkpoints: ratios to peers, each over its goal</text>\n"
    );
    for (number, (goal, ratio)) in measured.iter().enumerate() {
        let top = TOP + number as f64 * ROW;
        let reached = ratio.median / goal.limit;
        let colour = if reached <= 1.0 { "#2ca02c" } else { "#d62728" };
        let width = reached.min(LONGEST) * scale;
        let _ = writeln!(
            out,
            r#"<text x="{}" y="{}" text-anchor="end">{}</text>"#,
            LEFT - 8.0,
            top + 11.0,
            escape(goal.text)
        );
        let _ = writeln!(
            out,
            r#"<rect x="{LEFT}" y="{top}" width="{width:.1}" height="{BAR}" fill="{colour}"/>"#
        );
        let _ = writeln!(
            out,
            r#"<text x="{:.1}" y="{}">{:.3} (goal {})</text>"#,
            LEFT + width + 6.0,
            top + 11.0,
            ratio.median,
            goal.limit
        );
    }
    let goal = LEFT + scale;
    let _ = writeln!(
        out,
        r##"<path d="M{goal:.1} {}V{}" stroke="#000" stroke-dasharray="3 3"/><text x="{goal:.1}" y="{}" text-anchor="middle">goal</text>"##,
        TOP - 8.0,
        height - 24.0,
        height - 10.0
    );
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::super::names::{ARMING, FIRST_WRITE, UFFD_WP, VMEM_BENCH};
    use super::super::results::tests::results;
    use super::*;

    #[test]
    fn bar_of_a_missed_goal_is_red_and_ends_within_the_plot() {
        let svg = goals(&results(&[
            (ARMING, VMEM_BENCH, 50.0),
            (ARMING, UFFD_WP, 1.0),
            (FIRST_WRITE, VMEM_BENCH, 0.1),
            (FIRST_WRITE, UFFD_WP, 1.0),
        ]));
        assert_eq!(svg.matches("#d62728").count(), 1);
        assert_eq!(svg.matches("#2ca02c").count(), 1);
        assert!(svg.contains("50.000 (goal 1)") && svg.contains(r#"width="380.0""#), "{svg}");
    }
}
