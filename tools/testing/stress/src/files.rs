// SPDX-License-Identifier: GPL-2.0-or-later
//! A program that has the regions as files, of file systems that come and go. It maps them only to compare.
//!
//! Each file system is mounted nowhere: its descriptor is all there is of it, and it goes with its process.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::fs::{Advice, FallocateFlags, Mode, OFlags, RawDir, SeekFrom, fadvise, fallocate, openat, seek};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use vmem::PAGE_SIZE;
use vmem_functional_sys::AreaBuilder;

use crate::board::{Board, Mark, Note};
use crate::hands::{name, open_life};
use crate::model::Page;
use crate::numbers::Numbers;

/// Steps after which a file system, or a file, is closed, on the average.
const STEPS_OF_A_MOUNT: usize = 100;
const STEPS_OF_A_FILE: usize = 60;

/// A file of one life of a region.
struct Opened {
    file: File,
    /// The same, with O_NONBLOCK.
    nonblocking: File,
    region: usize,
    life: u64,
    /// What was last written in this program's slot of a page.
    written: HashMap<usize, u64>,
}

/// A file system of its own.
fn mount(board: &Board, actor: usize) -> anyhow::Result<OwnedFd> {
    let context = fsopen("vmem", FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen")?;
    fsconfig_create(&context).context("fsconfig")?;
    board.count(actor, Note::Mounted)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).context("fsmount")
}

/// The life of a program with the slot `slot`: until the run is over, or it dies.
pub(crate) fn run(board: &Board, actor: usize, slot: usize, mut numbers: Numbers) -> anyhow::Result<()> {
    let mut opened: Vec<Option<Opened>> = (0..board.regions()).map(|_| None).collect();
    let mut mounted = mount(board, actor)?;
    while !board.is_over()? {
        board.count(actor, Note::Steps)?;
        for current in &mut opened {
            if let Some(file) = current {
                if board.life(file.region)? != file.life {
                    *current = None;
                }
            }
        }
        if numbers.once_in(STEPS_OF_A_MOUNT) {
            // Open files keep the file system.
            mounted = mount(board, actor)?;
        }
        let region = numbers.below(board.regions());
        if opened[region].is_none() {
            opened[region] = open(board, &mounted, region)?;
        }
        match &mut opened[region] {
            Some(opened) => {
                let user = User { board, actor, slot };
                user.step(&mounted, opened, &mut numbers)
                    .with_context(|| format!("program {slot} in the file of region {region}"))?;
            }
            None => sleep(Duration::from_millis(1)),
        }
        if numbers.once_in(STEPS_OF_A_FILE) {
            opened[region] = None;
        }
    }
    Ok(())
}

/// Opens a region's file; [`None`] if there is none just now.
fn open(board: &Board, mounted: &OwnedFd, region: usize) -> anyhow::Result<Option<Opened>> {
    let Some(life) = open_life(board, region)? else {
        return Ok(None);
    };
    let open = |flags| match openat(mounted, name(region), OFlags::RDWR | OFlags::CLOEXEC | flags, Mode::empty()) {
        Ok(file) => Ok(Some(File::from(file))),
        // It goes between look-up and open.
        Err(Errno::NOENT | Errno::NXIO) => Ok(None),
        Err(error) => Err(error).context("opening a file"),
    };
    let (Some(file), Some(nonblocking)) = (open(OFlags::empty())?, open(OFlags::NONBLOCK)?) else {
        return Ok(None);
    };
    // It was this life's all the time only if that goes on.
    Ok((board.life(region)? == life).then(|| Opened {
        file,
        nonblocking,
        region,
        life,
        written: HashMap::new(),
    }))
}

/// What a call on a file comes to.
enum Came<T> {
    Done(T),
    /// A page of it is unreadable, or there is no memory.
    NotPossible,
}

/// Who uses a file.
struct User<'a> {
    board: &'a Board,
    actor: usize,
    slot: usize,
}

