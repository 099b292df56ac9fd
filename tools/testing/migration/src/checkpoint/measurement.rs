// SPDX-License-Identifier: GPL-2.0-or-later
//! Each way, one after the other, again and again: what `vmem-migration checkpoint measure` does.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use vmem_figures::Setting;

use super::results::{Figures, Results, Trial};
use super::store::DeepStore;
use super::{far, faults, lazy, pauses, restores, store};
use crate::command::line;
use crate::guest::{Guest, Load};
use crate::harm::{is_emulated, is_harm};
use crate::network::Host;
use crate::patience::choose_patience;
use crate::rig::Rig;
use crate::saved;

/// Attempts of a trial on an emulated machine, which now and then dies in one.
const ATTEMPTS: usize = 3;

/// How long a state may take to come: a full checkpoint of an emulated guest, by an emulated machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// What can be measured alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Part {
    /// Arming and the first write after it, by vmem-bench
    Faults,
    /// Bytes of increments
    Bytes,
    /// Restores from the first and the last of many checkpoints, and what is stored when most are removed
    Depth,
    /// A guest's pause, and its restore
    Guest,
    /// A guest's restore from a store that is far away, with access order and without
    Order,
}

/// What is measured.
pub(super) struct Measurement {
    pub(super) rounds: u16,
    /// All if empty.
    pub(super) parts: Vec<Part>,
    pub(super) memory_mib: u32,
    pub(super) work_mib: u32,
    pub(super) pages: u32,
    pub(super) checkpoints: u64,
    /// Where the results go.
    pub(super) json: Option<PathBuf>,
}

impl Measurement {
    /// On what is measured.
    pub(super) fn setting(&self) -> Result<(Setting, String)> {
        let told = |name: &str| std::env::var(name).unwrap_or_else(|_| "unknown".into());
        let field = |path: &str, name: &str| -> Result<String> {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
            let mut fields = text.lines().filter_map(|line| line.split_once(':'));
            let found = fields.find(|(key, _)| key.trim() == name);
            Ok(found.map(|(_, value)| value.trim().to_owned()).unwrap_or_default())
        };
        let memory: u64 = field("/proc/meminfo", "MemTotal")?.trim_end_matches(" kB").parse()?;
        let qemu = line("qemu-system-x86_64 --version")?;
        let setting = Setting {
            kernel: line("uname -r")?.trim().to_owned(),
            cpu: field("/proc/cpuinfo", "model name")?,
            cpus: std::thread::available_parallelism()?.get(),
            memory_mib: memory / 1024,
            accelerator: told("VMEM_BENCH_ACCELERATOR"),
            host_cpu: told("VMEM_BENCH_HOST_CPU"),
            commit: told("VMEM_BENCH_COMMIT"),
        };
        let guest = format!(
            "{}; guests on {}: {} MiB of RAM, work on {} MiB, write {}, 1 processor; a store of {} checkpoints",
            qemu.lines().next().unwrap_or_default(),
            Rig::accelerator(),
            self.memory_mib,
            self.work_mib,
            match self.pages {
                0 => "as fast as they can".to_owned(),
                pages => format!("{pages} pages/s"),
            },
            self.checkpoints
        );
        Ok((setting, guest))
    }

    fn wants(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }

    /// Measures what the results lack, on a [`Rig`]. Parts that need no guest come first: they are there if a guest dies.
    pub(super) fn run(&self, mut results: Results) -> Result<Results> {
        choose_patience(PATIENCE);
        let since = Instant::now();
        let measure = |results: &mut Results, round, name: &str, how: &dyn Fn() -> Result<Figures>| -> Result<()> {
            self.measure(results, since, round, name, how)
        };
        // These are the same in each round.
        if self.wants(Part::Bytes) {
            measure(&mut results, 1, "bytes of increments", &store::increments)?;
        }
        if self.wants(Part::Depth) {
            let deep = DeepStore::new(self.checkpoints);
            for round in 1..=self.rounds {
                measure(&mut results, round, "restores by depth", &|| deep.restores())?;
            }
            measure(&mut results, 1, "retention", &|| deep.retention())?;
        }
        let guest = Guest {
            memory_mib: vec![self.memory_mib],
            work_mib: self.work_mib,
            ..Guest::default()
        };
        let load = Load::Writing(self.pages);
        if self.wants(Part::Order) {
            Host::First.join_lan(1)?;
        }
        for round in 1..=self.rounds {
            if self.wants(Part::Faults) {
                measure(&mut results, round, "arming", &faults::measure)?;
            }
            if self.wants(Part::Guest) {
                measure(&mut results, round, "QEMU", &|| {
                    let (mut figures, file) = pauses::of_qemu(&guest, load)?;
                    figures.extend(restores::full_load(&guest, &file)?);
                    Ok(figures)
                })?;
                measure(&mut results, round, "vmem", &|| {
                    let (mut figures, image) = pauses::of_vmem(&guest, load)?;
                    figures.extend(restores::from_store(&guest, &image)?);
                    figures.extend(lazy::restore(&guest, &image)?);
                    Ok(figures)
                })?;
            }
            if self.wants(Part::Order) {
                measure(&mut results, round, "access order", &|| far::measure(&guest, load))?;
            }
        }
        Ok(results)
    }

    /// Makes a trial, unless it was made, and notes what comes of it.
    fn measure(
        &self,
        results: &mut Results,
        since: Instant,
        round: u16,
        name: &str,
        how: &dyn Fn() -> Result<Figures>,
    ) -> Result<()> {
        let trial = Trial {
            round,
            name: name.to_owned(),
        };
        while !results.is_over(&trial) {
            let attempts = results.attempts(&trial);
            if attempts >= ATTEMPTS {
                results.fail(&trial, &format!("the machine has died in it, {attempts} times"));
                break;
            }
            results.begin(&trial);
            // Before it: the machine may die of it.
            self.save(results)?;
            let said = match how() {
                Ok(figures) => {
                    results.end(&trial, figures);
                    "measured".to_owned()
                }
                // A guest that was harmed is no figure. On an emulated machine, any other failure is tried again.
                Err(error) if is_harm(&error) || !is_emulated() => return Err(error),
                Err(error) if attempts + 1 < ATTEMPTS => format!("{error:#}; once more"),
                Err(error) => {
                    results.fail(&trial, &format!("{error:#}"));
                    format!("failed: {error:#}")
                }
            };
            eprintln!("[{} s] round {round}, {name}: {said}", since.elapsed().as_secs());
            // After each: what was measured is not lost if the next one fails.
            self.save(results)?;
        }
        Ok(())
    }

    fn save(&self, results: &Results) -> Result<()> {
        self.json.as_ref().map_or(Ok(()), |path| saved::write(results, path))
    }
}
