// SPDX-License-Identifier: GPL-2.0-or-later
//! Times for people.

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
}