impl User<'_> {
    fn step(&self, mounted: &OwnedFd, opened: &mut Opened, numbers: &mut Numbers) -> anyhow::Result<()> {
        let pages = self.board.pages();
        let run = numbers.run(pages, 8);
        match numbers.below(20) {
            0..5 => self.read(opened, &opened.file, run),
            5..7 => self.read_at_once(opened, run),
            7..11 => self.write(opened, run.start, numbers.any()),
            11..13 => self.splice(opened, run),
            13 if numbers.once_in(4) => self.punch(opened, run.start..(run.start + 3).min(pages)),
            14 => self.map(opened, run),
            15 => self.seek(opened, run.start),
            16 => {
                let len = std::num::NonZeroU64::new((run.len() * PAGE_SIZE) as u64);
                fadvise(&opened.file, (run.start * PAGE_SIZE) as u64, len, Advice::WillNeed).context("WILLNEED")?;
                opened.file.sync_all().context("fsync")
            }
            17 => self.look_around(mounted, opened),
            _ => self.read(opened, &opened.file, run.start..run.start + 1),
        }
    }

    fn page(opened: &Opened, page: usize) -> Page {
        Page {
            region: opened.region,
            life: opened.life,
            page,
        }
    }

    fn compare(&self, opened: &Opened, page: usize, bytes: &[u8]) -> anyhow::Result<()> {
        let own = opened.written.get(&page).copied();
        Self::page(opened, page).check(self.board, self.slot, &Page::words(bytes), own)?;
        self.board.count(self.actor, Note::CheckedInFile)
    }

    /// Fails if a call on these pages must not fail so.
    fn judge<T>(&self, opened: &Opened, run: Range<usize>, result: io::Result<T>) -> anyhow::Result<Came<T>> {
        match result {
            Ok(value) => Ok(Came::Done(value)),
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => Ok(Came::NotPossible),
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                for page in run.clone() {
                    if self.board.is_marked(opened.region, page, Mark::Unreadable)? {
                        return Ok(Came::NotPossible);
                    }
                }
                bail!("EIO from pages {run:?}, which nobody has made unreadable")
            }
            Err(error) => Err(error).with_context(|| format!("pages {run:?}")),
        }
    }

    /// Reads pages by one call, and compares those that it has read whole.
    fn read(&self, opened: &Opened, file: &File, run: Range<usize>) -> anyhow::Result<()> {
        let mut bytes = vec![0xee; run.len() * PAGE_SIZE];
        let read = file.read_at(&mut bytes, (run.start * PAGE_SIZE) as u64);
        if let Came::Done(len) = self.judge(opened, run.clone(), read)? {
            ensure!(len > 0, "pages {run:?}: the file has ended");
            for (page, bytes) in run.zip(bytes[..len].chunks_exact(PAGE_SIZE)) {
                self.compare(opened, page, bytes)?;
            }
        }
        Ok(())
    }

    /// The same without waiting.
    fn read_at_once(&self, opened: &Opened, run: Range<usize>) -> anyhow::Result<()> {
        match opened.nonblocking.read_at(&mut [0], (run.start * PAGE_SIZE) as u64) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.board.count(self.actor, Note::NotWaited),
            result => match self.judge(opened, run.clone(), result)? {
                // What is present stays present.
                Came::Done(_) => self.read(opened, &opened.nonblocking, run.start..run.start + 1),
                Came::NotPossible => Ok(()),
            },
        }
    }

    /// Writes in this program's slot of a page, and reads it back.
    fn write(&self, opened: &mut Opened, page: usize, nr: u64) -> anyhow::Result<()> {
        let run = page..page + 1;
        if Self::page(opened, page).is_staged() {
            return self.read(opened, &opened.file, run);
        }
        let value = Page::written(self.slot, nr);
        let offset = page * PAGE_SIZE + self.slot * 8;
        let written = opened.file.write_at(&value.to_ne_bytes(), offset as u64);
        if let Came::Done(len) = self.judge(opened, run.clone(), written)? {
            ensure!(len == 8, "{len} bytes of a word were written");
            opened.written.insert(page, value);
            self.board.count(self.actor, Note::ChangedInFile)?;
        }
        self.read(opened, &opened.file, run)
    }

    fn splice(&self, opened: &Opened, run: Range<usize>) -> anyhow::Result<()> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC).context("pipe")?;
        let mut offset = (run.start * PAGE_SIZE) as u64;
        let sent = splice(
            &opened.file,
            Some(&mut offset),
            &into,
            None,
            run.len() * PAGE_SIZE,
            SpliceFlags::empty(),
        );
        drop(into);
        if let Came::Done(sent) = self.judge(opened, run.clone(), sent.map_err(io::Error::from))? {
            let mut bytes = vec![];
            File::from(out).read_to_end(&mut bytes).context("read from a pipe")?;
            ensure!(bytes.len() == sent && sent > 0, "{sent} bytes sent, {} came", bytes.len());
            for (page, bytes) in run.zip(bytes.chunks_exact(PAGE_SIZE)) {
                self.compare(opened, page, bytes)?;
            }
        }
        Ok(())
    }

    fn punch(&self, opened: &Opened, run: Range<usize>) -> anyhow::Result<()> {
        for page in run.clone() {
            self.board.mark(opened.region, page, Mark::Zero)?;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (offset, len) = ((run.start * PAGE_SIZE) as u64, (run.len() * PAGE_SIZE) as u64);
        let punched = fallocate(&opened.file, flags, offset, len).map_err(io::Error::from);
        if let Came::Done(()) = self.judge(opened, run.clone(), punched)? {
            self.board.count(self.actor, Note::ChangedInFile)?;
        }
        self.read(opened, &opened.file, run)
    }

    /// Maps a part, also beyond the end, and compares what a touch finds with what it can hold.
    fn map(&self, opened: &Opened, run: Range<usize>) -> anyhow::Result<()> {
        let area = AreaBuilder::default()
            .read_only()
            .map(&opened.file, run.start, run.len() + 3)
            .context("mapping a file")?;
        let number = self.board.page(opened.region, run.start);
        self.board.set_note(self.actor, Note::Touching, number + 1)?;
        // A touch of an unreadable page ends the process; a read does not, and says that it is one.
        let mut byte = [0];
        let read = opened.file.read_at(&mut byte, (run.start * PAGE_SIZE) as u64);
        if let Came::Done(_) = self.judge(opened, run.start..run.start + 1, read)? {
            let bytes: Vec<u8> = area.page(0).into_iter().flat_map(u64::to_le_bytes).collect();
            self.compare(opened, run.start, &bytes)?;
        }
        Ok(())
    }

    /// A hole is a page of zeros.
    fn seek(&self, opened: &Opened, page: usize) -> anyhow::Result<()> {
        let (from, end) = ((page * PAGE_SIZE) as u64, (self.board.pages() * PAGE_SIZE) as u64);
        let hole = seek(&opened.file, SeekFrom::Hole(from)).context("SEEK_HOLE")?;
        ensure!((from..=end).contains(&hole), "a hole at {hole} from {from}");
        if hole < end {
            let page = hole as usize / PAGE_SIZE;
            ensure!(
                self.board.is_marked(opened.region, page, Mark::Zero)?,
                "page {page} is a hole, and nobody has made it zero"
            );
        }
        match seek(&opened.file, SeekFrom::Data(from)) {
            Ok(data) => ensure!((from..end).contains(&data), "data at {data} from {from}"),
            Err(Errno::NXIO) => (),
            Err(error) => return Err(error).context("SEEK_DATA"),
        }
        Ok(())
    }

    /// The directory has the file, with its size and no more blocks than it.
    fn look_around(&self, mounted: &OwnedFd, opened: &Opened) -> anyhow::Result<()> {
        let directory = openat(
            mounted,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let directory = directory.context("opening the directory")?;
        let mut room = [MaybeUninit::uninit(); 512];
        let mut entries = RawDir::new(&directory, &mut room);
        let mut is_there = false;
        while let Some(entry) = entries.next() {
            is_there |= entry.context("readdir")?.file_name().to_bytes() == name(opened.region).as_bytes();
        }
        ensure!(is_there, "an open file is not in its directory");
        let file = opened.file.metadata().context("stat")?;
        let size = (self.board.pages() * PAGE_SIZE) as u64;
        ensure!(
            file.len() == size && file.blocks() * 512 <= size && file.nlink() == 1,
            "{} bytes, {} blocks, {} links",
            file.len(),
            file.blocks(),
            file.nlink()
        );
        Ok(())
    }
}
