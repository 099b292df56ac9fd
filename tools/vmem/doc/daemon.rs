// SPDX-License-Identifier: GPL-2.0-or-later
use std::thread::sleep;
use std::time::Duration;

use vmem::{Error, Fill, PAGE_SIZE, Region};

/// Answers requests until all pages are present, and then makes the region plain memory.
fn serve(region: &Region) -> Result<(), Error> {
    // Pages also become present without the daemon: a program that discards an absent page (MADV_REMOVE) makes it zero.
    while region.info()?.present < region.pages().count() {
        let wanted = match region.next_requests_timeout(64, Duration::from_millis(200)) {
            // A signal came first.
            Err(Error::Interrupted { .. }) => continue,
            wanted => wanted?,
        };
        for page in wanted {
            let contents = vec![page.get() as u8; PAGE_SIZE];
            let fill = [Fill::new(page, &contents)?];
            loop {
                match region.fill(&fill).complete() {
                    // The machine, or the memory cgroup that is charged, has no memory now. The program waits meanwhile.
                    Err(Error::NoMemory { .. }) => sleep(Duration::from_millis(100)),
                    filled => break filled.map(drop)?,
                }
            }
        }
    }
    region.make_vma_anonymous()
}
