// SPDX-License-Identifier: GPL-2.0
//! A progress bar on the terminal at standard error, which nobody waits for.

use std::io;

use rustix::termios::tcgetwinsize;

use crate::output;

/// Columns of a terminal that does not say how many it has.
const COLUMNS: usize = 80;

/// The bar. It is there from the first time that it is shown until it is cleared or dropped.
#[derive(Debug, Default)]
pub struct Bar {
    shown: String,
}

impl Bar {
    /// Shows `part` of `whole`, with a text beside it.
    pub fn show(&mut self, part: u64, whole: u64, text: &str) {
        let columns = tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col));
        let line = draw(part, whole, text, if columns == 0 { COLUMNS } else { columns });
        if line != self.shown {
            self.shown.clone_from(&line);
            output::status(line);
        }
    }

    /// Takes it away.
    pub fn clear(&mut self) {
        if !std::mem::take(&mut self.shown).is_empty() {
            output::status(String::new());
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The line of a terminal that has so many columns. The last one stays free: some terminals begin a line when it is filled.
fn draw(part: u64, whole: u64, text: &str, columns: usize) -> String {
    let text: String = text.chars().take(columns.saturating_sub(1)).collect();
    let width = columns.saturating_sub(text.chars().count() + 2);
    let done = (part.min(whole) as f64 / whole.max(1) as f64 * width as f64) as usize;
    let bar = format!("{}{}", "\u{2588}".repeat(done), "\u{2591}".repeat(width - done));
    if width == 0 { text } else { format!("{bar} {text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_fills_the_line_and_no_more() {
        assert_eq!(
            draw(1, 2, "50 %", 14),
            "\u{2588}\u{2588}\u{2588}\u{2588}\u{2591}\u{2591}\u{2591}\u{2591} 50 %"
        );
        assert_eq!(draw(9, 2, "all", 8), "\u{2588}\u{2588}\u{2588} all");
        assert_eq!(draw(0, 0, "", 3), "\u{2591} ");
        assert_eq!(draw(1, 2, "a long text", 5), "a lo");
        for columns in 0..40 {
            assert!(draw(1, 3, "some text", columns).chars().count() <= columns.saturating_sub(1));
        }
    }
}
