// SPDX-License-Identifier: GPL-2.0-or-later
//! Access orders: which pages a restored guest touched, in which order.

use vmem_pages::{PageRange, PageSet};

use crate::encoding::{Cursor, Malformed, put_varint, put_zigzag};
use crate::envelope::{Kind, Seal, unwrap, wrap};
use crate::error::Error;
use crate::image::{Image, Touch};
use crate::leaf::Entry;
use crate::manifest::{MAX_BACKENDS, MAX_TEXT};
use crate::names::{CheckpointName, ORDERS, WriterId};
use crate::objects::{Part, Put};
use crate::store::Store;

/// Most runs of pages of an order.
const MAX_RUNS: u64 = 4 << 20;

/// Recordings of a checkpoint that are kept, and that an order is merged of.
const RECORDINGS: usize = 4;

/// Recordings that are read in search of one that is not damaged.
const ATTEMPTS: usize = 16;

/// Pages in the order of their first touch, by the names of backends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Order {
    pub(crate) backends: Vec<String>,
    pub(crate) runs: Vec<Touch>,
}

impl Order {
    /// The names of the backends (a number, and for each its length and its bytes), a number for the runs, and for each run the backend's
    /// number, the first page less that after the run before, and the pages.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, self.backends.len() as u64);
        for name in &self.backends {
            put_varint(&mut out, name.len() as u64);
            out.extend_from_slice(name.as_bytes());
        }
        put_varint(&mut out, self.runs.len() as u64);
        let mut expected = 0_u64;
        for run in &self.runs {
            put_varint(&mut out, run.backend as u64);
            put_zigzag(&mut out, run.pages.first().get().wrapping_sub(expected) as i64);
            put_varint(&mut out, run.pages.count());
            expected = run.pages.end();
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(bytes);
        let count = cursor.varint()?;
        if count > MAX_BACKENDS as u64 {
            return Err(Malformed("it has too many backends"));
        }
        let mut backends = Vec::new();
        for _ in 0..count {
            let length = cursor.varint()?;
            if length > MAX_TEXT as u64 {
                return Err(Malformed("a backend's name is too long"));
            }
            let name = cursor.bytes(length as usize)?;
            backends.push(
                std::str::from_utf8(name)
                    .map_err(|_| Malformed("a backend's name is no text"))?
                    .to_owned(),
            );
        }
        let count = cursor.varint()?;
        // Each run takes at least three bytes.
        if count > MAX_RUNS || count * 3 > bytes.len() as u64 {
            return Err(Malformed("it has too many runs"));
        }
        let mut runs = Vec::with_capacity(count as usize);
        let mut expected = 0_u64;
        for _ in 0..count {
            let backend = cursor.varint()? as usize;
            let first = expected.wrapping_add(cursor.zigzag()? as u64);
            let pages = PageRange::from_pgoff(first, cursor.varint()?).ok_or(Malformed("a run has no pages, or too many"))?;
            if backend >= backends.len() {
                return Err(Malformed("a run is of no backend"));
            }
            expected = pages.end();
            runs.push(Touch { backend, pages });
        }
        cursor.end()?;
        Ok(Self { backends, runs })
    }
}

/// Pages in the order in which a restore best reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AccessOrder {
    /// The pages; those that are not in it come last.
    pub touches: Vec<Touch>,
    /// The checkpoint whose restores have recorded it. `None`: no restore has, and these are the pages that the checkpoint has written itself.
    pub recorded: Option<CheckpointName>,
}

fn prefix(checkpoint: &CheckpointName) -> String {
    format!("{ORDERS}{}/{:010}/", checkpoint.guest, checkpoint.sequence)
}

/// The checkpoint that an order is of.
pub(crate) fn parse(name: &str) -> Option<CheckpointName> {
    let mut parts = name.strip_prefix(ORDERS)?.split('/');
    let guest = parts.next()?.parse().ok()?;
    let sequence = parts.next()?.parse().ok()?;
    parts.next()?.strip_suffix(".vord")?;
    Some(CheckpointName { guest, sequence })
}

