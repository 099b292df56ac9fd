// SPDX-License-Identifier: GPL-2.0-or-later
//! Where a process maps a region, by `/proc/PID/maps`.

use std::ops::Range;

use crate::{PAGE_SIZE, PageRange};

/// The suffix of the path of a file that has been unlinked.
pub(crate) const DELETED: &str = " (deleted)";

/// A line of a `/proc/PID/maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapsLine<'a> {
    /// The addresses in the process.
    pub addresses: Range<u64>,
    /// `rwxp`, with `s` instead of `p` if the mapping is shared.
    pub access: &'a str,
    /// The offset in the file, in bytes.
    pub offset: u64,
    /// The file's device, `MAJOR:MINOR`.
    pub device: &'a str,
    /// The file's inode.
    pub inode: &'a str,
    /// The file's path; empty for anonymous memory.
    pub path: &'a str,
}

/// The lines of `maps`, the text of a `/proc/PID/maps`. One of another form is left out.
pub fn maps_lines(maps: &str) -> impl Iterator<Item = MapsLine<'_>> {
    maps.lines().filter_map(|line| {
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        Some(MapsLine {
            addresses: number(start)?..number(end)?,
            access: fields.next()?,
            offset: number(fields.next()?)?,
            device: fields.next()?,
            inode: fields.next()?,
            path: fields.next().unwrap_or_default().trim_start(),
        })
    })
}

/// A mapping of a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedPages {
    /// The addresses in the process.
    pub addresses: Range<u64>,
    /// The region's pages at these addresses.
    pub pages: PageRange,
}

/// Whether a path of `/proc/PID/maps` is the region's: `/dev/vmem/NAME` is called `vmem:NAME` there.
pub(crate) fn is_region(mapped: &str, name: &str) -> bool {
    let mapped = mapped.strip_suffix(DELETED).unwrap_or(mapped);
    mapped.strip_prefix('/').unwrap_or(mapped).strip_prefix("vmem:") == Some(name)
}

/// The mappings of the region `name` in `maps`, the text of a `/proc/PID/maps`.
#[must_use]
pub fn mapped_pages(maps: &str, name: &str) -> Vec<MappedPages> {
    let mapping = |line: MapsLine<'_>| {
        let addresses = line.addresses;
        let count = addresses.end.checked_sub(addresses.start)? / PAGE_SIZE as u64;
        let pages = PageRange::from_pgoff(line.offset / PAGE_SIZE as u64, count)?;
        Some(MappedPages { addresses, pages })
    };
    let of_region = maps_lines(maps).filter(|line| is_region(line.path, name));
    of_region.filter_map(mapping).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_a_region_are_those_with_its_name() {
        let maps = "7f0000000000-7f0000004000 rw-s 00002000 00:01 7    /vmem:guest0.ram\n\
                    7f0000004000-7f0000005000 rw-s 00000000 00:01 8    /vmem:guest0.ram2\n\
                    7f0000006000-7f0000007000 r--p 00000000 00:01 7    /vmem:guest0.ram (deleted)\n\
                    7f0000008000-7f0000009000 rw-p 00000000 00:00 0 \n\
                    x-y rw-s 0 00:01 7 /vmem:guest0.ram\n";
        let found = mapped_pages(maps, "guest0.ram");
        let pages: Vec<_> = found
            .iter()
            .map(|found| (found.pages.first().get(), found.pages.count()))
            .collect();
        assert_eq!(pages, [(2, 4), (0, 1)]);
        assert_eq!(found[0].addresses, 0x7f00_0000_0000..0x7f00_0000_4000);
    }
}
