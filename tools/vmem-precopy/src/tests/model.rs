// SPDX-License-Identifier: GPL-2.0-or-later
//! A model of memory with a dirty log, and an observer that knows which pages are right.

use std::sync::{Arc, Mutex, MutexGuard};

use vmem_pages::{PageIndex, PageRange, PageSet};
use vmem_source::Holes;

use crate::memory::{DirtyMemory, Logged};
use crate::plan::{Chosen, Plan};

#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    /// Chooses pages; those that were chosen before are read first.
    Next(u64),
    /// Looks for holes in pages of a memory, of which one is written after the take and another one after that.
    Map(usize, u64, u64),
    /// Reads the pages that were chosen, and sends them.
    Read,
    Write(usize, u64),
    /// Pins a page: it stays in the log.
    Hold(usize, u64),
    /// The next take of the memory fails after so many words.
    Fail(usize, usize),
    Wait,
}

/// What a page has that was never written.
const HOLE: u64 = 1;

/// Memory whose contents are the number of writes to each page.
#[derive(Clone)]
pub(super) struct Model(Arc<Mutex<State>>);

struct State {
    contents: Vec<u64>,
    log: PageSet,
    begins_with_all: bool,
    held: PageSet,
    fail_after: Option<usize>,
    failed: bool,
}

impl Model {
    pub(super) fn new(pages: u64) -> Self {
        let none = PageSet::none_of(PageRange::of_pages(pages).expect("pages"));
        Self(Arc::new(Mutex::new(State {
            // Not the zero that a destination has without having been sent anything.
            contents: vec![HOLE; pages as usize],
            log: none.clone(),
            begins_with_all: false,
            held: none,
            fail_after: None,
            failed: false,
        })))
    }

    /// The same, whose log begins with all pages.
    pub(super) fn with_all(pages: u64) -> Self {
        let memory = Self::new(pages);
        {
            let mut state = memory.lock();
            state.log = PageSet::all_of(state.log.pages());
            state.begins_with_all = true;
        }
        memory
    }

    pub(super) fn boxed(&self) -> Box<dyn DirtyMemory> {
        Box::new(self.clone())
    }

    /// Whether anything but the test has it.
    pub(super) fn is_logged(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    pub(super) fn len(&self) -> u64 {
        self.lock().contents.len() as u64
    }

    pub(super) fn write(&self, page: u64) {
        let mut state = self.lock();
        state.contents[page as usize] += 1;
        state.log.insert(one(page));
    }

    pub(super) fn read(&self, page: u64) -> u64 {
        self.lock().contents[page as usize]
    }

    fn hold(&self, page: u64) {
        let mut state = self.lock();
        state.held.insert(one(page));
        state.log.insert(one(page));
    }

    fn is_held(&self, page: u64) -> bool {
        self.lock().held.contains(PageIndex::new(page).expect("a page"))
    }

    pub(super) fn fail_after(&self, words: usize) {
        self.lock().fail_after = Some(words);
    }

    /// Whether a take has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.lock().failed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic")
    }
}

fn one(page: u64) -> PageRange {
    PageIndex::new(page).expect("a page").into()
}

impl DirtyMemory for Model {
    fn pages(&self) -> PageRange {
        self.lock().log.pages()
    }

    fn begins_with_all(&self) -> bool {
        self.lock().begins_with_all
    }

    fn peek(&self, pages: PageRange) -> Logged {
        assert_eq!(pages.first().get() % 64, 0);
        let mut dirty = PageSet::none_of(pages);
        self.lock().log.runs_of(pages).for_each(|run| dirty.insert(run));
        Logged { dirty, error: None }
    }

    fn clean(&self, pages: PageRange) -> Logged {
        assert_eq!(pages.first().get() % 64, 0);
        let mut state = self.lock();
        let words = pages.count().div_ceil(64) as usize;
        let fails = state.fail_after.filter(|after| *after < words);
        let examined = match fails {
            Some(after) => PageRange::from_pgoff(pages.first().get(), 64 * after as u64),
            None => Some(pages),
        };
        let mut dirty = PageSet::none_of(pages);
        if let Some(examined) = examined {
            state.log.runs_of(examined).for_each(|run| dirty.insert(run));
            state.log.subtract(&dirty);
            let held: Vec<PageRange> = state.held.runs_of(examined).collect();
            held.into_iter().for_each(|run| state.log.insert(run));
        }
        if fails.is_some() {
            state.fail_after = None;
            state.failed = true;
        }
        Logged {
            dirty,
            error: fails.map(|_| vmem::Error::NotTracked),
        }
    }
}

