// SPDX-License-Identifier: GPL-2.0-or-later
//! A queue from one thread to another, with a bound for events: vmemd sends an event every second, and the receiving thread may wait for
//! QEMU for hours meanwhile.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The largest number of queued events. The latest ones show the present progress.
const EVENTS: usize = 1024;

/// The largest memory of queued events, in bytes. One with a list of 1024 regions takes 90 KiB.
const BYTES: usize = 4 << 20;

/// A message for such a queue.
pub(crate) trait Message {
    /// Whether the message is an event, which may be dropped if there are too many.
    fn is_event(&self) -> bool;

    /// About how many bytes of memory the message takes, if it is an event.
    fn size(&self) -> usize;

    /// The message that stands for `events` dropped events.
    fn dropped(events: u64) -> Self;
}

#[derive(Debug)]
struct Waiting<T> {
    messages: VecDeque<T>,
    events: usize,
    /// The memory of the queued events.
    bytes: usize,
    /// The number of events that were dropped since the last received message.
    dropped: u64,
    /// The sender is dropped.
    closed: bool,
}

#[derive(Debug)]
struct Shared<T> {
    waiting: Mutex<Waiting<T>>,
    changed: Condvar,
}

/// The sending end.
#[derive(Debug)]
pub(crate) struct Sender<T>(Arc<Shared<T>>);

/// The receiving end.
#[derive(Debug)]
pub(crate) struct Receiver<T>(Arc<Shared<T>>);

/// Makes an empty queue.
pub(crate) fn queue<T: Message>() -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        waiting: Mutex::new(Waiting {
            messages: VecDeque::new(),
            events: 0,
            bytes: 0,
            dropped: 0,
            closed: false,
        }),
        changed: Condvar::new(),
    });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Message> Waiting<T> {
    /// This event is not queued any more.
    fn taken(&mut self, event: Option<&T>) {
        self.events = self.events.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(event.map_or(0, T::size));
    }
}

impl<T: Message> Sender<T> {
    /// Queues a message. If it is an event, and there are too many, the oldest events are dropped.
    pub(crate) fn send(&self, message: T) {
        let mut waiting = self.0.lock();
        if message.is_event() {
            let size = message.size();
            while waiting.events > 0 && (waiting.events >= EVENTS || waiting.bytes.saturating_add(size) > BYTES) {
                let oldest = waiting.messages.iter().position(T::is_event);
                let oldest = oldest.and_then(|at| waiting.messages.remove(at));
                waiting.taken(oldest.as_ref());
                waiting.dropped += 1;
            }
            waiting.events += 1;
            waiting.bytes = waiting.bytes.saturating_add(size);
        }
        waiting.messages.push_back(message);
        self.0.changed.notify_all();
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl<T: Message> Receiver<T> {
    /// The next message, if there is one within `limit`.
    pub(crate) fn recv(&self, limit: Duration) -> Option<T> {
        let is_silent = |waiting: &mut Waiting<T>| waiting.messages.is_empty() && !waiting.closed;
        let waited = self.0.changed.wait_timeout_while(self.0.lock(), limit, is_silent);
        let (mut waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match std::mem::take(&mut waiting.dropped) {
            0 => {}
            dropped => return Some(T::dropped(dropped)),
        }
        let message = waiting.messages.pop_front()?;
        if message.is_event() {
            waiting.taken(Some(&message));
        }
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[derive(PartialEq, Debug)]
    enum Said {
        Event(usize),
        Large(usize),
        Dropped(u64),
        End(usize),
    }

    impl Message for Said {
        fn is_event(&self) -> bool {
            matches!(self, Self::Event(_) | Self::Large(_))
        }

        fn size(&self) -> usize {
            match self {
                Self::Large(size) => *size,
                _ => 0,
            }
        }

        fn dropped(events: u64) -> Self {
            Self::Dropped(events)
        }
    }

    #[test]
    fn only_the_oldest_events_are_dropped() {
        let (sender, receiver) = queue();
        let many = 10 * EVENTS;
        for number in 0..many {
            sender.send(Said::Event(number));
            if number % EVENTS == 0 {
                sender.send(Said::End(number / EVENTS));
            }
        }
        drop(sender);
        let mut heard = std::iter::from_fn(|| receiver.recv(LONG));
        assert_eq!(heard.next(), Some(Said::Dropped((many - EVENTS) as u64)));
        let (events, ends): (Vec<_>, Vec<_>) = heard.partition(Message::is_event);
        assert_eq!(ends, (0..10).map(Said::End).collect::<Vec<_>>());
        assert_eq!(events, (many - EVENTS..many).map(Said::Event).collect::<Vec<_>>());
    }

    #[test]
    fn oldest_events_are_dropped_if_they_take_too_much_memory() {
        let (sender, receiver) = queue();
        (0..3).for_each(|number| sender.send(Said::Event(number)));
        sender.send(Said::End(0));
        for _ in 0..10 {
            sender.send(Said::Large(BYTES / 2));
        }
        assert_eq!(receiver.recv(LONG), Some(Said::Dropped(3 + 8)));
        assert_eq!(receiver.recv(LONG), Some(Said::End(0)));
        for _ in 0..2 {
            assert_eq!(receiver.recv(LONG), Some(Said::Large(BYTES / 2)));
        }
        // One that is larger than all may be is not lost.
        sender.send(Said::Large(usize::MAX));
        sender.send(Said::Large(usize::MAX));
        assert_eq!(receiver.recv(LONG), Some(Said::Dropped(1)));
        assert_eq!(receiver.recv(LONG), Some(Said::Large(usize::MAX)));
        sender.send(Said::Event(1));
        assert_eq!(receiver.recv(LONG), Some(Said::Event(1)));
    }

    #[test]
    fn nothing_is_dropped_if_the_receiver_keeps_up() {
        let (sender, receiver) = queue();
        let speaker = thread::spawn(move || (0..EVENTS).for_each(|number| sender.send(Said::Event(number))));
        for number in 0..EVENTS {
            assert_eq!(receiver.recv(LONG), Some(Said::Event(number)));
        }
        speaker.join().expect("no panic");
        let began = Instant::now();
        assert_eq!(receiver.recv(LONG), None, "nobody says anything any more");
        assert!(began.elapsed() < LONG / 2);
        let (_sender, receiver) = queue::<Said>();
        assert_eq!(receiver.recv(Duration::from_millis(10)), None);
    }
}
