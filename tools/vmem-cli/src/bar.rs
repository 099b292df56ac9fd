// SPDX-License-Identifier: GPL-2.0-or-later
//! A progress bar on the terminal at standard error. Drawing it never blocks.

use std::io;

use rustix::termios::tcgetwinsize;

use crate::output;
use crate::progress::Progress;

/// The width assumed for a terminal of unknown width, in columns.
const DEFAULT_COLUMNS: usize = 80;

/// A progress bar. It is visible from the first call of [`show`](Self::show) until it is cleared or dropped.
#[derive(Debug, Default)]
pub struct ProgressBar {
    shown: String,
}

impl ProgressBar {
    /// Shows `progress`, followed by `text`.
    pub fn show(&mut self, progress: Progress, text: &str) {
        let columns = tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col));
        let text = format!("{progress}  {text}");
        let line = draw(
            progress.done,
            progress.size,
            &text,
            if columns == 0 { DEFAULT_COLUMNS } else { columns },
        );
        if line != self.shown {
            self.shown.clone_from(&line);
            output::status(line);
        }
    }

    /// Removes the bar.
    pub fn clear(&mut self) {
        if !std::mem::take(&mut self.shown).is_empty() {
            output::status(String::new());
        }
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The line for a terminal with `columns` columns. The last column stays free: some terminals wrap when it is filled.
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
    fn bar_never_exceeds_the_columns() {
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
