// SPDX-License-Identifier: GPL-2.0-or-later
//! Every order of events around checkpoints of one page that is absent at first: it comes, is written, is discarded, its vmemd dies, and another one
//! with another source attaches. Each checkpoint must have what the page had at its instant.
//!
//! The model has the steps of a checkpointer and decides with its code. What the kernel does is as Documentation/tracking.rst and snapshot.rst say.

use std::collections::{BTreeMap, HashSet};

use vmem::{PageRange, PageSet};
use vmem_store::CheckpointName;

use crate::stored_origin::StoredOrigin;
use crate::wanted::wanted;

/// Contents, as numbers.
const ZEROS: u8 = 0;
const WRITTEN: [u8; 2] = [10, 11];

/// What is tried to be left out of the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    All,
    /// Pages that come are not in the log.
    FillsAreNotLogged,
    /// The origin is proven before the instant and not after it.
    ProvenBeforeTheInstant,
    /// It is read which pages are absent, and the origin is proven after that.
    ProvenAfterTheMap,
    /// A checkpoint refers to the origin also if the one before has other pages.
    AnyOrigin,
    /// A page that was discarded before it came is taken for a hole of the snapshot.
    DiscardIsAHole,
    /// A page that came between the instant and the map is like one that was present.
    ArrivalIsNotSeen,
}

/// The page, to its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Page {
    Absent,
    Present(u8),
}

/// Who serves the region, and what such a page has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Vmemd {
    None = 0,
    /// From a checkpoint of the store.
    First = 1,
    /// From another one.
    Second = 2,
    /// From elsewhere.
    Peer = 3,
}

impl Vmemd {
    fn contents(self) -> Option<u8> {
        (self != Self::None).then_some(self as u8)
    }

    /// The number of the checkpoint.
    fn origin(self) -> Option<u8> {
        matches!(self, Self::First | Self::Second).then_some(self as u8)
    }
}

/// The snapshot of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Image {
    Has(u8),
    /// It has not come yet.
    Awaits,
    /// It was discarded before it came.
    Done,
}

/// How far the checkpoint is that is being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Hash)]
enum Step {
    None,
    /// Begun in the store.
    Begun,
    /// The snapshot is taken.
    Taken,
    /// It is looked whether the page is left to the parent.
    Selected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Event {
    Comes,
    Written,
    Discarded,
    Dies,
    Attaches(Vmemd),
    Steps,
    Fails,
    /// The checkpoint that was made last is removed.
    Removed,
}

const EVENTS: [Event; 10] = [
    Event::Comes,
    Event::Written,
    Event::Discarded,
    Event::Dies,
    Event::Attaches(Vmemd::First),
    Event::Attaches(Vmemd::Second),
    Event::Attaches(Vmemd::Peer),
    Event::Steps,
    Event::Fails,
    Event::Removed,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    page: Page,
    vmemd: Vmemd,
    logs_fills: bool,
    logged: bool,
    owed: bool,
    step: Step,
    image: Image,
    incremented: bool,
    /// What the checkpoint may have.
    right: Vec<u8>,
    /// The checkpoint to which this one can refer: proven before the instant.
    refers: Option<u8>,
    /// Whether the page is in the parent, and what it has there.
    parent: Option<u8>,
    is_filled: bool,
    /// Whether the page was absent before the instant.
    lacked: bool,
    /// Whether it was absent when the map was read.
    was_absent: bool,
    set: bool,
    /// The page in the checkpoint that was made last.
    latest: Option<u8>,
    /// The origin of that.
    origin: Option<u8>,
}

fn stored_origin(number: u8) -> StoredOrigin {
    StoredOrigin {
        checkpoint: CheckpointName {
            guest: "guest0".parse().expect("a name"),
            sequence: number.into(),
        },
        names: BTreeMap::from([("ram".to_owned(), "ram".to_owned())]),
    }
}

fn page_set(has: bool) -> PageSet {
    let pages = PageRange::of_pages(1).expect("a page");
    if has {
        PageSet::all_of(pages)
    } else {
        PageSet::none_of(pages)
    }
}

impl State {
    /// Tracking begins while this vmemd serves the region.
    fn new(vmemd: Vmemd) -> Self {
        Self {
            page: Page::Absent,
            vmemd,
            logs_fills: vmemd.origin().is_some(),
            logged: false,
            owed: true,
            step: Step::None,
            image: Image::Done,
            incremented: false,
            right: Vec::new(),
            refers: None,
            parent: None,
            is_filled: false,
            lacked: false,
            was_absent: false,
            set: false,
            latest: None,
            origin: None,
        }
    }

    /// A page that nobody has asked for is as the vmemd has it that serves the region.
    fn note_source(&mut self) {
        let is_open = self.step == Step::Taken && self.page == Page::Absent && self.image == Image::Awaits;
        let of = self.vmemd.contents().filter(|of| is_open && !self.right.contains(of));
        self.right.extend(of);
        self.right.sort_unstable();
    }

    /// What happens next. `None` if this event cannot happen now. Fails with what is wrong.
    fn after(&self, rules: Rules, event: Event) -> Option<Result<Self, String>> {
        let mut next = self.clone();
        match event {
            Event::Comes => next.come(rules)?,
            Event::Written => {
                if next.page == Page::Absent {
                    next.come(rules)?;
                }
                let now = next.page;
                next.page = Page::Present(WRITTEN[usize::from(now == Page::Present(WRITTEN[0]))]);
                next.logged = true;
            }
            Event::Discarded => {
                if next.page == Page::Absent && next.step >= Step::Taken && next.image == Image::Awaits {
                    next.image = Image::Done;
                }
                next.page = Page::Present(ZEROS);
                next.logged = true;
            }
            Event::Dies => next.vmemd = (next.vmemd != Vmemd::None).then_some(Vmemd::None)?,
            Event::Attaches(vmemd) => next.vmemd = (next.vmemd == Vmemd::None).then_some(vmemd)?,
            Event::Steps => return next.step(rules).transpose().map(|stepped| stepped.map(|()| next)),
            Event::Fails => {
                if next.step == Step::None {
                    return None;
                }
                next.give_up();
            }
            Event::Removed => {
                // It is noticed when the next one begins.
                if next.step != Step::None || next.latest.take().is_none() {
                    return None;
                }
                next.owed = true;
            }
        }
        next.note_source();
        Some(Ok(next))
    }

