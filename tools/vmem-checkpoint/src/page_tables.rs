// SPDX-License-Identifier: GPL-2.0-or-later
//! Which pages of a region programs have touched, by their page tables.
//!
//! An absent page of a region is in no page table. When it has come, a touch puts it there, with up to 15 of its neighbours that are present, and so does
//! the completion of the region, with all pages. Until then, a present entry says that the page or a neighbour was touched, by any thread,
//! vCPU or system call of the process. A page that was swapped out since has no present entry.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use vmem::{MappedPages, PAGE_SIZE, PageIndex, PageRange, PageSet, mapped_pages};

/// Bytes of an entry of `/proc/PID/pagemap`.
const ENTRY: usize = size_of::<u64>();

/// Set in an entry if the page is in the page table.
const PRESENT: u64 = 1 << 63;

/// Set in an entry if the page was swapped out.
const SWAPPED: u64 = 1 << 62;

/// Set in an entry if the page is a file's, or shared.
const OF_FILE: u64 = 1 << 61;

/// Entries that are read at once.
const ENTRIES: u64 = 4096;

/// Of each region, given by its name and by the pages that are of interest: those of them that a process other than this one has touched.
pub(crate) fn touched(regions: &[(&str, &PageSet)]) -> io::Result<Vec<PageSet>> {
    let mut found: Vec<_> = regions.iter().map(|(_, pages)| PageSet::none_of(pages.pages())).collect();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
        if number.is_none_or(|number| number == std::process::id()) {
            continue;
        }
        // A process may end at any moment, and those of others may be closed to this one.
        let Ok(maps) = fs::read_to_string(path.join("maps")) else {
            continue;
        };
        for ((name, wanted), found) in regions.iter().zip(&mut found) {
            for mapping in mapped_pages(&maps, name) {
                match File::open(path.join("pagemap")).and_then(|pagemap| read(&pagemap, &mapping, wanted, found)) {
                    Ok(()) => {}
                    Err(error) => tracing::debug!("{}: the page table cannot be read: {error}", path.display()),
                }
            }
        }
    }
    Ok(found)
}

/// Adds those of `wanted` to `found` that are in the page table.
fn read(pagemap: &File, mapping: &MappedPages, wanted: &PageSet, found: &mut PageSet) -> io::Result<()> {
    let first = mapping.pages.first().get();
    for run in wanted.runs_of(mapping.pages) {
        let address = mapping.addresses.start + (run.first().get() - first) * PAGE_SIZE as u64;
        entries(pagemap, address, run, |page, entry| {
            if entry & PRESENT != 0 {
                found.insert(PageRange::from(page));
            }
        })?;
    }
    Ok(())
}

/// Those of `pages`, which begin at `address` in a private mapping of a file, that the process has for itself: in the page table and not of the
/// file, or swapped out. Swapped pages of the file are in no page table of a private mapping.
pub(crate) fn private(page_table: &File, address: u64, pages: PageRange) -> io::Result<PageSet> {
    let mut found = PageSet::none_of(pages);
    entries(page_table, address, pages, |page, entry| {
        if entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0 {
            found.insert(PageRange::from(page));
        }
    })?;
    Ok(found)
}

/// Calls `each` with the entry of each page.
fn entries(page_table: &File, address: u64, pages: PageRange, mut each: impl FnMut(PageIndex, u64)) -> io::Result<()> {
    let mut buffer = [0; ENTRIES as usize * ENTRY];
    let mut rest = Some(pages);
    let mut address = address / PAGE_SIZE as u64;
    while let Some(pages) = rest {
        let (now, after) = pages.split_at(ENTRIES);
        rest = after;
        let Some(now) = now else { break };
        let buffer = &mut buffer[..now.count() as usize * ENTRY];
        page_table.read_exact_at(buffer, address * ENTRY as u64)?;
        address += now.count();
        for (page, entry) in now.iter().zip(buffer.chunks_exact(ENTRY)) {
            each(page, entry.first_chunk().map_or(0, |entry| u64::from_ne_bytes(*entry)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn range(first: u64, count: u64) -> PageRange {
        PageRange::from_pgoff(first, count).expect("pages")
    }

    #[test]
    fn present_entries_of_the_mapping_are_found_and_no_others() {
        // A mapping of pages 100 to 5099 at the address of page 7.
        let mut file = tempfile::tempfile().expect("a file");
        for entry in 0..7 + 5000_u64 {
            // The lower bits mean other things.
            let value = if entry % 3 == 0 { PRESENT | entry } else { (1 << 62) | entry };
            file.write_all(&value.to_ne_bytes()).expect("room");
        }
        let mapping = MappedPages {
            addresses: 7 * PAGE_SIZE as u64..5007 * PAGE_SIZE as u64,
            pages: range(100, 5000),
        };
        let mut wanted = PageSet::none_of(range(0, 9000));
        wanted.insert(range(90, 20));
        wanted.insert(range(4190, 12));
        wanted.insert(range(6000, 12));
        let mut found = PageSet::none_of(range(0, 9000));
        read(&file, &mapping, &wanted, &mut found).expect("entries");
        let pages: Vec<_> = found.runs().map(|run| (run.first().get(), run.count())).collect();
        // Page P has the entry P - 93.
        let expected: Vec<_> = (100..110)
            .chain(4190..4202)
            .filter(|page| (page - 93) % 3 == 0)
            .map(|page| (page, 1))
            .collect();
        assert_eq!(pages, expected);
    }

    #[test]
    fn pages_that_a_process_has_written_in_a_private_mapping_are_private_and_others_are_not() {
        use vmem::{Access, Mapping, Sharing};

        let file = tempfile::tempfile_in("/dev/shm").expect("a file");
        file.set_len(5000 * PAGE_SIZE as u64).expect("a size");
        let mapping = Mapping::new(&file, 0, 5000 * PAGE_SIZE, Access::ReadWrite, Sharing::Private).expect("memory");
        mapping.read_at(10 * PAGE_SIZE, &mut [0; 8]).expect("a page");
        for page in [20, 4095, 4096, 4999] {
            mapping.write_at(page * PAGE_SIZE, &[7]).expect("a page");
        }
        let page_table = File::open("/proc/self/pagemap").expect("a page table");
        let found = private(&page_table, mapping.as_ptr() as u64, range(0, 5000)).expect("entries");
        let pages: Vec<_> = found.runs().map(|run| (run.first().get(), run.count())).collect();
        assert_eq!(pages, [(20, 1), (4095, 2), (4999, 1)]);
    }

    #[test]
    fn region_that_no_process_maps_is_not_touched() {
        let wanted = PageSet::all_of(range(0, 10));
        let found = touched(&[("no-such-region", &wanted)]).expect("/proc");
        assert!(found[0].is_empty());
    }
}
