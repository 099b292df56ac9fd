// SPDX-License-Identifier: GPL-2.0-or-later

//! What a snapshot promises, under the model checker: its image is the memory at one instant, and no write is missed by the log.
//!
//! Programs write through a page table, and ask for the permission with the page locked, as the fault handler does; another one writes by
//! a system call. Meanwhile one takes a snapshot and reads its image, without a lock.
//!
//! All accesses to a word are such as change it. On amd64, where each change is a full barrier, that is what the module has; and the
//! checker forgets that a thread has loaded a word when another one loads it, too, and then does not try both orders of what follows.

use loom::sync::atomic::{AtomicU64, Ordering::SeqCst};
use loom::sync::{Mutex, MutexGuard};
use loom::thread;
use std::sync::{Arc, PoisonError};

use crate::model::{
    dirty_log::{AtomicBits, DirtyLog},
    gate::{CompareExchange, Gate, GateState},
    image::{Image, Location},
    range::PageRange,
};

/// What is done otherwise than it has to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// A fault looks at the gate, and then its bit comes into the log.
    GateBeforeTheLog,
    /// Pages are protected before the gate is closed, and not once more.
    OnlyPreRound,
    /// Writers go on before there is an image.
    ImageAfterTheGate,
    /// A page becomes writable before it counts as copied.
    CopiedTooLate,
    /// A page counts as copied before its copy is there.
    CopiedTooEarly,
    /// Who has read a page does not look whether it was there all the time.
    NoSecondLook,
    /// The instant is one at which a system call writes.
    NoWaitForCalls,
    /// A system call writes without keeping what was there.
    CallKeepsNothing,
    /// A system call leaves before the log has heard of it.
    LeavesUnheard,
}

/// A word of the log, of the gate, of an image, or of memory.
struct Atomic(AtomicU64);

impl AtomicBits for Atomic {
    fn load(&self) -> u64 {
        self.set(0)
    }

    fn set(&self, bits: u64) -> u64 {
        self.0.fetch_or(bits, SeqCst)
    }

    fn clear(&self, bits: u64) -> u64 {
        self.0.fetch_and(!bits, SeqCst)
    }
}

impl CompareExchange for Atomic {
    fn load(&self) -> u64 {
        self.set(0)
    }

    fn cmpxchg(&self, old: u64, new: u64) -> Result<(), u64> {
        self.0.compare_exchange(old, new, SeqCst, SeqCst).map(drop)
    }
}

/// The pages: who writes in an order writes to the first one first.
const PAGES: [usize; 2] = [0, 1];
/// What writes add to the contents of a page.
const STORE: u64 = 1;
const OTHER_STORE: u64 = 0x100;
const CALL: u64 = 0x1_0000;
/// The page table permits writing.
const WRITABLE: u64 = 1 << 63;
/// No copy.
const ABSENT: u64 = u64::MAX;

/// A page and its folio's lock. Page table and contents are one word, as a processor looks at the one and writes to the other at once.
struct Page {
    folio: Mutex<()>,
    memory: Atomic,
    copy: Atomic,
}

struct Memory {
    pages: [Page; 2],
    log: DirtyLog<Vec<Atomic>>,
    gate: Gate<Atomic>,
    /// Held while the gate is closed, for those who wait.
    closed: Mutex<()>,
    image: Image<Vec<Atomic>>,
    mistake: Mistake,
}

/// What a snapshot is to who took it.
struct Snapshot {
    /// The memory when the gate was opened.
    instant: [u64; 2],
    /// What was taken out of the log.
    log: u64,
    /// What was read.
    image: [u64; 2],
}

/// Locks; a panic of another thread is a failed test already.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn one(page: usize) -> PageRange {
    PageRange::within(page as u64, 1, 64).expect("a page")
}

fn both() -> PageRange {
    PageRange::within(0, 2, 64).expect("both pages")
}

impl Page {
    fn new(memory: u64) -> Self {
        Self {
            folio: Mutex::new(()),
            memory: Atomic(AtomicU64::new(memory)),
            copy: Atomic(AtomicU64::new(ABSENT)),
        }
    }

    fn contents(&self) -> u64 {
        self.memory.set(0) & !WRITABLE
    }

    /// Whether the page table permits it.
    fn store(&self, what: u64) -> bool {
        let add = |memory| (memory & WRITABLE != 0).then_some(memory + what);
        self.memory.0.fetch_update(SeqCst, SeqCst, add).is_ok()
    }

    /// What a system call does, with the folio locked.
    fn write(&self, what: u64) {
        self.memory.0.fetch_add(what, SeqCst);
    }

