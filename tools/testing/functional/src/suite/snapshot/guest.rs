// SPDX-License-Identifier: GPL-2.0-or-later
//! Snapshots of the memory of an unmodified QEMU, which knows nothing of them. As in the other tests with QEMU, KVM runs the guest where the
//! machine has it from a processor; with `VMEM_GUEST_ACCEL=kvm` it does so in any case, and nothing else.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use vmem::{PAGE_SIZE, ProcessMemory};
use vmem_sys::VMEM_SNAPSHOT_CLEAN;

use super::super::boot::{BootDisk, FIRST, SEGMENT, SEGMENTS};
use super::super::qemu::Qemu;
use crate::adopted::{Adopted, page_bytes};
use crate::failure::{Outcome, ensure, equal};
use crate::image::Image;
use crate::world::wait_until;

crate::tests![
    images_of_a_guest_are_exact_prefixes_of_its_stores,
    the_image_of_a_guest_is_the_copy_that_was_made_while_it_stood_still,
];

const MEMORY: usize = 64 << 20;

/// A guest that writes without end.
struct Guest {
    qemu: Qemu,
    log: Adopted,
    memory: ProcessMemory,
    /// The disk that it was booted from.
    _disk: BootDisk,
}

impl Guest {
    fn new() -> Outcome<Self> {
        let disk = BootDisk::new()?;
        let memory = format!("memory-backend-memfd,id=ram,size={MEMORY},share=on");
        let qemu = Qemu::start(&memory, &disk.options())?;
        let mut found = None;
        wait_until("QEMU has its memory", || {
            found = ProcessMemory::open(qemu.pid(), "memory-backend-memfd").ok();
            // It has its name before it has its size.
            let size = found.as_ref().map(|memory| rustix::fs::fstat(memory.as_fd())).transpose()?;
            Ok(size.is_some_and(|stat| stat.st_size == MEMORY as i64))
        })?;
        let memory = found.ok_or("QEMU has no memory")?;
        let log = Adopted::new(&memory)?;
        equal!(log.size, MEMORY as u64);
        log.track()?;
        Ok(Self {
            qemu,
            log,
            memory,
            _disk: disk,
        })
    }

    /// A descriptor of its memory.
    fn file(&self) -> Outcome<fs::File> {
        Ok(self.memory.as_fd().try_clone_to_owned()?.into())
    }

    /// Waits until it has written to all segments: the firmware leaves zeros there.
    fn wait_for_stores(&self) -> Outcome {
        let (file, mut word) = (self.file()?, [0; 2]);
        wait_until("the guest writes", || {
            file.read_exact_at(&mut word, (FIRST + SEGMENTS * SEGMENT - 2) as u64)?;
            Ok(word != [0; 2])
        })
    }

    fn signal(&self, signal: Signal) -> Outcome {
        let pid = Pid::from_raw(self.qemu.pid()).ok_or("no process")?;
        Ok(kill_process(pid, signal)?)
    }
}

/// The words of a segment of the image.
fn segment(image: &Image, number: usize) -> Outcome<Vec<u16>> {
    let mut bytes = vec![0; SEGMENT];
    image.file().read_exact_at(&mut bytes, (FIRST + number * SEGMENT) as u64)?;
    Ok(words(&bytes))
}

/// The words of these bytes.
pub(in crate::suite) fn words(bytes: &[u8]) -> Vec<u16> {
    let words = bytes.chunks_exact(2);
    words.map(|word| u16::from_le_bytes([word[0], word[1]])).collect()
}

/// What the guest wrote last.
pub(in crate::suite) struct Cursor {
    /// The number that it fills segments with.
    pub(in crate::suite) number: u16,
    /// How many words of the segment have it.
    pub(in crate::suite) filled: usize,
}

