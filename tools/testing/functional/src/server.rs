// SPDX-License-Identifier: GPL-2.0-or-later
//! A daemon that answers every request, in a thread of the test.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmem::{Fill, PAGE_SIZE, PageIndex, Region};

use crate::failure::{Outcome, ensure};
use crate::setting::{bytes_of, contents};

/// A daemon that fills each wanted page.
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    served: Arc<Mutex<Vec<PageIndex>>>,
    thread: Option<JoinHandle<Outcome>>,
}

impl Server {
    /// Starts one that fills each page with its [`contents`].
    pub(crate) fn start(region: &Arc<Region>) -> Self {
        Self::with(region, |pgoff| bytes_of(&contents(pgoff)))
    }

    /// Starts one that fills the region with these bytes. What is left of the last page has others than zero, which nobody may see.
    pub(crate) fn with_bytes(region: &Arc<Region>, bytes: Vec<u8>) -> Self {
        Self::with(region, move |pgoff| {
            let page = bytes.chunks(PAGE_SIZE).nth(pgoff as usize).unwrap_or_default();
            let mut page = page.to_vec();
            page.resize(PAGE_SIZE, 0xff);
            page
        })
    }

    fn with(region: &Arc<Region>, bytes_of_page: impl Fn(u64) -> Vec<u8> + Send + 'static) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let thread = thread::spawn({
            let (region, stop, served) = (region.clone(), stop.clone(), Arc::clone(&served));
            move || serve(&region, &stop, &served, bytes_of_page)
        });
        Self {
            stop,
            served,
            thread: Some(thread),
        }
    }

    /// Ends it, and returns the pages that it was asked for, in the order in which it was asked.
    pub(crate) fn stop(mut self) -> Outcome<Vec<u64>> {
        self.end()?;
        Ok(lock(&self.served).iter().map(|page| page.get()).collect())
    }

    fn end(&mut self) -> Outcome {
        self.stop.store(true, Ordering::SeqCst);
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err("the server panicked".into()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Of a failed test: it has failed already.
        let _ = self.end();
    }
}

fn lock(served: &Mutex<Vec<PageIndex>>) -> std::sync::MutexGuard<'_, Vec<PageIndex>> {
    served.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(region: &Region, stop: &AtomicBool, served: &Mutex<Vec<PageIndex>>, bytes_of_page: impl Fn(u64) -> Vec<u8>) -> Outcome {
    while !stop.load(Ordering::SeqCst) {
        for page in region.next_requests_timeout(64, Duration::from_millis(20))? {
            lock(served).push(page);
            let changed = region.fill(&[Fill::new(page, &bytes_of_page(page.get()))?]).complete()?;
            // Somebody else may have been faster, but nobody asks for a page twice.
            ensure!(changed <= 1, "{page}: {changed} pages were filled");
        }
    }
    Ok(())
}