impl Store {
    /// Records the order in which a guest touched the pages of a checkpoint that it was restored from, including those that came before they
    /// were touched. The newest four recordings of a checkpoint are kept.
    ///
    /// # Errors
    ///
    /// [`Error::Range`]: a page is not in the checkpoint. [`Error::TooLarge`]: the order has more than 4,194,304 runs of pages. Those of the
    /// place: it cannot be written to, for example.
    pub fn record_order(&self, image: &Image, touches: &[Touch]) -> Result<(), Error> {
        let mut order = Order {
            backends: image.backends().iter().map(|backend| backend.name.clone()).collect(),
            runs: Vec::new(),
        };
        for touch in touches {
            let is_there = image
                .backends()
                .get(touch.backend)
                .is_some_and(|backend| touch.pages.end() <= backend.pages());
            if !is_there {
                return Err(Error::Range {
                    backend: touch.backend.to_string(),
                    what: format!("{} are not in the checkpoint", touch.pages),
                });
            }
            touch.append_to(&mut order.runs);
        }
        if order.runs.len() as u64 > MAX_RUNS {
            return Err(Error::TooLarge(format!("an order has at most {MAX_RUNS} runs")));
        }
        let name = format!(
            "{}{:013}-{}.vord",
            prefix(&image.manifest().checkpoint),
            self.base.now(),
            WriterId::new()?
        );
        let object = wrap(Kind::Order, &name, &order.encode(), &Seal::Store(&self.base.crypto))?;
        self.base.put(&name, &object, Put::New)?;
        self.forget_recordings(&prefix(&image.manifest().checkpoint));
        Ok(())
    }

    /// Deletes all recordings of a checkpoint but the newest ones. What cannot be deleted is only not read.
    fn forget_recordings(&self, prefix: &str) {
        let deleted = self.base.list(prefix).and_then(|mut recordings| {
            recordings.sort_by(|one, other| other.name.cmp(&one.name));
            let mut old = recordings.iter().skip(RECORDINGS);
            old.try_for_each(|meta| self.base.delete(&meta.name))
        });
        if let Err(error) = deleted {
            tracing::debug!("old access orders are left: {error}");
        }
    }

    /// The best order for restoring a checkpoint: that of the newest four recordings of it; else of the nearest checkpoint of the guest that has
    /// any; else the pages that this checkpoint wrote itself, which were in use when it was made.
    ///
    /// The newest recording counts first: its pages come in its order, then those that only the one before it has, and so on. Each page comes
    /// once. What a recording says of pages that the checkpoint does not have is ignored, and a recording that is damaged is passed over: it
    /// is only a hint.
    ///
    /// # Errors
    ///
    /// The place cannot be listed, or does not answer; the index is damaged.
    pub fn order(&self, image: &Image) -> Result<Vec<Touch>, Error> {
        Ok(self.access_order(image)?.touches)
    }

    /// As [`order`](Self::order), with the checkpoint that the order was recorded of.
    ///
    /// # Errors
    ///
    /// As for [`order`](Self::order).
    pub fn access_order(&self, image: &Image) -> Result<AccessOrder, Error> {
        let own = &image.manifest().checkpoint;
        let mut names: Vec<(u64, u64, String)> = self
            .base
            .list(&format!("{ORDERS}{}/", own.guest))?
            .into_iter()
            .filter_map(|meta| parse(&meta.name).map(|of| (of.sequence.abs_diff(own.sequence), of.sequence, meta.name)))
            .collect();
        // The nearest checkpoint's newest.
        names.sort_by(|one, other| one.0.cmp(&other.0).then(other.2.cmp(&one.2)));
        let mut merged = Merged::new(image);
        let (mut of, mut recordings) = (None, 0);
        for (_, sequence, name) in names.into_iter().take(ATTEMPTS) {
            if recordings == RECORDINGS || of.is_some_and(|of| of != sequence) {
                break;
            }
            match self.recording(&name) {
                Ok(order) if merged.add(&name, &order) => {
                    of = Some(sequence);
                    recordings += 1;
                }
                // It has no page that this checkpoint has.
                Ok(_) => {}
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => tracing::warn!("an access order is passed over: {error}"),
            }
        }
        let touches = match of {
            Some(_) => merged.touches,
            None => last_written(image)?,
        };
        let recorded = of.map(|sequence| CheckpointName {
            guest: own.guest.clone(),
            sequence,
        });
        Ok(AccessOrder { touches, recorded })
    }