/// Sees what is written, chosen and sent, and knows from that alone which pages are right.
pub(super) struct Observer {
    memories: Vec<Model>,
    destination: Vec<Vec<u64>>,
    /// Pages that were chosen, and not written since.
    right: Vec<Vec<bool>>,
    unread: Vec<(usize, u64)>,
}

impl Observer {
    pub(super) fn new(memories: &[Model]) -> Self {
        Self {
            memories: memories.to_vec(),
            destination: memories.iter().map(|memory| vec![0; memory.len() as usize]).collect(),
            right: memories.iter().map(|memory| vec![false; memory.len() as usize]).collect(),
            unread: Vec::new(),
        }
    }

    fn at(&self, memory: usize, page: u64) -> (usize, u64) {
        let memory = memory % self.memories.len();
        (memory, page % self.memories[memory].len())
    }

    pub(super) fn write(&mut self, memory: usize, page: u64) {
        let (memory, page) = self.at(memory, page);
        self.memories[memory].write(page);
        self.right[memory][page as usize] = false;
    }

    pub(super) fn hold(&mut self, memory: usize, page: u64) {
        let (memory, page) = self.at(memory, page);
        self.memories[memory].hold(page);
    }

    pub(super) fn choose(&mut self, chosen: &Chosen, max: u64) {
        let pages: Vec<u64> = chosen
            .ranges
            .iter()
            .flat_map(|range| range.iter())
            .map(PageIndex::get)
            .collect();
        assert!(!pages.is_empty() && pages.len() as u64 <= max, "{} of {max}", pages.len());
        for page in pages {
            assert!(!self.unread.contains(&(chosen.memory, page)), "page {page} comes twice");
            self.right[chosen.memory][page as usize] = true;
            self.unread.push((chosen.memory, page));
        }
    }

    /// Pages that were never written are holes. A page is written after the take, and another one when the holes have been found.
    pub(super) fn map(&mut self, plan: &mut Plan, memory: usize, first: u64, written: u64) {
        let (memory, first) = self.at(memory, first);
        let [early, late] = [written, written / 3].map(|page| self.at(memory, page).1);
        let model = self.memories[memory].clone();
        let pages = PageRange::from_pgoff(first, model.len() - first).expect("pages");
        let mut called = false;
        let found = plan.map(memory, pages, &mut |pages| {
            called = true;
            model.write(early);
            let mut holes = PageSet::none_of(pages);
            let unwritten = pages.iter().filter(|page| model.read(page.get()) == HOLE);
            unwritten.for_each(|page| holes.insert(page.into()));
            model.write(late);
            let ranges = holes.runs().collect();
            Holes { pages, ranges }
        });
        for page in found.iter().flat_map(|found| &found.ranges).flat_map(|hole| hole.iter()) {
            self.destination[memory][page.get() as usize] = HOLE;
            self.right[memory][page.get() as usize] = true;
        }
        for page in [early, late].into_iter().filter(|_| called) {
            self.right[memory][page as usize] = false;
        }
        assert!(found.is_ok() || model.has_failed(), "{found:?}");
    }

    pub(super) fn read(&mut self) {
        for (memory, page) in self.unread.drain(..) {
            self.destination[memory][page as usize] = self.memories[memory].read(page);
        }
    }

    /// Checks that the remainder has exactly the pages that are not right, and that all others are the same at both ends.
    pub(super) fn check(&self, remainder: &[(usize, Vec<PageRange>)], count: u64) {
        let mut left: Vec<Vec<bool>> = self.right.iter().map(|right| vec![false; right.len()]).collect();
        let mut pages = 0;
        for (memory, ranges) in remainder {
            for page in ranges.iter().flat_map(|range| range.iter()) {
                let seen = std::mem::replace(&mut left[*memory][page.get() as usize], true);
                assert!(!seen, "{page} is in the remainder twice");
                pages += 1;
            }
        }
        assert_eq!(pages, count);
        for (memory, left) in left.iter().enumerate() {
            for (page, left) in left.iter().enumerate() {
                let is_held = self.memories[memory].is_held(page as u64);
                assert_eq!(*left, !self.right[memory][page] || is_held, "memory {memory} page {page}");
                if !left {
                    let source = self.memories[memory].read(page as u64);
                    assert_eq!(self.destination[memory][page], source, "memory {memory} page {page}");
                }
            }
        }
    }
}
