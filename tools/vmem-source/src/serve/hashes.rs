// SPDX-License-Identifier: GPL-2.0-or-later
//! What a connection need not be sent, because its destination has it: contents that it has announced, and pages that are written with the
//! contents that they had when they were sent last.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak};

use vmem::{PageIndex, PageRange, PageSet};

use crate::answer::{Kind, Run, Sent};
use crate::digest::{Digest, Key, MAX_ANNOUNCED};
use crate::export::Export;
use crate::wire::ProtocolError;
use crate::wire::digests::Digests;

/// The most pages that were sent more than once whose digests are kept: 64 MiB at most. Others are sent again each time.
const MAX_REPEATED: usize = 1 << 20;

/// What the destinations of a server have announced. How much is kept is bounded for all of them together: as many digests as there are pages, at most
/// [`MAX_ANNOUNCED`].
#[derive(Debug)]
pub(super) struct Budget {
    left: Arc<AtomicU64>,
    /// One for each key.
    known: Mutex<Vec<Weak<Known>>>,
}

/// Digests of what a destination has. Its connections, which have the same key, share them.
#[derive(Debug)]
struct Known {
    key: Key,
    prefixes: RwLock<HashSet<u64>>,
    /// Of the budget: who lets go last gives back what this takes.
    left: Arc<AtomicU64>,
}

impl Budget {
    pub(super) fn of(exports: &[Export]) -> Self {
        let pages: u64 = exports.iter().map(|export| export.pages.count()).sum();
        Self {
            left: Arc::new(AtomicU64::new(pages.min(MAX_ANNOUNCED))),
            known: Mutex::default(),
        }
    }

    /// What the destination with this key has announced on its other connections, or nothing.
    fn known(&self, key: &Key) -> Arc<Known> {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| known.strong_count() > 0);
        let shared = all.iter().filter_map(Weak::upgrade).find(|known| known.key == *key);
        shared.unwrap_or_else(|| {
            let known = Arc::new(Known {
                key: key.clone(),
                prefixes: RwLock::default(),
                left: Arc::clone(&self.left),
            });
            all.push(Arc::downgrade(&known));
            known
        })
    }
}

impl Known {
    fn prefixes(&self) -> RwLockReadGuard<'_, HashSet<u64>> {
        self.prefixes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn contains(&self, digest: Digest) -> bool {
        self.prefixes().contains(&digest.prefix())
    }

    fn add(&self, prefixes: &[u64]) {
        let mut known = self.prefixes.write().unwrap_or_else(PoisonError::into_inner);
        for prefix in prefixes {
            if !known.contains(prefix) && self.take() {
                known.insert(*prefix);
            }
        }
    }

    /// Takes one of the budget, if one is left.
    fn take(&self) -> bool {
        let one_less = |left: u64| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        let prefixes = self.prefixes.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.left.fetch_add(prefixes.len() as u64, Ordering::Relaxed);
    }
}

/// The digests of a connection.
pub(super) struct Hashes<'a> {
    key: Key,
    /// Whether the key is that of the destination.
    announced: bool,
    /// What the destination has announced, if it has announced something on this connection.
    known: Option<Arc<Known>>,
    repeats: Option<Repeats>,
    budget: &'a Budget,
}

/// Pages that were sent in rounds.
struct Repeats {
    /// Pages that were sent with contents, by export.
    sent: Vec<PageSet>,
    /// What a page had when it was sent last, of pages that were sent twice or more.
    latest: HashMap<(usize, PageIndex), Digest>,
    /// The most of them.
    limit: usize,
}

impl<'a> Hashes<'a> {
    /// Of a connection that stages pages of these exports, if there are any.
    ///
    /// # Errors
    ///
    /// There is no random key.
    pub(super) fn new(budget: &'a Budget, staged: Option<&[Export]>) -> io::Result<Self> {
        Ok(Self {
            key: Key::random()?,
            announced: false,
            known: None,
            repeats: staged.map(Repeats::new),
            budget,
        })
    }

    /// Notes which contents the destination has. More than the server may keep are forgotten: those are sent.
    pub(super) fn announce(&mut self, digests: Digests) -> Result<(), ProtocolError> {
        if self.announced && self.key != digests.key {
            return Err(ProtocolError::OtherKey);
        }
        // Digests of pages that were sent before are of another key, so that no page has one.
        self.announced = true;
        self.key = digests.key;
        if digests.prefixes.is_empty() {
            // Nothing is known of the destination any more; other connections of it have announced what they have.
            self.known = None;
        } else {
            let known = self.known.get_or_insert_with(|| self.budget.known(&self.key));
            known.add(&digests.prefixes);
        }
        Ok(())
    }

    /// The connection takes part in rounds from now on: pages of these exports are staged.
    pub(super) fn begin_rounds(&mut self, exports: &[Export]) {
        self.repeats = Some(Repeats::new(exports));
    }