/// Fails unless the guest has had these segments at some moment: what it writes next is known from each word.
pub(in crate::suite) fn check_prefix(segments: &[Vec<u16>]) -> Outcome<Cursor> {
    // The segment that is being filled begins with the greatest number; its rest is from the time before.
    let newest = (0..SEGMENTS)
        .max_by_key(|number| {
            let ahead = segments[*number][0].wrapping_sub(segments[0][0]) as i16;
            i32::from(ahead)
        })
        .ok_or("no segment")?;
    let number = segments[newest][0];
    let filled = segments[newest].iter().take_while(|word| **word == number).count();
    ensure!(
        segments[newest][filled..]
            .iter()
            .all(|word| *word == number.wrapping_sub(SEGMENTS as u16)),
        "segment {newest}: after {filled} words of {number} there is something else than what was there before"
    );
    for (at, words) in segments.iter().enumerate().filter(|(at, _)| *at != newest) {
        let since = (newest + SEGMENTS - at) % SEGMENTS;
        let expected = number.wrapping_sub(since as u16);
        let wrong = words.iter().position(|word| *word != expected);
        ensure!(
            wrong.is_none(),
            "segment {at} has not {expected} at word {wrong:?}, while segment {newest} has {filled} words of {number}"
        );
    }
    Ok(Cursor { number, filled })
}

fn images_of_a_guest_are_exact_prefixes_of_its_stores() -> Outcome {
    let mut guest = Guest::new()?;
    guest.wait_for_stores()?;
    let mut moments = std::collections::BTreeSet::new();
    let mut held_up = Vec::new();
    for round in 0..20u64 {
        sleep(Duration::from_millis(20 + 7 * round));
        let flags = if round % 2 == 0 { VMEM_SNAPSHOT_CLEAN } else { 0 };
        let image = Image::take(&guest.log, flags, 0)?;
        held_up.push(image.closed.as_micros());
        // The guest goes on while it is read.
        sleep(Duration::from_millis(20));
        let segments = (0..SEGMENTS)
            .map(|number| segment(&image, number))
            .collect::<Outcome<Vec<_>>>()?;
        check_prefix(&segments)?;
        moments.insert(segments);
    }
    ensure!(moments.len() > 10, "the guest had {} different memories only", moments.len());
    held_up.sort_unstable();
    println!(
        "  the guest was held up for {} us, in half of {} snapshots for {} us at most",
        held_up[held_up.len() - 1],
        held_up.len(),
        held_up[held_up.len() / 2]
    );
    ensure!(guest.qemu.runs()?, "QEMU has ended");
    Ok(())
}

fn the_image_of_a_guest_is_the_copy_that_was_made_while_it_stood_still() -> Outcome {
    let mut guest = Guest::new()?;
    guest.wait_for_stores()?;
    for _ in 0..3 {
        guest.signal(Signal::STOP)?;
        // Its threads stop one by one.
        wait_until("QEMU stands still", || {
            let state = |text: String| text.lines().any(|line| line.starts_with("State:\tT"));
            let tasks = fs::read_dir(format!("/proc/{}/task", guest.qemu.pid()))?;
            let stopped = tasks
                .filter_map(Result::ok)
                .all(|task| fs::read_to_string(task.path().join("status")).map(state).unwrap_or(true));
            Ok(stopped)
        })?;
        let image = Image::take(&guest.log, VMEM_SNAPSHOT_CLEAN, 0)?;
        let mut copy = vec![0; MEMORY];
        let memory = guest.file()?;
        memory.read_exact_at(&mut copy, 0)?;
        guest.signal(Signal::CONT)?;
        sleep(Duration::from_millis(500));
        image.check(&copy)?;
        let now: Vec<u8> = {
            let mut bytes = vec![0; MEMORY];
            memory.read_exact_at(&mut bytes, 0)?;
            bytes
        };
        let moved = (0..MEMORY / PAGE_SIZE)
            .filter(|page| copy[page_bytes(*page)] != now[page_bytes(*page)])
            .count();
        ensure!(moved >= 64, "{moved} pages have changed only");
    }
    ensure!(guest.qemu.runs()?, "QEMU has ended");
    Ok(())
}
