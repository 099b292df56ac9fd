// SPDX-License-Identifier: GPL-2.0-or-later
//! The calls on a region: each field of each argument at its extremes, and on each kind of descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use vmem::{Control, PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::{Area, AreaBuilder, ioctl, ioctl_at};
use vmem_sys::{
    VMEM_ATTACH, VMEM_CREATE_VMEM, VMEM_FILL_PAGES, VMEM_FILL_STAGE, VMEM_GET_FEATURES, VMEM_GET_INFO, VMEM_GET_MAP_FD,
    VMEM_GET_PAGE_REQUEST, VMEM_GET_PRESENT, VMEM_MAKE_PAGES_PRESENT, VMEM_MAKE_VMA_ANONYMOUS, VMEM_MARK_PAGE_CACHED,
    VMEM_MAX_BATCH, VMEM_READY, VMEM_RESUME, VMEM_SET_BACKING, VMEM_WAIT_READY, calls, vmem_fill, vmem_fill_range, vmem_map_fd,
    vmem_mark, vmem_page_request, vmem_populate, vmem_present, vmem_range, vmem_resume,
};

use crate::failure::{Outcome, ensure, equal, refused};
use crate::setting::{Setting, contents};

crate::tests![
    a_map_descriptor_cannot_serve,
    descriptors_have_only_their_own_calls,
    numbers_that_are_no_call_are_enotty,
    arguments_that_cannot_be_read_are_efault,
    batches_of_zero_or_too_many_are_einval,
    unknown_flags_are_einval,
    ranges_outside_of_the_region_are_einval,
    arrays_that_cannot_be_read_are_efault,
    a_wrong_range_at_the_end_stops_the_call_before_it_begins,
    the_greatest_batch_is_taken,
    contents_that_cannot_be_read_are_efault_and_what_was_done_is_told,
    contents_beyond_the_end_of_user_memory_are_efault_before_anything_is_done,
    contents_can_lie_anywhere_in_a_page,
    present_map_refuses_wrong_ranges,
    present_map_clears_the_bits_after_the_last_page,
    present_map_that_cannot_be_written_is_efault,
    requests_that_cannot_be_handed_over_are_not_lost,
];

/// A region with 100 pages, and what wild calls need.
struct Wild {
    setting: Setting,
    /// A page that can be read and written, and after it one that cannot.
    memory: Area,
}

const PAGES: u64 = 100;
const SERVING: [u32; 8] = [
    VMEM_READY,
    VMEM_GET_PAGE_REQUEST,
    VMEM_MARK_PAGE_CACHED,
    VMEM_MAKE_PAGES_PRESENT,
    VMEM_MAKE_VMA_ANONYMOUS,
    VMEM_FILL_PAGES,
    VMEM_SET_BACKING,
    VMEM_RESUME,
];

impl Wild {
    fn new() -> Outcome<Self> {
        let memory = AreaBuilder::default().private().anonymous(2)?;
        memory.protect(1..2, 0)?;
        Ok(Self {
            setting: Setting::new(PAGES as usize)?,
            memory,
        })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.setting.region.as_fd()
    }

    /// Where nothing can be read or written.
    fn nowhere(&self) -> [u64; 4] {
        let inaccessible = self.memory.address() + PAGE_SIZE;
        [0, inaccessible as u64, 1 << 63, u64::MAX - 7]
    }

