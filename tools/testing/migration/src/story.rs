// SPDX-License-Identifier: GPL-2.0-or-later
//! How the demos tell what happens.

use std::time::Instant;

use anyhow::Result;

use crate::harm::is_tried_again;

/// Whoever tells the story, and since when.
pub(crate) struct Story(Instant);

impl Story {
    pub(crate) fn begin() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn step(&self, text: &str) {
        println!("\n[{:>3} s] {text}", self.0.elapsed().as_secs());
    }

    pub(crate) fn say(&self, text: &str) {
        println!("        {text}");
    }

    /// Does what may lose a guest; once more, and says so, if an emulated machine has lost it.
    pub(crate) fn persist<T>(&self, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let mut failures = 0;
        loop {
            failures += 1;
            match attempt() {
                Err(error) if is_tried_again(failures, &error) => {
                    self.say(&format!(
                        "the guest was lost: {}",
                        format!("{error:#}").lines().next().unwrap_or_default()
                    ));
                    self.say("QEMU's emulation of SVM does that now and then (Documentation/testing.rst): once more, with another guest");
                }
                outcome => return outcome,
            }
        }
    }
}