    /// The rounds are over: no page is staged any more.
    pub(super) fn end_rounds(&mut self) {
        self.repeats = None;
    }

    /// Whether a page may need less than its contents.
    pub(super) fn is_used(&self) -> bool {
        self.repeats.is_some() || self.known.is_some()
    }

    /// Notes the runs without contents of an answer: what the destination had staged of them before is void.
    pub(super) fn note(&mut self, export: usize, runs: &[Run]) {
        let Some(repeats) = &mut self.repeats else { return };
        for run in runs.iter().filter(|run| run.kind != Kind::Data) {
            repeats.forget(export, run.range);
        }
    }

    /// What to send of a page with these contents. The caller sends that, or the contents.
    pub(super) fn choose(&mut self, export: usize, page: PageIndex, contents: &[u8]) -> Sent {
        let is_repeated = self.repeats.as_mut().is_some_and(|repeats| repeats.note_sent(export, page));
        if !is_repeated && self.known.is_none() {
            return Sent::Data;
        }
        let digest = self.key.digest(contents);
        let repeats = self.repeats.as_mut().filter(|_| is_repeated);
        if repeats.is_some_and(|repeats| repeats.is_same(export, page, digest)) {
            Sent::Same
        } else if self.known.as_ref().is_some_and(|known| known.contains(digest)) {
            Sent::Known(digest)
        } else {
            Sent::Data
        }
    }
}

impl Repeats {
    fn new(exports: &[Export]) -> Self {
        Self {
            sent: exports.iter().map(|export| PageSet::none_of(export.pages)).collect(),
            latest: HashMap::new(),
            limit: MAX_REPEATED,
        }
    }

    /// Notes that a page is sent with contents. Returns whether it was before.
    fn note_sent(&mut self, export: usize, page: PageIndex) -> bool {
        let Some(sent) = self.sent.get_mut(export) else { return false };
        let before = sent.contains(page);
        sent.insert(page.into());
        before
    }

    /// Notes what a page has now. Returns whether it had the same when it was sent last.
    fn is_same(&mut self, export: usize, page: PageIndex, digest: Digest) -> bool {
        let has_room = self.latest.len() < self.limit;
        match self.latest.get_mut(&(export, page)) {
            Some(latest) => std::mem::replace(latest, digest) == digest,
            None if has_room => {
                self.latest.insert((export, page), digest);
                false
            }
            None => false,
        }
    }

    /// These pages are sent without contents.
    fn forget(&mut self, export: usize, pages: PageRange) {
        let Some(sent) = self.sent.get_mut(export) else { return };
        let before: Vec<PageRange> = sent.runs_of(pages).collect();
        sent.remove(pages);
        for page in before.into_iter().flat_map(PageRange::iter) {
            self.latest.remove(&(export, page));
        }
    }
}

#[cfg(test)]
mod tests {
    use vmem::{Name, PAGE_SIZE};

    use super::*;

    fn exports(pages: u64) -> Vec<Export> {
        vec![Export {
            name: Name::new("ram").expect("a name"),
            pages: PageRange::of_pages(pages).expect("pages"),
            padding: 0,
            identity: 1,
        }]
    }

    fn page(pgoff: u64) -> PageIndex {
        PageIndex::new(pgoff).expect("a page")
    }

    fn contents(byte: u8) -> [u8; PAGE_SIZE] {
        [byte; PAGE_SIZE]
    }

    #[test]
    fn page_is_the_same_if_its_last_two_sendings_had_these_contents() {
        let (exports, budget) = (exports(10), Budget::of(&exports(10)));
        let mut hashes = Hashes::new(&budget, Some(&exports)).expect("a key");
        let mut send = |byte| hashes.choose(0, page(3), &contents(byte));
        assert_eq!(send(1), Sent::Data, "the first time, nothing is computed");
        assert_eq!(send(1), Sent::Data, "the second time, its digest is stored");
        assert_eq!(send(1), Sent::Same);
        assert_eq!(send(2), Sent::Data);
        assert_eq!(send(1), Sent::Data, "not what it had once");
        assert_eq!(send(1), Sent::Same);
        // It is zero meanwhile: nothing of it is staged with contents.
        let zero = Run {
            range: PageRange::from_pgoff(0, 9).expect("a range"),
            kind: Kind::Zero,
        };
        hashes.note(0, &[zero]);
        assert_eq!(hashes.choose(0, page(3), &contents(1)), Sent::Data);
        assert_eq!(hashes.choose(0, page(3), &contents(1)), Sent::Data);
        assert_eq!(hashes.choose(0, page(3), &contents(1)), Sent::Same);
        assert_eq!(hashes.choose(0, page(4), &contents(1)), Sent::Data, "another page");
        hashes.end_rounds();
        assert_eq!(hashes.choose(0, page(3), &contents(1)), Sent::Data);
        assert!(!hashes.is_used());
    }

