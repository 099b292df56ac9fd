// SPDX-License-Identifier: GPL-2.0-or-later
//! A guest that is restored as Firecracker's examples restore one: its memory is missing, and a userfaultfd handler copies it from a mapped file. QEMU
//! knows nothing of that: a library that is loaded with it (`uffd-restore.c`) makes the userfaultfd and is its handler.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::names::{FIRST_ANSWER, UFFD_ALL, UFFD_PAGE};
use super::pauses::Image;
use super::restores::{answer, load, verify};
use super::results::{Figures, found};
use crate::command::run;
use crate::guest::{Guest, Memory};
use crate::machine::Machine;
use crate::network::Host;

const SOURCE: &str = "tools/testing/migration/uffd-restore.c";
const LIBRARY: &str = "/tmp/vmem-checkpoint-uffd-restore.so";

/// Pages that the handler copies for a fault: one, or all (0).
const WAYS: [(&str, u32); 2] = [(UFFD_PAGE, 1), (UFFD_ALL, 0)];

/// From a file with the memory, in each of the handler's ways.
pub(super) fn restore(guest: &Guest, image: &Image) -> Result<Figures> {
    if !Path::new(LIBRARY).exists() {
        run("cc", &["-O2", "-Wall", "-shared", "-fPIC", "-pthread", "-o", LIBRARY, SOURCE])?;
    }
    let mut figures = Vec::new();
    for (by, pages) in WAYS {
        let guest = Guest {
            environment: vec![
                format!("LD_PRELOAD={LIBRARY}"),
                format!("UFFD_RESTORE_FILE={}", image.memory.path()?),
                format!("UFFD_RESTORE_PAGES={pages}"),
            ],
            ..guest.clone()
        };
        let since = Instant::now();
        let mut machine = Machine::incoming(Host::First, &guest, Memory::Shared)?;
        load(&mut machine, &["x-ignore-shared"], &image.devices)?;
        let first = answer(&guest, &mut machine, since)?;
        let log = machine.slot.read_log("qemu");
        ensure!(
            log.contains("uffd-restore: serves"),
            "the handler does not serve QEMU's memory: {log}"
        );
        verify(&guest, &mut machine)?;
        figures.push(found(FIRST_ANSWER, "s", by, first));
    }
    Ok(figures)
}
