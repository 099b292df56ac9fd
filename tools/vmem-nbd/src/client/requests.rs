// SPDX-License-Identifier: GPL-2.0-or-later
//! Requests of a session: those that are to be sent, and those that were sent.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::assembly::Assembly;
use super::inbox::Inbox;
use super::question::Question;

/// The most requests that are sent and not answered: as many as servers work on at a time, and a few more that wait there.
const MAX_OUTSTANDING: usize = 64;
/// The most of them that are not urgent.
const MAX_BACKGROUND: usize = MAX_OUTSTANDING / 2;
/// On a connection that urgent requests share: the most bytes of others that are sent and not answered. An urgent reply waits behind them: 9 ms at
/// 1 Gbit/s.
const MAX_SHARED_BYTES: u64 = 1 << 20;

/// What is sent first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Priority {
    /// Somebody waits for it.
    Urgent,
    /// All else.
    Background,
}

/// A request of a client.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Number of the client in its session.
    pub(super) client: u64,
    /// The client's number of the request.
    pub(super) tag: u64,
    pub(super) question: Question,
    pub(super) inbox: Arc<Inbox>,
}

/// A request that was sent.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) tag: u64,
    pub(super) inbox: Arc<Inbox>,
    priority: Priority,
    payload: u64,
    /// What has come of the reply; [`None`] while the receiver has it.
    pub(super) assembly: Option<Assembly>,
}

/// The requests of a session.
#[derive(Debug)]
pub(super) struct Requests {
    urgent: VecDeque<Wanted>,
    background: VecDeque<Wanted>,
    sent: BTreeMap<u64, Sent>,
    last_cookie: u64,
    /// Of those that were sent and are not urgent: how many, and the bytes of their replies.
    background_sent: (usize, u64),
    max_background_bytes: u64,
    /// Since when the oldest request that was sent is the oldest one.
    since: Instant,
}

impl Requests {
    /// No requests, of a connection that both kinds share or not.
    pub(super) fn new(is_shared: bool) -> Self {
        Self {
            urgent: VecDeque::new(),
            background: VecDeque::new(),
            sent: BTreeMap::new(),
            last_cookie: 0,
            background_sent: (0, 0),
            max_background_bytes: if is_shared { MAX_SHARED_BYTES } else { u64::MAX },
            since: Instant::now(),
        }
    }

    pub(super) fn push(&mut self, priority: Priority, wanted: Wanted) {
        match priority {
            Priority::Urgent => self.urgent.push_back(wanted),
            Priority::Background => self.background.push_back(wanted),
        }
    }

    /// Forgets what a client wants and what was not sent yet.
    pub(super) fn withdraw(&mut self, client: u64) {
        self.urgent.retain(|wanted| wanted.client != client);
        self.background.retain(|wanted| wanted.client != client);
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.urgent.clear();
        self.background.clear();
        self.sent.clear();
    }

    fn next(&mut self) -> Option<(Priority, Wanted)> {
        if self.sent.len() >= MAX_OUTSTANDING {
            return None;
        }
        if let Some(wanted) = self.urgent.pop_front() {
            return Some((Priority::Urgent, wanted));
        }
        let (count, bytes) = self.background_sent;
        let payload = self.background.front()?.question.payload();
        let has_room = count < MAX_BACKGROUND && (count == 0 || bytes + payload <= self.max_background_bytes);
        if !has_room {
            return None;
        }
        self.background.pop_front().map(|wanted| (Priority::Background, wanted))
    }