    fn make_writable(&self) {
        self.memory.set(WRITABLE);
    }

    fn keep(&self) {
        self.copy.0.swap(self.contents(), SeqCst);
    }
}

impl Memory {
    /// The first page has been written to, and is in the log.
    fn new(mistake: Mistake) -> Self {
        let plane = |word| vec![Atomic(AtomicU64::new(word))];
        let memory = Self {
            pages: [Page::new(WRITABLE), Page::new(0)],
            log: DirtyLog::new(plane(0), plane(0)),
            gate: Gate::new(Atomic(AtomicU64::new(0))),
            closed: Mutex::new(()),
            image: Image::new(plane(0b11), plane(0)),
            mistake,
        };
        memory.log.mark(one(0));
        memory
    }

    fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == mistake
    }

    fn store(&self, at: usize, what: u64) {
        let page = &self.pages[at];
        while !page.store(what) {
            if !self.fault(at, page) {
                self.await_open();
            }
        }
    }

    fn await_open(&self) {
        drop(lock(&self.closed));
    }

    /// Whether it passes the gate.
    fn fault(&self, at: usize, page: &Page) -> bool {
        let _folio = lock(&page.folio);
        let early = self.gate.check();
        self.log.mark(one(at));
        let pass = match self.makes(Mistake::GateBeforeTheLog) {
            true => early,
            false => self.gate.check(),
        };
        match pass {
            GateState::Closed => return false,
            GateState::CopyFirst if self.makes(Mistake::CopiedTooLate) => {
                page.keep();
                page.make_writable();
                self.image.set_copied(at as u64);
            }
            GateState::CopyFirst => self.keep(at, page),
            GateState::Open => {}
        }
        page.make_writable();
        true
    }

    /// With the folio locked.
    fn keep(&self, at: usize, page: &Page) {
        if !self.image.is_pending(at as u64) {
            return;
        }
        if self.makes(Mistake::CopiedTooEarly) {
            self.image.set_copied(at as u64);
        }
        page.keep();
        self.image.set_copied(at as u64);
    }

    /// One system call that writes to both pages.
    fn call(&self) {
        let pass = loop {
            match self.gate.enter() {
                GateState::Closed => self.await_open(),
                pass => break pass,
            }
        };
        if pass == GateState::CopyFirst && !self.makes(Mistake::CallKeepsNothing) {
            for (at, page) in self.pages.iter().enumerate() {
                let _folio = lock(&page.folio);
                self.keep(at, page);
            }
        }
        for page in &self.pages {
            let _folio = lock(&page.folio);
            page.write(CALL);
        }
        if self.makes(Mistake::LeavesUnheard) {
            self.gate.leave();
            return self.log.mark(both());
        }
        self.log.mark(both());
        self.gate.leave();
    }

    /// Takes what is in the log and protects it.
    fn protect(&self) -> u64 {
        let bits = self.log.take(both())[0];
        for at in PAGES.into_iter().filter(|at| (bits >> at) & 1 == 1) {
            // Seen unlocked once.
            drop(lock(&self.pages[at].folio));
            self.pages[at].memory.clear(WRITABLE);
        }
        bits
    }

    fn contents(&self) -> [u64; 2] {
        PAGES.map(|at| self.pages[at].contents())
    }

    fn snapshot(&self) -> Snapshot {
        let mut log = self.protect();
        let closed = lock(&self.closed);
        self.gate.close();
        while !self.gate.is_quiet() && !self.makes(Mistake::NoWaitForCalls) {
            thread::yield_now();
        }
        if !self.makes(Mistake::OnlyPreRound) {
            log |= self.protect();
        }
        if !self.makes(Mistake::ImageAfterTheGate) {
            self.gate.set_image();
        }
        let instant = self.contents();
        self.gate.open();
        drop(closed);
        if self.makes(Mistake::ImageAfterTheGate) {
            self.gate.set_image();
        }
        Snapshot {
            instant,
            log,
            image: self.read_all(),
        }
    }

    fn read_all(&self) -> [u64; 2] {
        PAGES.map(|at| self.read(at))
    }

    fn read(&self, at: usize) -> u64 {
        let read = |location| match location {
            Location::Memory => self.pages[at].contents(),
            Location::Copy => self.pages[at].copy.set(0),
            Location::Done => unreachable!("nobody has said that a page is done"),
        };
        if self.makes(Mistake::NoSecondLook) {
            return read(self.image.location(at as u64));
        }
        match self.image.read(at as u64, |location| Ok::<_, ()>(read(location))) {
            Ok(contents) => contents,
            Err(()) => unreachable!("no read fails"),
        }
    }
}

