// SPDX-License-Identifier: GPL-2.0-or-later
//! Case 13: what it costs that the writes of a KVM guest are logged, by the memory management or by KVM itself.

use std::path::Path;
use std::time::Duration;

use vmem_bench_sys::{Guest, KvmLog, Memory};

use super::tracking::{FEW, PAGES, includes, timed};
use super::{Bench, Round};
use crate::contents::Contents;
use crate::cpu;
use crate::failure::{During, Outcome};
use crate::filled::filled_file;
use crate::order::shuffled;
use crate::tracker::{KVM_LOG, Tracker, TrackerKind};

const KINDS: [TrackerKind; 3] = [TrackerKind::Vmem, TrackerKind::WpAsync, TrackerKind::Plain];

pub(super) fn round(bench: &Bench, number: u64, round: &mut Round) -> Outcome {
    if !Path::new("/dev/kvm").exists() {
        if number == 0 {
            eprintln!("there is no KVM in this machine: no guest is measured");
        }
        return Ok(());
    }
    cpu::only(0)?;
    for kind in KINDS.into_iter().filter(|kind| bench.wants(kind.name())) {
        measure(kind.name(), &mut Subject::of(kind, &bench.contents)?, number, round)?;
    }
    if bench.wants(KVM_LOG) {
        measure(KVM_LOG, &mut Subject::of_kvm(&bench.contents)?, number, round)?;
    }
    cpu::everywhere()
}

/// A guest, and who logs what it writes.
struct Subject {
    /// Before the memory.
    guest: Guest,
    log: Log,
}

enum Log {
    /// Whoever sees the writes of a program sees those of a guest.
    Tracker(Box<dyn Tracker>),
    /// KVM, and the pages that it has told last.
    Kvm { memory: Memory, found: Vec<u64> },
}

impl Subject {
    fn of(kind: TrackerKind, contents: &Contents) -> Outcome<Self> {
        let tracker = kind.make(PAGES, contents)?;
        Ok(Self {
            guest: Guest::new(tracker.memory(), KvmLog::Off).during("a guest of KVM")?,
            log: Log::Tracker(tracker),
        })
    }

    fn of_kvm(contents: &Contents) -> Outcome<Self> {
        let (_, memory) = filled_file(PAGES, contents)?;
        Ok(Self {
            guest: Guest::new(&memory, KvmLog::On).during("a guest of KVM")?,
            log: Log::Kvm {
                memory,
                found: Vec::new(),
            },
        })
    }

    fn write(&mut self, pages: &[u64]) -> Outcome {
        self.guest.write(self.log.memory(), pages).during("a guest's write")
    }

    fn read(&mut self, pages: &[u64]) -> Outcome {
        self.guest.read(self.log.memory(), pages).during("a guest's read")
    }

    fn begin(&mut self) -> Outcome {
        match &mut self.log {
            Log::Tracker(tracker) => tracker.begin(),
            // From when the memory became the guest's.
            Log::Kvm { .. } => Ok(()),
        }
    }

    fn clean(&mut self) -> Outcome {
        match &mut self.log {
            Log::Tracker(tracker) => tracker.clean(),
            Log::Kvm { found, .. } => {
                *found = self.guest.clean().during("KVM's log")?;
                Ok(())
            }
        }
    }
}

impl Log {
    fn memory(&self) -> &Memory {
        match self {
            Self::Tracker(tracker) => tracker.memory(),
            Self::Kvm { memory, .. } => memory,
        }
    }

    /// The pages that were written to before the log was cleaned; `None` if there is no log.
    fn written(&self) -> Option<Vec<u64>> {
        match self {
            Self::Tracker(tracker) => tracker.written(),
            Self::Kvm { found, .. } => Some(
                (0..PAGES)
                    .filter(|page| (found[(page / 64) as usize] >> (page % 64)) & 1 == 1)
                    .collect(),
            ),
        }
    }
}

fn measure(name: &'static str, subject: &mut Subject, seed: u64, round: &mut Round) -> Outcome {
    let mut add = |what: &str, time: Duration, pages| {
        round.add(what, "us/page", name, time.as_secs_f64() * 1e6 / pages as f64);
    };
    let (all, again) = (shuffled(PAGES, seed), shuffled(PAGES, seed + 1));
    let few = shuffled(PAGES, seed + 2).split_off((PAGES - FEW) as usize);

    subject.write(&all)?;
    subject.begin()?;
    subject.write(&again)?;
    let cleaning = timed(|| subject.clean())?;
    includes(name, subject.log.written(), &again)?;
    add("cleaning, all dirty", cleaning, PAGES);
    let write = timed(|| subject.write(&all))?;
    add("write after it, all dirty", write, PAGES);
    add("cleaning and the write, all dirty", cleaning + write, PAGES);

    subject.clean()?;
    includes(name, subject.log.written(), &all)?;
    // Pages that are clean are in the page tables, the guest's, too.
    subject.read(&all)?;
    subject.write(&few)?;
    let cleaning = timed(|| subject.clean())?;
    includes(name, subject.log.written(), &few)?;
    add("cleaning, 1/8 dirty, per dirty page", cleaning, FEW);
    let write = timed(|| subject.write(&few))?;
    add("write after it, 1/8 dirty", write, FEW);
    add("cleaning and the write, 1/8 dirty, per dirty page", cleaning + write, FEW);
    add("read of all after it, 1/8 dirty", timed(|| subject.read(&all))?, PAGES);
    Ok(())
}