    #[test]
    fn digests_of_repeated_pages_are_bounded() {
        let (exports, budget) = (exports(10), Budget::of(&exports(10)));
        let mut hashes = Hashes::new(&budget, Some(&exports)).expect("a key");
        hashes.repeats.as_mut().expect("rounds").limit = 1;
        for _ in 0..2 {
            assert_eq!(hashes.choose(0, page(1), &contents(1)), Sent::Data);
            assert_eq!(hashes.choose(0, page(2), &contents(1)), Sent::Data);
        }
        assert_eq!(hashes.choose(0, page(1), &contents(1)), Sent::Same);
        assert_eq!(hashes.choose(0, page(2), &contents(1)), Sent::Data, "no room");
    }

    #[test]
    fn announced_contents_are_known_wherever_they_are_until_they_are_withdrawn() {
        let budget = Budget::of(&exports(10));
        let mut hashes = Hashes::new(&budget, None).expect("a key");
        let key = Key::random().expect("a key");
        let digest = key.digest(&contents(7));
        let announce = |prefixes: &[u64]| Digests {
            key: key.clone(),
            prefixes: prefixes.to_vec(),
        };
        assert!(!hashes.is_used());
        hashes.announce(announce(&[digest.prefix(), 5])).expect("its key");
        assert_eq!(hashes.choose(0, page(9), &contents(7)), Sent::Known(digest));
        assert_eq!(hashes.choose(0, page(9), &contents(8)), Sent::Data);
        let other = Digests {
            key: Key::random().expect("a key"),
            prefixes: vec![1],
        };
        assert_eq!(hashes.announce(other), Err(ProtocolError::OtherKey));
        hashes.announce(announce(&[])).expect("its key");
        assert_eq!(hashes.choose(0, page(9), &contents(7)), Sent::Data);
    }

    #[test]
    fn same_page_needs_no_digest_and_known_one_is_sent_again_as_the_same() {
        let (exports, budget) = (exports(10), Budget::of(&exports(10)));
        let mut hashes = Hashes::new(&budget, Some(&exports)).expect("a key");
        let key = Key::random().expect("a key");
        let digest = key.digest(&contents(7));
        let prefixes = vec![digest.prefix()];
        // The first digest of the page is of the source's own key.
        assert_eq!(hashes.choose(0, page(1), &contents(7)), Sent::Data);
        assert_eq!(hashes.choose(0, page(1), &contents(7)), Sent::Data);
        hashes.announce(Digests { key, prefixes }).expect("a key");
        assert_eq!(hashes.choose(0, page(1), &contents(7)), Sent::Known(digest));
        assert_eq!(hashes.choose(0, page(1), &contents(7)), Sent::Same);
    }

    fn announced<'a>(budget: &'a Budget, key: u8, prefixes: &[u64]) -> Hashes<'a> {
        let mut hashes = Hashes::new(budget, None).expect("a key");
        let digests = Digests {
            key: Key::from_bytes([key; 32]),
            prefixes: prefixes.to_vec(),
        };
        hashes.announce(digests).expect("its key");
        hashes
    }

    fn count(hashes: &Hashes<'_>) -> usize {
        hashes.known.as_ref().map_or(0, |known| known.prefixes().len())
    }

    #[test]
    fn announcements_of_all_destinations_are_bounded_together() {
        let budget = Budget::of(&exports(3));
        let first = announced(&budget, 1, &[1, 2, 2]);
        let second = announced(&budget, 2, &[3, 4]);
        assert_eq!((count(&first), count(&second)), (2, 1));
        drop(first);
        assert_eq!(count(&announced(&budget, 3, &[1, 2, 3, 4])), 2);
        drop(second);
        assert_eq!(count(&announced(&budget, 4, &[1, 2, 3, 4])), 3);
    }

    #[test]
    fn connections_of_one_destination_share_what_it_has_announced_until_each_withdraws() {
        let budget = Budget::of(&exports(3));
        let mut first = announced(&budget, 1, &[1, 2, 3]);
        let second = announced(&budget, 1, &[1, 2, 3, 4]);
        assert_eq!((count(&first), count(&second)), (3, 3), "each digest counts once");
        assert_eq!(count(&announced(&budget, 2, &[1])), 0, "another destination");
        let (key, prefixes) = (Key::from_bytes([1; 32]), Vec::new());
        first.announce(Digests { key, prefixes }).expect("its key");
        assert_eq!((count(&first), count(&second)), (0, 3));
        assert_eq!(count(&announced(&budget, 2, &[1])), 0);
        // Somebody looks for the announcements of another destination just now.
        let looks = second.known.clone();
        drop(second);
        assert_eq!(count(&announced(&budget, 2, &[1, 2, 3])), 0);
        drop(looks);
        assert_eq!(count(&announced(&budget, 2, &[1, 2, 3])), 3);
    }
}