    fn recording(&self, name: &str) -> Result<Order, Error> {
        let object = self.base.get(name, Part::All(Kind::Order.limit()))?;
        let body = unwrap(Kind::Order, name, &object.bytes, &Seal::Store(&self.base.crypto))?;
        Order::decode(&body).map_err(|Malformed(what)| Error::damaged(name, what))
    }
}

/// An order of several recordings, with the numbers that backends have in one checkpoint.
struct Merged<'a> {
    image: &'a Image,
    touches: Vec<Touch>,
    /// Of each backend, the pages that are not in `touches`.
    rest: Vec<Option<PageSet>>,
    /// Pages of all backends.
    pages: u64,
}

impl<'a> Merged<'a> {
    fn new(image: &'a Image) -> Self {
        let backends = image.backends().iter();
        let rest: Vec<_> = backends
            .map(|backend| PageRange::of_pages(backend.pages()).map(PageSet::all_of))
            .collect();
        Self {
            image,
            touches: Vec::new(),
            pages: rest.iter().flatten().map(|rest| rest.pages().count()).sum(),
            rest,
        }
    }

    /// Adds a recording behind those that were added before. Whether it has a page that the checkpoint has.
    fn add(&mut self, name: &str, order: &Order) -> bool {
        let known = order.backends.iter().map(|name| self.image.manifest().backend(name));
        let known: Vec<_> = known.map(|found| found.map(|(number, _)| number)).collect();
        // A recording has each page once. Without this bound, a small order could keep a restore busy for very long.
        let mut left = self.pages;
        for run in &order.runs {
            let Some(backend) = known.get(run.backend).copied().flatten() else {
                continue;
            };
            let Some(Some(rest)) = self.rest.get_mut(backend) else {
                continue;
            };
            let there = rest
                .pages()
                .end()
                .min(run.pages.end())
                .saturating_sub(run.pages.first().get());
            let Some(after) = left.checked_sub(there) else {
                tracing::warn!("{name} has pages more than once: the rest of it is ignored");
                break;
            };
            left = after;
            for pages in rest.take_of(run.pages, u64::MAX, usize::MAX) {
                Touch { backend, pages }.append_to(&mut self.touches);
            }
        }
        left < self.pages
    }
}

/// The pages that a checkpoint wrote itself, as they lie in its packs.
fn last_written(image: &Image) -> Result<Vec<Touch>, Error> {
    let packs = image.all_packs()?;
    let is_own = |pack: u32| {
        packs
            .get(pack as usize)
            .copied()
            .flatten()
            .is_some_and(|info| info.id.writer == image.manifest().id)
    };
    let mut own = Vec::new();
    for backend in 0..image.backends().len() {
        for leaf in 0..image.leaves_of(backend) {
            // A leaf of another checkpoint's part of the index has no page of this one.
            let Some(record) = image.leaf_record(backend, leaf)? else {
                continue;
            };
            if image.index(record.index)? != image.manifest().id {
                continue;
            }
            for (pgoff, entry) in (leaf * crate::leaf::LEAF_PAGES..).zip(&image.leaf(backend, leaf)?.0) {
                if let Entry::Data { pack, number } = *entry {
                    if is_own(pack) {
                        own.push((pack, number, backend, pgoff));
                    }
                }
            }
        }
    }
    own.sort_unstable();
    let mut touches = Vec::new();
    for (_, _, backend, pgoff) in own {
        if let Some(pages) = PageRange::from_pgoff(pgoff, 1) {
            Touch { backend, pages }.append_to(&mut touches);
        }
    }
    Ok(touches)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn order_comes_back(runs in proptest::collection::vec((0..2_usize, 0..1_u64 << 40, 1..1000_u64), 0..50)) {
            let runs = runs.iter().filter_map(|(backend, first, count)| Some(Touch { backend: *backend, pages: PageRange::from_pgoff(*first, *count)? }));
            let order = Order { backends: vec!["a".to_owned(), "ä".to_owned()], runs: runs.collect() };
            prop_assert_eq!(Order::decode(&order.encode()), Ok(order));
        }

        #[test]
        fn any_bytes_are_an_order_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(order) = Order::decode(&bytes) {
                prop_assert!(order.runs.len() * 3 <= bytes.len());
            }
        }
    }
}