    fn come(&mut self, rules: Rules) -> Option<()> {
        let contents = self.vmemd.contents()?;
        if self.page != Page::Absent {
            return None;
        }
        self.page = Page::Present(contents);
        self.logged |= self.logs_fills && rules != Rules::FillsAreNotLogged;
        if self.step >= Step::Taken && self.image == Image::Awaits {
            self.image = Image::Has(contents);
            self.right.push(contents);
        }
        Some(())
    }

    fn give_up(&mut self) {
        if self.step >= Step::Taken {
            self.logged |= self.incremented;
        }
        self.end();
    }

    fn end(&mut self) {
        (self.step, self.image, self.incremented) = (Step::None, Image::Done, false);
        (self.is_filled, self.lacked, self.was_absent, self.set) = (false, false, false, false);
        (self.refers, self.parent, self.right) = (None, None, Vec::new());
    }

    /// The checkpointer goes on. `None` if it waits.
    fn step(&mut self, rules: Rules) -> Result<Option<()>, String> {
        match self.step {
            Step::None => {
                let found = self.vmemd.origin().filter(|_| self.logs_fills && self.page == Page::Absent);
                let before = self.origin.map(stored_origin);
                let goes_on = |found: &u8| stored_origin(*found).goes_on(before.as_ref()) || rules == Rules::AnyOrigin;
                (self.parent, self.refers) = match self.latest {
                    Some(latest) => (Some(latest), found.filter(goes_on)),
                    // It has the page that its number says.
                    None => (found, found),
                };
                self.lacked = self.page == Page::Absent && rules != Rules::ArrivalIsNotSeen;
                self.step = Step::Begun;
            }
            Step::Begun => {
                (self.image, self.right) = match self.page {
                    Page::Present(contents) => (Image::Has(contents), vec![contents]),
                    Page::Absent => (Image::Awaits, Vec::new()),
                };
                self.incremented = self.logged;
                self.owed |= self.logged;
                self.logged = false;
                self.step = Step::Taken;
                if rules == Rules::ProvenAfterTheMap {
                    self.was_absent = self.page == Page::Absent;
                }
                self.note_source();
            }
            Step::Taken if !self.is_filled && self.refers.is_some() && self.vmemd.origin() == self.refers => {
                // The proof, and then, after other events, the map.
                self.is_filled = true;
            }
            Step::Taken => {
                self.is_filled |= self.refers.is_some() && rules == Rules::ProvenBeforeTheInstant;
                if rules != Rules::ProvenAfterTheMap {
                    self.was_absent = self.page == Page::Absent;
                }
                let absent = page_set(self.was_absent);
                let (wanted, _) = wanted(&page_set(self.owed), &page_set(self.lacked), absent, self.is_filled);
                self.set = !wanted.set.is_empty();
                self.step = Step::Selected;
            }
            Step::Selected => {
                let has = match (self.set, self.image, self.parent) {
                    (true, Image::Awaits, _) => return Ok(None),
                    (true, Image::Done, _) if rules == Rules::DiscardIsAHole => ZEROS,
                    (true, Image::Done, _) => {
                        self.give_up();
                        return Ok(Some(()));
                    }
                    (true, Image::Has(contents), _) => contents,
                    (false, _, Some(parent)) => parent,
                    (false, _, None) => return Err("a page of no parent is not written".to_owned()),
                };
                if !self.right.contains(&has) {
                    return Err(format!("the checkpoint has {has}, and may have {:?}", self.right));
                }
                if self.latest.is_none() {
                    self.origin = self.refers;
                }
                self.latest = Some(has);
                self.owed = false;
                self.end();
            }
        }
        Ok(Some(()))
    }
}

/// Goes through all states. Returns how many there are, or the events that end in a wrong page.
fn explore(rules: Rules) -> Result<usize, String> {
    let starts = [Vmemd::None, Vmemd::First, Vmemd::Peer].map(State::new);
    let mut seen: HashSet<State> = starts.iter().cloned().collect();
    let mut queue: Vec<(State, Vec<Event>)> = starts.into_iter().map(|state| (state, Vec::new())).collect();
    while let Some((state, events)) = queue.pop() {
        for event in EVENTS {
            let Some(next) = state.after(rules, event) else { continue };
            let mut events = events.clone();
            events.push(event);
            let next = next.map_err(|why| format!("{why}: {events:?}"))?;
            if seen.insert(next.clone()) {
                queue.push((next, events));
            }
        }
    }
    Ok(seen.len())
}

#[test]
fn checkpoint_has_what_the_page_had_in_every_order_of_events() {
    let states = explore(Rules::All).expect("no wrong page");
    assert!(states > 1000, "{states}");
}

#[test]
fn each_rule_is_needed() {
    for rules in [
        Rules::FillsAreNotLogged,
        Rules::ProvenBeforeTheInstant,
        Rules::ProvenAfterTheMap,
        Rules::AnyOrigin,
        Rules::DiscardIsAHole,
        Rules::ArrivalIsNotSeen,
    ] {
        explore(rules).expect_err(&format!("{rules:?} should be found"));
    }
}