    /// Takes those requests that can be sent now, in their order, as the bytes for that.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some((priority, wanted)) = self.next() {
            if self.sent.is_empty() {
                self.since = Instant::now();
            }
            let payload = wanted.question.payload();
            if priority == Priority::Background {
                self.background_sent.0 += 1;
                self.background_sent.1 += payload;
            }
            self.last_cookie += 1;
            bytes.extend(wanted.question.encode(self.last_cookie));
            let sent = Sent {
                tag: wanted.tag,
                inbox: wanted.inbox,
                priority,
                payload,
                assembly: Some(Assembly::new(wanted.question)),
            };
            self.sent.insert(self.last_cookie, sent);
        }
        bytes
    }

    /// Takes what has come of a reply. [`None`] if no such request was sent, or it is answered.
    pub(super) fn take_assembly(&mut self, cookie: u64) -> Option<Assembly> {
        self.sent.get_mut(&cookie)?.assembly.take()
    }

    /// Puts it back: more is to come.
    pub(super) fn put_assembly(&mut self, cookie: u64, assembly: Assembly) {
        if let Some(sent) = self.sent.get_mut(&cookie) {
            sent.assembly = Some(assembly);
        }
    }

    /// A request is answered.
    pub(super) fn finish(&mut self, cookie: u64) -> Option<Sent> {
        let sent = self.sent.remove(&cookie)?;
        if self.sent.first_key_value().is_none_or(|(oldest, _)| *oldest > cookie) {
            self.since = Instant::now();
        }
        if sent.priority == Priority::Background {
            self.background_sent.0 -= 1;
            self.background_sent.1 -= sent.payload;
        }
        Some(sent)
    }

    /// Since when the server has had nothing to do before the oldest request. [`None`] if no reply is due.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        (!self.sent.is_empty()).then_some(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Request;

    fn wanted(tag: u64, length: u32) -> Wanted {
        Wanted {
            client: tag % 2,
            tag,
            question: Question::Read { offset: 0, length },
            inbox: Arc::new(Inbox::new().expect("an inbox")),
        }
    }

    /// The tags of the requests that are sent now, with their cookies.
    fn sent(requests: &mut Requests) -> Vec<(u64, u64)> {
        let before = requests.last_cookie;
        let bytes = requests.take();
        assert_eq!(bytes.len() as u64, (requests.last_cookie - before) * Request::SIZE as u64);
        let new = requests.sent.iter().filter(|(cookie, _)| **cookie > before);
        new.map(|(cookie, sent)| (*cookie, sent.tag)).collect()
    }

    #[test]
    fn urgent_requests_are_sent_first_and_wait_behind_a_bounded_number_of_bytes() {
        let mut requests = Requests::new(true);
        for tag in 0..20 {
            requests.push(Priority::Background, wanted(tag, 256 << 10));
        }
        requests.push(Priority::Urgent, wanted(100, 4096));
        assert_eq!(sent(&mut requests), [(1, 100), (2, 0), (3, 1), (4, 2), (5, 3)]);
        requests.push(Priority::Urgent, wanted(101, 4096));
        assert_eq!(sent(&mut requests), [(6, 101)]);
        requests.finish(3).expect("it was sent");
        assert!(requests.finish(3).is_none(), "it is answered");
        assert_eq!(sent(&mut requests), [(7, 4)]);
        let mut alone = Requests::new(false);
        (0..100).for_each(|tag| alone.push(Priority::Background, wanted(tag, 256 << 10)));
        assert_eq!(sent(&mut alone).len(), MAX_BACKGROUND);
        (0..100).for_each(|tag| alone.push(Priority::Urgent, wanted(tag, 4096)));
        assert_eq!(
            sent(&mut alone).len(),
            MAX_OUTSTANDING - MAX_BACKGROUND,
            "there is room for them"
        );
    }

    #[test]
    fn request_that_is_larger_than_the_bound_is_sent_alone() {
        let mut requests = Requests::new(true);
        (0..2).for_each(|tag| requests.push(Priority::Background, wanted(tag, 4 << 20)));
        assert_eq!(sent(&mut requests), [(1, 0)]);
        requests.finish(1).expect("it was sent");
        assert_eq!(sent(&mut requests), [(2, 1)]);
    }

    #[test]
    fn client_that_is_gone_wants_nothing() {
        let mut requests = Requests::new(true);
        (0..6).for_each(|tag| requests.push(Priority::Urgent, wanted(tag, 1)));
        requests.withdraw(1);
        assert_eq!(sent(&mut requests), [(1, 0), (2, 2), (3, 4)]);
    }

    #[test]
    fn clock_of_the_oldest_request_runs_until_it_is_answered() {
        let mut requests = Requests::new(true);
        assert_eq!(requests.waiting_since(), None);
        (0..3).for_each(|tag| requests.push(Priority::Urgent, wanted(tag, 1)));
        sent(&mut requests);
        let first = requests.waiting_since().expect("a request");
        std::thread::sleep(std::time::Duration::from_millis(2));
        requests.finish(2).expect("it was sent");
        assert_eq!(requests.waiting_since(), Some(first), "another one is the oldest");
        requests.finish(1).expect("it was sent");
        assert!(requests.waiting_since().expect("a request") > first);
        requests.finish(3).expect("it was sent");
        assert_eq!(requests.waiting_since(), None);
    }
}