    /// The calls on ranges, with these; the fill ranges' contents are readable.
    fn range_calls(&self, ranges: &[(u64, u64)], nr: u32) -> [(&'static str, io::Result<()>); 3] {
        let plain: Vec<_> = ranges
            .iter()
            .map(|&(pgoff, nr_pages)| vmem_range { pgoff, nr_pages })
            .collect();
        let addr = self.memory.address() as u64;
        let fills: Vec<_> = ranges
            .iter()
            .map(|&(pgoff, nr_pages)| vmem_fill_range { pgoff, nr_pages, addr })
            .collect();
        let plain = plain.as_ptr() as u64;
        let fills = fills.as_ptr() as u64;
        self.calls_at(plain, fills, nr, 0)
    }

    fn calls_at(&self, ranges: u64, fills: u64, nr: u32, flags: u32) -> [(&'static str, io::Result<()>); 3] {
        let mut mark = vmem_mark {
            ranges,
            nr,
            flags,
            ..Default::default()
        };
        let mut populate = vmem_populate {
            ranges,
            nr,
            flags,
            ..Default::default()
        };
        let mut fill = vmem_fill {
            ranges: fills,
            nr,
            flags,
            ..Default::default()
        };
        [
            ("mark", ioctl(self.fd(), VMEM_MARK_PAGE_CACHED, &mut mark)),
            ("populate", ioctl(self.fd(), VMEM_MAKE_PAGES_PRESENT, &mut populate)),
            ("fill", ioctl(self.fd(), VMEM_FILL_PAGES, &mut fill)),
        ]
    }

    /// Fails if any page has changed.
    fn check_untouched(&self) -> Outcome {
        let info = self.setting.region.info()?;
        equal!((info.present, info.unreadable), (0, 0));
        Ok(())
    }
}

fn a_map_descriptor_cannot_serve() -> Outcome {
    let setting = Setting::new(1)?;
    let argument = [0u64; 32];
    for call in SERVING {
        refused!(ioctl_at(&setting.map, call, argument.as_ptr() as usize), PERM);
    }
    equal!(setting.region.info()?.ready, false);
    Ok(())
}

fn descriptors_have_only_their_own_calls() -> Outcome {
    let setting = Setting::new(1)?;
    let control = Control::open()?;
    let argument = [0u64; 32];
    let address = argument.as_ptr() as usize;
    for call in [VMEM_CREATE_VMEM, VMEM_ATTACH] {
        refused!(ioctl_at(&setting.map, call, address), NOTTY);
        refused!(ioctl_at(&*setting.region, call, address), NOTTY);
    }
    let of_regions = [VMEM_WAIT_READY, VMEM_GET_PRESENT, VMEM_GET_INFO, VMEM_GET_MAP_FD];
    for call in SERVING.into_iter().chain(of_regions) {
        refused!(ioctl_at(&control, call, address), NOTTY);
        refused!(ioctl_at(setting.region.staging(), call, address), NOTTY);
    }
    Ok(())
}

fn numbers_that_are_no_call_are_enotty() -> Outcome {
    let setting = Setting::new(1)?;
    let control = Control::open()?;
    let argument = [0u64; 32];
    // One beyond the last call, a call with the size of an older or newer struct, nothing at all.
    for call in [
        0xbb1a,
        0xbb03,
        VMEM_GET_INFO + (1 << 16),
        VMEM_CREATE_VMEM - (8 << 16),
        VMEM_GET_INFO ^ (3 << 30),
        0,
        u32::MAX,
    ] {
        for fd in [control.as_fd(), setting.region.as_fd(), setting.map.as_fd()] {
            refused!(ioctl_at(fd, call, argument.as_ptr() as usize), NOTTY);
        }
    }
    Ok(())
}

fn arguments_that_cannot_be_read_are_efault() -> Outcome {
    let wild = Wild::new()?;
    // The last one begins in memory and ends nowhere.
    let half = (wild.memory.address() + PAGE_SIZE - 4) as u64;
    for address in wild.nowhere().into_iter().chain([half]) {
        for call in [
            VMEM_GET_FEATURES,
            VMEM_GET_PAGE_REQUEST,
            VMEM_MARK_PAGE_CACHED,
            VMEM_MAKE_PAGES_PRESENT,
            VMEM_FILL_PAGES,
            VMEM_SET_BACKING,
            VMEM_GET_PRESENT,
            VMEM_GET_INFO,
            VMEM_GET_MAP_FD,
            VMEM_RESUME,
        ] {
            refused!(ioctl_at(wild.fd(), call, address as usize), FAULT);
        }
    }
    // Arguments that can be read and not written.
    let answer = AreaBuilder::default().private().anonymous(1)?;
    answer.protect(0..1, 1)?;
    refused!(ioctl_at(wild.fd(), VMEM_GET_INFO, answer.address()), FAULT);
    refused!(ioctl_at(wild.fd(), VMEM_GET_MAP_FD, answer.address()), FAULT);
    refused!(ioctl_at(wild.fd(), VMEM_RESUME, answer.address()), FAULT);
    Ok(())
}

fn batches_of_zero_or_too_many_are_einval() -> Outcome {
    let wild = Wild::new()?;
    let ranges = vec![(0, 1); VMEM_MAX_BATCH as usize + 1];
    for nr in [0, VMEM_MAX_BATCH + 1, 1 << 31, u32::MAX] {
        for (what, result) in wild.range_calls(&ranges, nr) {
            ensure!(result.is_err(), "{what} takes {nr}");
            refused!(result, INVAL);
        }
        let mut pgoffs = vec![0u64; VMEM_MAX_BATCH as usize + 1];
        let mut request = vmem_page_request {
            pgoffs: pgoffs.as_mut_ptr() as u64,
            nr,
            flags: 0,
        };
        refused!(ioctl(wild.fd(), VMEM_GET_PAGE_REQUEST, &mut request), INVAL);
    }
    wild.check_untouched()
}

fn unknown_flags_are_einval() -> Outcome {
    let wild = Wild::new()?;
    let range = [vmem_range { pgoff: 0, nr_pages: 1 }];
    let fill = [vmem_fill_range {
        pgoff: 0,
        nr_pages: 1,
        addr: wild.memory.address() as u64,
    }];
    for flag in (0..32).map(|bit| 1u32 << bit).chain([3, u32::MAX]) {
        for (what, result) in wild.calls_at(range.as_ptr() as u64, fill.as_ptr() as u64, 1, flag) {
            if (what == "mark" && flag <= 2) || (what == "fill" && flag == VMEM_FILL_STAGE) {
                continue;
            }
            ensure!(result.is_err(), "{what} takes the flags {flag:#x}");
            refused!(result, INVAL);
        }
        let mut pgoffs = [0u64; 1];
        let mut request = vmem_page_request {
            pgoffs: pgoffs.as_mut_ptr() as u64,
            nr: 1,
            flags: flag,
        };
        refused!(ioctl(wild.fd(), VMEM_GET_PAGE_REQUEST, &mut request), INVAL);
        refused!(
            ioctl(wild.fd(), VMEM_GET_MAP_FD, &mut vmem_map_fd { flags: flag, fd: 0 }),
            INVAL
        );
        let mut resume = vmem_resume {
            flags: flag,
            ..Default::default()
        };
        refused!(ioctl(wild.fd(), VMEM_RESUME, &mut resume), INVAL);
    }
    Ok(())
}

const WRONG_RANGES: [(u64, u64); 12] = [
    (0, 0),
    (5, 0),
    (0, PAGES + 1),
    (PAGES, 1),
    (PAGES - 1, 2),
    (PAGES, 0),
    (0, u64::MAX),
    (1, u64::MAX),
    (u64::MAX, 1),
    (u64::MAX, u64::MAX),
    (1 << 63, 1 << 63),
    (1 << 52, 1),
];

fn ranges_outside_of_the_region_are_einval() -> Outcome {
    let wild = Wild::new()?;
    for range in WRONG_RANGES {
        for (what, result) in wild.range_calls(&[range], 1) {
            ensure!(result.is_err(), "{what} takes the range {range:?}");
            refused!(result, INVAL);
        }
    }
    wild.check_untouched()
}

fn arrays_that_cannot_be_read_are_efault() -> Outcome {
    let wild = Wild::new()?;
    for address in wild.nowhere() {
        for (what, result) in wild.calls_at(address, address, 1, 0) {
            ensure!(result.is_err(), "{what} reads at {address:#x}");
            refused!(result, FAULT);
        }
    }
    // The first range is in memory, the second one is not.
    let edge = (wild.memory.address() + PAGE_SIZE) as u64;
    wild.memory.write_page(0, &[1; 512]);
    for (what, result) in wild.calls_at(edge - 16, edge - 24, 2, 0) {
        ensure!(result.is_err(), "{what} reads beyond");
        refused!(result, FAULT);
    }
    wild.check_untouched()
}

fn a_wrong_range_at_the_end_stops_the_call_before_it_begins() -> Outcome {
    let wild = Wild::new()?;
    for wrong in WRONG_RANGES {
        for (_, result) in wild.range_calls(&[(0, 1), (1, 1), wrong], 3) {
            refused!(result, INVAL);
        }
    }
    wild.check_untouched()
}

fn the_greatest_batch_is_taken() -> Outcome {
    let wild = Wild::new()?;
    // Twice the same page is no error: it is changed once.
    let ranges: Vec<_> = (0..u64::from(VMEM_MAX_BATCH))
        .map(|at| vmem_range {
            pgoff: at % PAGES,
            nr_pages: 1,
        })
        .collect();
    let outcome = calls::mark_page_cached(wild.fd(), &ranges, vmem_sys::VMEM_MARK_ZERO);
    equal!(
        (outcome.error, outcome.done, outcome.pages),
        (None, VMEM_MAX_BATCH as usize, PAGES)
    );
    Ok(())
}

fn contents_that_cannot_be_read_are_efault_and_what_was_done_is_told() -> Outcome {
    let wild = Wild::new()?;
    let readable = wild.memory.address() as u64;
    wild.memory.write_page(0, &contents(7));
    let mut expected_present = 0;
    for (at, nowhere) in wild.nowhere().into_iter().chain([readable + 1]).enumerate() {
        let pgoff = at as u64 * 3;
        let ranges = [(pgoff, readable), (pgoff + 1, nowhere), (pgoff + 2, readable)].map(|(pgoff, addr)| vmem_fill_range {
            pgoff,
            nr_pages: 1,
            addr,
        });
        let mut fill = vmem_fill {
            ranges: ranges.as_ptr() as u64,
            nr: 3,
            ..Default::default()
        };
        refused!(ioctl(wild.fd(), VMEM_FILL_PAGES, &mut fill), FAULT);
        ensure!(
            fill.done <= 1 && fill.changed == fill.done,
            "done {} changed {}",
            fill.done,
            fill.changed
        );
        expected_present += fill.changed;
        let map = wild.setting.region.present_map()?;
        equal!(map.present(), expected_present);
        // Whatever was copied of the unreadable page, it is not marked.
        ensure!(!map.contains(crate::setting::page(pgoff as usize + 1)));
    }
    Ok(())
}

fn contents_beyond_the_end_of_user_memory_are_efault_before_anything_is_done() -> Outcome {
    const LAST_PAGE: usize = (1 << 47) - 2 * PAGE_SIZE;
    let last = AreaBuilder::default().private().at(LAST_PAGE).anonymous(1)?;
    last.write_page(0, &contents(7));
    let readable = [(0, 1, LAST_PAGE)];
    for (pgoff, nr_pages, addr) in [(1, 2, LAST_PAGE), (1, 1, 1 << 63), (1, 1, usize::MAX - 7)] {
        let ranges = readable.into_iter().chain([(pgoff, nr_pages, addr)]);
        let ranges: Vec<_> = ranges
            .map(|(pgoff, nr_pages, addr)| vmem_fill_range {
                pgoff,
                nr_pages,
                addr: addr as u64,
            })
            .collect();
        for huge in [false, true] {
            let builder = RegionBuilder::new(4 << 20);
            let setting = Setting::create(if huge { builder.huge() } else { builder })?;
            let mut fill = vmem_fill {
                ranges: ranges.as_ptr() as u64,
                nr: ranges.len() as u32,
                ..Default::default()
            };
            refused!(ioctl(setting.region.as_fd(), VMEM_FILL_PAGES, &mut fill), FAULT);
            equal!((fill.done, setting.region.info()?.present), (0, 0));
        }
    }
    Ok(())
}

fn contents_can_lie_anywhere_in_a_page() -> Outcome {
    let setting = Setting::new(16)?;
    let bytes = crate::setting::bytes_of(&contents(9));
    for (pgoff, shift) in [1, 2, 7, 8, 100, 2048, 4095].into_iter().enumerate() {
        let mut shifted = vec![0xee; shift];
        shifted.extend_from_slice(&bytes);
        shifted.push(0xee);
        let fill = vmem::Fill::new(crate::setting::page(pgoff), &shifted[shift..shift + PAGE_SIZE])?;
        equal!(setting.region.fill(&[fill]).complete()?, 1);
        crate::setting::check_words(&setting.area()?.page(pgoff), 9)?;
    }
    Ok(())
}

fn present_map_refuses_wrong_ranges() -> Outcome {
    let wild = Wild::new()?;
    let mut bitmap = [0u64; 64];
    for (pgoff, nr_pages) in WRONG_RANGES.into_iter().chain([(1, 1), (63, 1), (65, 1), (32, 64)]) {
        let mut present = vmem_present {
            pgoff,
            nr_pages,
            bitmap: bitmap.as_mut_ptr() as u64,
            present: 0,
        };
        refused!(ioctl(wild.fd(), VMEM_GET_PRESENT, &mut present), INVAL);
    }
    for (pgoff, nr_pages) in [(0, 1), (0, PAGES), (64, 1), (64, 36)] {
        equal!(calls::get_present(wild.setting.map.as_fd(), pgoff, nr_pages, &mut bitmap)?, 0);
    }
    Ok(())
}

fn present_map_clears_the_bits_after_the_last_page() -> Outcome {
    let setting = Setting::new(PAGES as usize)?;
    setting.fill_all()?;
    for (pgoff, nr_pages) in [(0u64, 1u64), (0, 63), (0, 64), (0, 65), (0, PAGES), (64, 1), (64, 36)] {
        let mut bitmap = [u64::MAX; 3];
        equal!(
            calls::get_present(setting.region.as_fd(), pgoff, nr_pages, &mut bitmap)?,
            nr_pages
        );
        let words = nr_pages.div_ceil(64) as usize;
        let bits: u32 = bitmap[..words].iter().map(|word| word.count_ones()).sum();
        equal!(u64::from(bits), nr_pages);
        // Words that it does not need are left alone.
        ensure!(bitmap[words..].iter().all(|word| *word == u64::MAX));
    }
    Ok(())
}

fn present_map_that_cannot_be_written_is_efault() -> Outcome {
    let wild = Wild::new()?;
    for bitmap in wild.nowhere() {
        let mut present = vmem_present {
            pgoff: 0,
            nr_pages: PAGES,
            bitmap,
            present: 0,
        };
        refused!(ioctl(wild.fd(), VMEM_GET_PRESENT, &mut present), FAULT);
    }
    Ok(())
}

fn requests_that_cannot_be_handed_over_are_not_lost() -> Outcome {
    let wild = Wild::new()?;
    let setting = &wild.setting;
    let reader = setting.reader(3)?;
    setting.wait_waiters(1)?;
    for pgoffs in wild.nowhere() {
        refused!(
            ioctl(
                wild.fd(),
                VMEM_GET_PAGE_REQUEST,
                &mut vmem_page_request { pgoffs, nr: 8, flags: 0 }
            ),
            FAULT
        );
    }
    equal!(setting.region.info()?.queued, 1);
    equal!(setting.take_request()?, 3);
    setting.fill([3])?;
    crate::setting::check_words(&reader.join()?, 3)
}
