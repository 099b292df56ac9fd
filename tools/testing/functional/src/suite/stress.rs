// SPDX-License-Identifier: GPL-2.0-or-later
//! Everything at once, for a bounded number of steps, from a fixed seed.

use std::sync::Arc;
use std::thread;

use vmem::{Control, Fill};
use vmem_functional_sys::AreaBuilder;

use crate::failure::{Outcome, equal};
use crate::program::Program;
use crate::server::Server;
use crate::setting::{Setting, bytes_of, check_page, contents, page, pages};

const MADV_DONTNEED: i32 = 4;

crate::tests![
    programs_daemons_and_conversion_at_once_never_show_a_wrong_page,
    daemons_that_come_and_go_lose_no_request,
];

/// Numbers that look random, the same for each run.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    /// The next one, less than `limit`.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % limit
    }
}

const PAGES: usize = 2048;

/// A program that does what programs do, and checks each page that it sees.
fn worker(setting: &Setting, seed: u64, steps: usize) -> Outcome<Program> {
    Program::start(|| {
        let mut numbers = Numbers(seed);
        let mut area = setting.area()?;
        for _ in 0..steps {
            let pgoff = numbers.below(PAGES);
            let count = 1 + numbers.below(8).min(PAGES - 1 - pgoff);
            match numbers.below(16) {
                0 => area = setting.area()?,
                1 => area.advise(pgoff..pgoff + count, MADV_DONTNEED)?,
                2 => {
                    let part = AreaBuilder::default().map(&setting.map, pgoff, count)?;
                    check_page(&part, count - 1, pgoff + count - 1)?;
                }
                3 => {
                    let private = AreaBuilder::default().private().map(&setting.map, pgoff, count)?;
                    private.write_page(0, &contents(1 << 30));
                    check_page(&private, 0, 1 << 30)?;
                }
                4 => {
                    area.protect(pgoff..pgoff + count, 1)?;
                    check_page(&area, pgoff, pgoff)?;
                    area.protect(pgoff..pgoff + count, 3)?;
                }
                5 if numbers.below(8) == 0 => {
                    let child = Program::start(|| {
                        check_page(&area, pgoff, pgoff)?;
                        Ok(vec![])
                    })?;
                    child.join()?;
                }
                _ => {
                    for next in pgoff..pgoff + count {
                        check_page(&area, next, next)?;
                    }
                }
            }
        }
        Ok(vec![])
    })
}

fn programs_daemons_and_conversion_at_once_never_show_a_wrong_page() -> Outcome {
    let setting = Setting::new(PAGES)?;
    let workers: Vec<_> = (1..=4)
        .map(|seed| worker(&setting, seed * 0x9e37_79b9, 1200))
        .collect::<Outcome<_>>()?;
    let servers = [Server::start(&setting.region), Server::start(&setting.region)];
    // Behind the requests: the stream, with page tables.
    let mut numbers = Numbers(77);
    while setting.region.info()?.present < PAGES as u64 {
        let first = numbers.below(PAGES);
        let count = 1 + numbers.below(16).min(PAGES - 1 - first);
        let bytes: Vec<u8> = (first..first + count)
            .flat_map(|pgoff| bytes_of(&contents(pgoff as u64)))
            .collect();
        setting.region.fill(&[Fill::new(page(first), &bytes)?]).complete()?;
        if numbers.below(4) == 0 {
            setting.region.make_pages_present(&[pages(first, count)]).complete()?;
        }
    }
    for server in servers {
        server.stop()?;
    }
    setting.region.make_vma_anonymous()?;
    for worker in workers {
        worker.join()?;
    }
    setting.region.make_vma_anonymous()?;
    equal!(setting.region.info()?.waiters, 0);
    Ok(())
}

fn daemons_that_come_and_go_lose_no_request() -> Outcome {
    let mut setting = Setting::new(PAGES)?;
    let id = setting.region.id();
    let workers: Vec<_> = (1..=3)
        .map(|seed| worker(&setting, seed * 0x51ed_270b, 400))
        .collect::<Outcome<_>>()?;
    let mut numbers = Numbers(5);
    let joined = thread::spawn({
        move || -> Outcome {
            for worker in workers {
                worker.join()?;
            }
            Ok(())
        }
    });
    while !joined.is_finished() {
        let server = Server::start(&setting.region);
        thread::sleep(std::time::Duration::from_millis(5 + numbers.below(30) as u64));
        server.stop()?;
        // It goes with requests in its hands.
        let _taken = setting.region.try_next_requests(1 + numbers.below(8));
        let Setting { region, map } = setting;
        drop(Arc::into_inner(region));
        setting = Setting {
            region: Control::open()?.attach_id(id)?.into(),
            map,
        };
    }
    joined.join().map_err(|_| "the thread panicked")??;
    equal!(setting.region.info()?.waiters, 0);
    Ok(())
}
