// SPDX-License-Identifier: GPL-2.0-or-later
//! A guest whose memory is known, and a store to put it in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vmem_pages::{PAGE_SIZE, PageIndex, PageRange};

use crate::objects::{Memory, Objects, Retry};
use crate::store::{InitOptions, OpenOptions, Store};
use crate::{CheckpointName, CommitOptions, Error, GuestName, Image, Manifest, WriteOptions};

/// A page whose contents are a number; 0 is a page of zeros. Half of it compresses.
pub(super) fn contents(seed: u64) -> Vec<u8> {
    if seed == 0 {
        return vec![0; PAGE_SIZE];
    }
    let mut page = vec![seed as u8; PAGE_SIZE];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for chunk in page[..PAGE_SIZE / 2].chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    page
}

/// What a guest's memory holds, by page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Guest {
    pub(super) pages: Vec<u64>,
    pub(super) state: Vec<u8>,
}

impl Guest {
    pub(super) fn new(pages: usize) -> Self {
        Self {
            pages: vec![0; pages],
            state: b"device state".to_vec(),
        }
    }
}

pub(super) fn guest() -> GuestName {
    "guest0".parse().unwrap()
}

pub(super) fn name(sequence: u64) -> CheckpointName {
    CheckpointName {
        guest: guest(),
        sequence,
    }
}

pub(super) fn range(first: u64, count: u64) -> PageRange {
    PageRange::from_pgoff(first, count).unwrap()
}

/// A clock that is moved by hand.
#[derive(Debug, Default)]
pub(super) struct Time(AtomicU64);

impl Time {
    pub(super) fn pass(&self, time: Duration) {
        self.0.fetch_add(time.as_millis() as u64, Ordering::SeqCst);
    }
}

pub(super) fn options(time: &Arc<Time>) -> OpenOptions {
    let time = time.clone();
    OpenOptions {
        clock: Arc::new(move || 1_700_000_000_000 + time.0.load(Ordering::SeqCst)),
        retry: Retry {
            attempts: 4,
            pause: Duration::ZERO,
            longest: Duration::ZERO,
            patience: Duration::ZERO,
        },
        ..OpenOptions::default()
    }
}

/// A small store: packs of 64 KiB, frames of four pages.
pub(super) fn small() -> InitOptions {
    InitOptions {
        frame_pages: 4,
        pack_bytes: 64 << 10,
        ..InitOptions::default()
    }
}

pub(super) struct Place {
    pub(super) memory: Arc<Memory>,
    pub(super) time: Arc<Time>,
    pub(super) store: Store,
}

pub(super) fn place() -> Place {
    place_with(&small())
}

pub(super) fn place_with(init: &InitOptions) -> Place {
    let memory = Arc::new(Memory::new());
    let time = Arc::new(Time::default());
    let store = Store::init(memory.clone(), init, options(&time)).unwrap();
    Place { memory, time, store }
}

/// Writes a checkpoint: pages that differ from `before`, or all without.
pub(super) fn checkpoint(store: &Store, now: &Guest, before: Option<(&Guest, u64)>) -> Result<Manifest, Error> {
    checkpoint_of(store, &guest(), now, before)
}

pub(super) fn checkpoint_of(
    store: &Store,
    guest: &GuestName,
    now: &Guest,
    before: Option<(&Guest, u64)>,
) -> Result<Manifest, Error> {
    let memories = [("ram".to_owned(), (now.pages.len() * PAGE_SIZE) as u64)];
    let parent = before.map(|(_, sequence)| CheckpointName {
        guest: guest.clone(),
        sequence,
    });
    let writer = store.begin(guest, parent.as_ref(), &memories, &WriteOptions::default())?;
    for (at, seed) in now.pages.iter().enumerate() {
        if before.is_none_or(|(before, _)| before.pages.get(at) != Some(seed)) {
            writer.put_pages(0, PageIndex::new(at as u64).unwrap(), &contents(*seed))?;
        }
    }
    writer.put_blob("device-state", &mut now.state.as_slice(), 1 << 20)?;
    writer.commit(CommitOptions::default())
}

/// Whether a checkpoint can be read and is what the guest was, page for page.
pub(super) fn assert_is(image: &Image, guest: &Guest) {
    let (ram, backend) = image.manifest().backend("ram").unwrap();
    assert_eq!(backend.pages(), guest.pages.len() as u64);
    let mut found = vec![0xee; guest.pages.len() * PAGE_SIZE];
    let failed = image.read_pages(ram, range(0, guest.pages.len() as u64), &mut found).unwrap();
    assert!(
        failed.is_empty(),
        "{}: {} pages, first {:?}",
        image.manifest().checkpoint,
        failed.len(),
        failed[0]
    );
    for (at, (seed, page)) in guest.pages.iter().zip(found.chunks_exact(PAGE_SIZE)).enumerate() {
        assert!(page == contents(*seed), "{}: page {at}", image.manifest().checkpoint);
    }
    let mut state = Vec::new();
    std::io::Read::read_to_end(&mut image.blob("device-state").unwrap(), &mut state).unwrap();
    assert_eq!(state, guest.state);
}

/// Whether all checkpoints that are there are what they should be, and those in `must` are there.
pub(super) fn assert_all(store: &Store, expected: &BTreeMap<u64, Guest>, must: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let listed = store.list().unwrap();
    let there: Vec<u64> = listed.values().flatten().map(|listed| listed.checkpoint.sequence).collect();
    for sequence in &there {
        let image = store.image(&name(*sequence)).unwrap();
        assert_is(
            &image,
            expected
                .get(sequence)
                .unwrap_or_else(|| panic!("checkpoint {sequence} should not be there")),
        );
    }
    for sequence in must {
        assert!(there.contains(&sequence), "checkpoint {sequence} is lost: {there:?}");
    }
    there
}

/// Objects by the beginning of their names.
pub(super) fn objects(memory: &Memory, prefix: &str) -> Vec<String> {
    memory.list(prefix).unwrap().into_iter().map(|meta| meta.name).collect()
}
