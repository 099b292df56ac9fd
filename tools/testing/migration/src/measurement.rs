// SPDX-License-Identifier: GPL-2.0-or-later
//! Each way to move a guest, with each load, again and again: what `vmem-migration measure` does.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;

use crate::book::{Book, Failure, Trial};
use crate::guest::{Guest, Load};
use crate::harm::{is_emulated, is_harm, is_tried_again};
use crate::method::Method;
use crate::rig::Rig;
use crate::saved;
use crate::seconds::seconds;
use crate::trial;

/// Attempts of a trial on an emulated machine, which now and then dies in one.
const ATTEMPTS: u32 = 3;

/// What is measured.
pub(crate) struct Measurement {
    pub(crate) rounds: u32,
    pub(crate) methods: Vec<Method>,
    pub(crate) loads: Vec<Load>,
    pub(crate) guest: Guest,
    /// Where the results go.
    pub(crate) json: Option<PathBuf>,
}

impl Measurement {
    /// Measures what the book lacks.
    pub(crate) fn run(&self, rig: &Rig, mut book: Book) -> Result<Book> {
        let all = self.rounds as usize * self.loads.len() * self.methods.len();
        let since = Instant::now();
        let mut number = 0;
        // One way after the other in each round: what else the machine does meets all of them.
        for round in 1..=self.rounds {
            for load in &self.loads {
                for method in &self.methods {
                    number += 1;
                    let trial = Trial {
                        round,
                        load: load.name(),
                        method: *method,
                    };
                    if !book.is_over(&trial) {
                        let said = self.measure(rig, &mut book, &trial, *load)?;
                        eprintln!(
                            "[{number} of {all}, {} s] {}: {said}",
                            since.elapsed().as_secs(),
                            trial.name()
                        );
                    }
                }
            }
        }
        Ok(book)
    }

    /// Makes a trial, and notes what comes of it. Returns that for people.
    fn measure(&self, rig: &Rig, book: &mut Book, trial: &Trial, load: Load) -> Result<String> {
        loop {
            let attempts = book.attempts(trial);
            if attempts >= ATTEMPTS {
                return self.note_failure(book, trial, &format!("the machine has died in it, {attempts} times"));
            }
            book.begun.push(trial.clone());
            // Before it: the machine may die of it. And after each: what was measured is not lost if the next one fails.
            self.save(book)?;
            match trial::run(rig, trial.round, trial.method, load, &self.guest) {
                Ok(figures) => {
                    let said = match figures.done {
                        true => format!(
                            "gap {}, complete after {}",
                            seconds(figures.guest_gap),
                            seconds(figures.total)
                        ),
                        false => "not moved".into(),
                    };
                    book.trials.push(figures);
                    self.save(book)?;
                    return Ok(said);
                }
                Err(error) if is_harm(&error) => return Err(error),
                Err(error) if is_tried_again(attempts + 1, &error) => eprintln!("{}: {error:#}; once more", trial.name()),
                // What QEMU does by itself, or what an emulated machine does to it, is not what fails here; the tables say that it is missing.
                Err(error) if trial.method.mode().is_none() || is_emulated() => {
                    return self.note_failure(book, trial, &format!("{error:#}"));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn note_failure(&self, book: &mut Book, trial: &Trial, error: &str) -> Result<String> {
        book.failures.push(Failure {
            trial: trial.clone(),
            error: error.to_owned(),
        });
        self.save(book)?;
        Ok(format!("failed: {error}"))
    }

    fn save(&self, book: &Book) -> Result<()> {
        self.json.as_ref().map_or(Ok(()), |path| saved::write(book, path))
    }
}
