// SPDX-License-Identifier: GPL-2.0-or-later
//! Events that wait until they are taken. Their number and their memory are bounded.

use std::collections::VecDeque;

use crate::event::Event;

/// The most memory of the events that wait, in bytes. A list of 1024 regions takes 90 KiB.
const BYTES: usize = 4 << 20;

/// Events that wait. The oldest ones are dropped if there are too many: the latest ones say where the daemon stands, and the last one how it
/// has ended.
#[derive(Debug)]
pub(crate) struct Backlog {
    events: VecDeque<Event>,
    most: usize,
    bytes: usize,
    dropped: u64,
}

impl Backlog {
    /// None yet, and `most` at a time.
    pub(crate) const fn new(most: usize) -> Self {
        Self {
            events: VecDeque::new(),
            most,
            bytes: 0,
            dropped: 0,
        }
    }

    pub(crate) fn push(&mut self, event: Event) {
        self.bytes += event.size();
        self.events.push_back(event);
        while self.events.len() > 1 && (self.events.len() > self.most || self.bytes > BYTES) {
            self.remove();
            self.dropped += 1;
        }
    }

    /// Takes the oldest event. If events were dropped, an event that says how many comes first.
    pub(crate) fn pop(&mut self) -> Option<Event> {
        match std::mem::take(&mut self.dropped) {
            0 => self.remove(),
            lines => Some(Event::Dropped { lines }),
        }
    }

    fn remove(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        self.bytes = self.bytes.saturating_sub(event.size());
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(length: usize) -> Event {
        Event::Short {
            name: "x".repeat(length),
        }
    }

    #[test]
    fn oldest_events_are_dropped_if_there_are_too_many() {
        let mut backlog = Backlog::new(2);
        (1..=4).for_each(|length| backlog.push(short(length)));
        let taken: Vec<_> = std::iter::from_fn(|| backlog.pop()).collect();
        assert_eq!(taken, [Event::Dropped { lines: 2 }, short(3), short(4)]);
        backlog.push(short(5));
        assert_eq!(backlog.pop(), Some(short(5)));
        assert_eq!((backlog.pop(), backlog.bytes), (None, 0));
    }

    #[test]
    fn oldest_events_are_dropped_if_they_take_too_much_memory() {
        let mut backlog = Backlog::new(1 << 20);
        for _ in 0..100 {
            backlog.push(short(1 << 20));
            assert!(backlog.bytes <= BYTES);
        }
        let (taken, dropped) = (backlog.events.len(), backlog.dropped);
        assert!(
            (1..=4).contains(&taken) && dropped == 100 - taken as u64,
            "{taken}, {dropped}"
        );
        // One that is larger than all may be is not lost.
        backlog.push(short(2 * BYTES));
        assert!(matches!(backlog.pop(), Some(Event::Dropped { lines: 100 })));
        assert_eq!(backlog.pop(), Some(short(2 * BYTES)));
    }
}