/// What a thread does beside the snapshot.
#[derive(Clone, Copy)]
enum Writer {
    /// Stores to both pages, one after the other.
    Both,
    /// Stores to the first page.
    First,
    /// Writes to both by one system call.
    Call,
}

impl Writer {
    fn write(self, memory: &Memory) {
        match self {
            Self::Both => PAGES.into_iter().for_each(|at| memory.store(at, STORE)),
            Self::First => memory.store(0, OTHER_STORE),
            Self::Call => memory.call(),
        }
    }
}

/// Whether these can be the contents of both pages at one instant.
fn is_an_instant([first, second]: [u64; 2]) -> bool {
    let of = |contents: u64, write: u64| (contents / write) & 1;
    of(second, STORE) <= of(first, STORE) && of(second, CALL) == of(first, CALL)
}

/// These write while a snapshot is taken and read. In the end somebody reads the log.
fn check(mistake: Mistake, writers: &'static [Writer]) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(move || {
        let memory = Arc::new(Memory::new(mistake));
        let threads: Vec<_> = writers
            .iter()
            .map(|writer| {
                let memory = memory.clone();
                thread::spawn(move || writer.write(&memory))
            })
            .collect();
        let Snapshot { instant, log, image } = memory.snapshot();
        assert!(is_an_instant(instant), "the image is of no instant: {instant:x?}");
        assert_eq!(image, instant, "the image is of another instant");
        for thread in threads {
            thread.join().expect("a writer");
        }
        assert_eq!(memory.read_all(), instant, "the image is of another instant in the end");
        let later = memory.protect();
        let now = memory.contents();
        for at in PAGES {
            // All was zero.
            assert!(
                image[at] == 0 || (log >> at) & 1 == 1,
                "the image has a write that its log has not"
            );
            assert!(now[at] == image[at] || (later >> at) & 1 == 1, "a write is not in the log");
        }
    });
}

#[test]
fn an_image_beside_stores_is_of_one_instant() {
    check(Mistake::None, &[Writer::Both]);
}

#[test]
fn an_image_beside_stores_to_the_same_page_is_of_one_instant() {
    check(Mistake::None, &[Writer::Both, Writer::First]);
}

#[test]
fn an_image_beside_a_system_call_is_of_one_instant() {
    check(Mistake::None, &[Writer::Call]);
}

#[test]
fn an_image_beside_a_store_and_a_system_call_is_of_one_instant() {
    check(Mistake::None, &[Writer::First, Writer::Call]);
}

#[test]
#[should_panic(expected = "the image ")]
fn a_gate_that_is_looked_at_before_the_bit_is_set_lets_a_store_pass() {
    check(Mistake::GateBeforeTheLog, &[Writer::Both]);
}

#[test]
#[should_panic(expected = "the image ")]
fn pages_that_are_not_protected_behind_the_gate_are_written_to() {
    check(Mistake::OnlyPreRound, &[Writer::Both]);
}

#[test]
#[should_panic(expected = "the image ")]
fn an_image_that_comes_after_the_gate_was_opened_misses_a_store() {
    check(Mistake::ImageAfterTheGate, &[Writer::Both]);
}

#[test]
#[should_panic(expected = "the image ")]
fn a_page_that_is_writable_before_it_counts_as_copied_is_read() {
    check(Mistake::CopiedTooLate, &[Writer::Both, Writer::First]);
}

#[test]
#[should_panic(expected = "the image ")]
fn a_copy_that_is_not_there_yet_is_read() {
    check(Mistake::CopiedTooEarly, &[Writer::Both]);
}

#[test]
#[should_panic(expected = "the image ")]
fn a_reader_that_does_not_look_again_reads_a_later_store() {
    check(Mistake::NoSecondLook, &[Writer::Both]);
}

#[test]
#[should_panic(expected = "the image ")]
fn a_system_call_that_is_not_waited_for_is_half_in_the_image() {
    check(Mistake::NoWaitForCalls, &[Writer::Call]);
}

#[test]
#[should_panic(expected = "the image ")]
fn a_system_call_that_keeps_nothing_is_in_the_image() {
    check(Mistake::CallKeepsNothing, &[Writer::Call]);
}

#[test]
#[should_panic(expected = "the image ")]
fn a_system_call_that_leaves_before_it_is_heard_of_is_missed() {
    check(Mistake::LeavesUnheard, &[Writer::Call]);
}
