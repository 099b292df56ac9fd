// SPDX-License-Identifier: GPL-2.0-or-later
//! The disk: it is read all the time into buffers that stay in use, so that its device writes into this machine's memory without a pause. Each
//! buffer is looked at before it is read into again: a write of the device that was lost shows as what the buffer held before.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;
use serde::Serialize;

use crate::page::{self, PAGE_SIZE};
use crate::random::Random;

/// The device. The machine has one, or none.
const DEVICE: &str = "/dev/vda";
/// Pages of memory that it is read into.
const BUFFERS: usize = 512;
/// From one read to the next: the machine has other work.
const INTERVAL: Duration = Duration::from_micros(200);
/// How many wrong buffers are told.
const TOLD: usize = 5;

/// A disk that is read; this ends when it is dropped.
pub(crate) struct Disk {
    orders: Sender<Sender<Verdict>>,
}

/// What the buffers held.
#[derive(Clone, Default, Serialize)]
pub(crate) struct Verdict {
    /// Pages read from the disk.
    reads: u64,
    /// How many buffers did not hold what had been read into them last.
    wrong: u64,
    /// What is wrong with the first of them.
    first: Vec<String>,
}

impl Disk {
    /// Writes all of the disk, and starts to read it.
    pub(crate) fn start() -> io::Result<Self> {
        let mut options = OpenOptions::new();
        // Past the page cache: the device writes into the buffers themselves.
        options.read(true).write(true).custom_flags(OFlags::DIRECT.bits() as i32);
        let mut file = options.open(DEVICE)?;
        let pages = usize::try_from(file.seek(SeekFrom::End(0))?).unwrap_or(0) / PAGE_SIZE;
        let mut buffers = Buffers::new();
        // In large pieces: on an emulated machine, each exchange with the device takes milliseconds.
        for first in (0..pages).step_by(BUFFERS) {
            let count = BUFFERS.min(pages - first);
            for number in 0..count {
                buffers.get(number).copy_from_slice(&page::bytes(first + number, 0));
            }
            file.write_all_at(buffers.all(count), (first * PAGE_SIZE) as u64)?;
        }
        let (orders, taken) = mpsc::channel();
        thread::spawn(move || Reader::new(file, pages, buffers).run(&taken));
        Ok(Self { orders })
    }

    /// Looks at all buffers.
    pub(crate) fn check(&self) -> Option<Verdict> {
        let (answer, answered) = mpsc::channel();
        self.orders.send(answer).ok()?;
        answered.recv().ok()
    }
}

/// Whole pages of memory.
struct Buffers {
    memory: Vec<u8>,
    first: usize,
}

impl Buffers {
    fn new() -> Self {
        let memory = vec![0; (BUFFERS + 1) * PAGE_SIZE];
        let first = memory.as_ptr().align_offset(PAGE_SIZE);
        Self { memory, first }
    }

    fn get(&mut self, buffer: usize) -> &mut [u8] {
        let from = self.first + buffer * PAGE_SIZE;
        &mut self.memory[from..from + PAGE_SIZE]
    }

    /// The first `count` of them.
    fn all(&self, count: usize) -> &[u8] {
        &self.memory[self.first..self.first + count * PAGE_SIZE]
    }
}

struct Reader {
    file: File,
    pages: usize,
    buffers: Buffers,
    /// The page of the disk that each buffer holds.
    holds: Vec<Option<usize>>,
    verdict: Verdict,
    random: Random,
}

impl Reader {
    fn new(file: File, pages: usize, buffers: Buffers) -> Self {
        Self {
            file,
            pages,
            buffers,
            holds: vec![None; BUFFERS],
            verdict: Verdict::default(),
            random: Random::new(),
        }
    }

    fn run(&mut self, orders: &Receiver<Sender<Verdict>>) {
        loop {
            match orders.try_recv() {
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => self.read_one(),
                Ok(answer) => {
                    for buffer in 0..BUFFERS {
                        self.check(buffer);
                    }
                    let _ = answer.send(self.verdict.clone());
                }
            }
            thread::sleep(INTERVAL);
        }
    }

    fn read_one(&mut self) {
        let buffer = self.random.below(BUFFERS);
        let page = self.random.below(self.pages);
        self.check(buffer);
        let read = self.file.read_exact_at(self.buffers.get(buffer), (page * PAGE_SIZE) as u64);
        match read {
            Ok(()) => {
                self.holds[buffer] = Some(page);
                self.verdict.reads += 1;
            }
            Err(error) => {
                self.holds[buffer] = None;
                self.wrong(format!("page {page} of the disk cannot be read: {error}"));
            }
        }
    }

    fn check(&mut self, buffer: usize) {
        let Some(page) = self.holds[buffer] else { return };
        let found = self.buffers.get(buffer);
        if *found != page::bytes(page, 0) {
            let says = found.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
            self.holds[buffer] = None;
            self.wrong(format!(
                "buffer {buffer} does not hold page {page} of the disk: it says that it is page {says}"
            ));
        }
    }

    fn wrong(&mut self, what: String) {
        self.verdict.wrong += 1;
        if self.verdict.first.len() < TOLD {
            self.verdict.first.push(what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_that_holds_an_older_page_of_the_disk_is_found() -> io::Result<()> {
        let path = std::env::temp_dir().join(format!("vmem-disk-{}", std::process::id()));
        let disk: Vec<u8> = (0..4).flat_map(|number| page::bytes(number, 0)).collect();
        std::fs::write(&path, disk)?;
        let mut reader = Reader::new(File::open(&path)?, 4, Buffers::new());
        for _ in 0..2000 {
            reader.read_one();
        }
        assert_eq!((reader.verdict.reads, reader.verdict.wrong), (2000, 0));
        let older = page::bytes((reader.holds[3].expect("it was read into") + 1) % 4, 0);
        reader.buffers.get(3).copy_from_slice(&older);
        reader.check(3);
        assert_eq!(reader.verdict.wrong, 1);
        std::fs::remove_file(path)
    }
}
