// SPDX-License-Identifier: GPL-2.0-or-later
//! `/proc/self/pagemap`: what the kernel itself tells of the pages of a mapping.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use linux_raw_sys::general::{PAGE_IS_WRITTEN, PM_SCAN_CHECK_WPASYNC, PM_SCAN_WP_MATCHING, page_region, pm_scan_arg};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

use crate::{Memory, PAGE_SIZE};

/// Bytes of an entry.
const ENTRY: usize = size_of::<u64>();
/// Set in an entry if the page was written to since `clear_refs` was.
const SOFT_DIRTY: u64 = 1 << 55;
const PAGEMAP_SCAN: Opcode = opcode::read_write::<pm_scan_arg>(b'f', 16);

/// The pagemap of this process.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    /// Where entries are read to.
    entries: Vec<u8>,
    /// Where runs of pages are told.
    regions: Vec<page_region>,
}

impl Pagemap {
    /// For mappings of up to `pages` pages.
    ///
    /// # Errors
    ///
    /// What `open(2)` gives.
    pub fn open(pages: usize) -> io::Result<Self> {
        let none = page_region {
            start: 0,
            end: 0,
            categories: 0,
        };
        Ok(Self {
            file: File::open("/proc/self/pagemap")?,
            entries: vec![0; pages * ENTRY],
            // Between two runs is a page.
            regions: vec![none; pages.div_ceil(2)],
        })
    }

    /// Puts the pages of `memory` that are soft-dirty (offsets in the mapping, in pages) into `pages`, instead of what is there.
    ///
    /// # Errors
    ///
    /// What `read(2)` gives.
    ///
    /// # Panics
    ///
    /// If the mapping has more pages than this is for.
    pub fn soft_dirty(&mut self, memory: &Memory, pages: &mut Vec<u64>) -> io::Result<()> {
        let entries = &mut self.entries[..memory.pages() * ENTRY];
        let first = (memory.address() / PAGE_SIZE * ENTRY) as u64;
        self.file.read_exact_at(entries, first)?;
        pages.clear();
        for (page, entry) in (0..).zip(entries.chunks_exact(ENTRY)) {
            let mut value = [0; ENTRY];
            value.copy_from_slice(entry);
            if u64::from_ne_bytes(value) & SOFT_DIRTY != 0 {
                pages.push(page);
            }
        }
        Ok(())
    }

    /// `PAGEMAP_SCAN` with `PM_SCAN_WP_MATCHING`: protects the pages of `memory` that were written to since they were protected, and puts
    /// them, in runs (offset of the first page in the mapping, and how many), into `runs`, instead of what is there. userfaultfd has to have
    /// the mapping, in [`Mode::WriteProtectAsync`](crate::Mode::WriteProtectAsync).
    ///
    /// # Errors
    ///
    /// `EPERM` if userfaultfd does not have it so; what the kernel gives.
    pub fn protect_written(&mut self, memory: &Memory, runs: &mut Vec<(u64, u64)>) -> Result<(), Errno> {
        let begin = memory.address() as u64;
        let end = begin + (memory.pages() * PAGE_SIZE) as u64;
        let mut scan = pm_scan_arg {
            size: size_of::<pm_scan_arg>() as u64,
            flags: (PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC).into(),
            start: begin,
            end,
            walk_end: 0,
            vec: self.regions.as_mut_ptr() as u64,
            vec_len: self.regions.len() as u64,
            max_pages: 0,
            category_inverted: 0,
            category_mask: PAGE_IS_WRITTEN.into(),
            category_anyof_mask: 0,
            return_mask: PAGE_IS_WRITTEN.into(),
        };
        runs.clear();
        while scan.start < end {
            // SAFETY: it writes up to `vec_len` regions, which are numbers, to `vec`, where there is room for so many and which is
            // borrowed mutably, and protects pages of a mapping; it changes no other memory.
            let found = unsafe { ioctl(&self.file, Scan(&mut scan)) }?;
            let page = |address| (address - begin) / PAGE_SIZE as u64;
            runs.extend(
                self.regions
                    .iter()
                    .take(found)
                    .map(|region| (page(region.start), page(region.end) - page(region.start))),
            );
            // Else it would go on for ever.
            if scan.walk_end <= scan.start {
                return Err(Errno::PROTO);
            }
            scan.start = scan.walk_end;
        }
        Ok(())
    }
}

/// `PAGEMAP_SCAN`, whose result is the number of regions.
struct Scan<'a>(&'a mut pm_scan_arg);

// SAFETY: the number stands for a call whose argument is a `pm_scan_arg`, which the kernel reads and writes.
unsafe impl Ioctl for Scan<'_> {
    type Output = usize;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        PAGEMAP_SCAN
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(found: IoctlOutput, _: *mut c_void) -> Result<usize, Errno> {
        usize::try_from(found).map_err(|_| Errno::PROTO)
    }
}
