// SPDX-License-Identifier: GPL-2.0-or-later
//! Case 7: memory of the kernel for a region, and of vmemd.

use std::time::{Duration, Instant};

use vmem::{Control, PAGE_SIZE, RegionBuilder};

use super::{Bench, Round};
use crate::failure::Outcome;
use crate::peer::VMEM;
use crate::setting::kib;
use crate::transfer::{Source, Transfer};

/// How long vmemd works before its memory is looked at, if it is not done.
const WORK: Duration = Duration::from_secs(4);

pub(super) fn round(_: &Bench, number: u64, round: &mut Round) -> Outcome {
    // These figures do not change from round to round.
    if number > 1 {
        return Ok(());
    }
    for gib in [1, 64] {
        let size = gib << 30;
        let bits = kernel_bytes(size)? as f64 * 8.0 / (size / PAGE_SIZE as u64) as f64;
        round.add(format!("kernel, {gib} GiB region"), "bits/page", VMEM, bits);
        let mib = daemon_kib(size)? as f64 / 1024.0;
        round.add(format!("vmemd, {gib} GiB region"), "MiB", VMEM, mib);
    }
    Ok(())
}

/// What the kernel allocates for a region of so many bytes before any page is there.
fn kernel_bytes(size: u64) -> Outcome<u64> {
    let used = || -> Outcome<u64> { Ok(kib("Slab")? + kib("VmallocUsed")? + kib("Percpu")?) };
    let control = Control::open()?;
    // The kernel's own count is exact to half a MiB: many small regions are measured together.
    let number = (64 << 30) / size;
    let before = used()?;
    let regions: Result<Vec<_>, _> = (0..number).map(|_| RegionBuilder::new(size).create(&control)).collect();
    let regions = regions?;
    let bytes = used()?.saturating_sub(before) * 1024;
    drop(regions);
    Ok(bytes / number)
}

/// The most memory that a vmemd has while it receives so many bytes, all zero.
fn daemon_kib(size: u64) -> Outcome<u64> {
    let source = Source::sparse(size)?;
    let transfer = Transfer::start(&source, &[])?;
    let memory = transfer.map()?;
    let since = Instant::now();
    let mut page = 0;
    while since.elapsed() < WORK && !transfer.is_complete()? {
        // Faults all over the region, while the stream goes on.
        memory.read(page);
        page = (page + memory.pages() / 1009 + 1) % memory.pages();
        std::thread::sleep(Duration::from_millis(2));
    }
    transfer.peak_kib()
}
