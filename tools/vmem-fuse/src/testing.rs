// SPDX-License-Identifier: GPL-2.0-or-later
//! A store for the tests.

use std::path::PathBuf;

use tempfile::TempDir;
use vmem_pages::{PAGE_SIZE, PageIndex, PageRange};
use vmem_store::{CheckpointName, CommitOptions, InitOptions, OpenOptions, Store, WriteOptions};
use vmem_store_source::Location;

/// Pages of memory `ram`: the first 16 and the last 16 of 20,000 have contents, and page 1000 was unreadable.
pub(crate) const PAGES: u64 = 20_000;

/// Bytes of `device-state`.
pub(crate) const BLOB: u64 = 5000;

/// A store in a directory of its own, with checkpoint guest0@1.
pub(crate) struct TestStore {
    pub(crate) directory: TempDir,
    pub(crate) location: Location,
    pub(crate) store: Store,
}

/// The contents of the pages that have some.
pub(crate) fn contents() -> Vec<u8> {
    (0..16 * PAGE_SIZE).map(|at| (at / 64) as u8 | 1).collect()
}

impl TestStore {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let location: Location = directory.path().join("store").display().to_string().parse().expect("a place");
        let objects = location.objects().expect("a place");
        let store = Store::init(objects, &InitOptions::default(), OpenOptions::default()).expect("a store");
        let test = Self {
            directory,
            location,
            store,
        };
        test.checkpoint();
        test
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    pub(crate) fn name(&self, sequence: u64) -> CheckpointName {
        let guest = "guest0".parse().expect("a name");
        CheckpointName { guest, sequence }
    }

    /// Makes one more checkpoint.
    pub(crate) fn checkpoint(&self) {
        let guest = "guest0".parse().expect("a name");
        let memories = [("ram".to_owned(), PAGES * PAGE_SIZE as u64)];
        let writer = self
            .store
            .begin(&guest, None, &memories, &WriteOptions::default())
            .expect("a writer");
        let page = |pgoff| PageIndex::new(pgoff).expect("a page");
        writer.put_pages(0, page(0), &contents()).expect("room");
        writer.put_pages(0, page(PAGES - 16), &contents()).expect("room");
        writer.put_unreadable(0, page(1000).into()).expect("room");
        for (first, end) in [(16, 1000), (1001, PAGES - 16)] {
            let pages = PageRange::from_pgoff(first, end - first).expect("pages");
            writer.put_zero(0, pages).expect("room");
        }
        let state = vec![7; BLOB as usize];
        writer.put_blob("device-state", &mut &state[..], BLOB).expect("room");
        writer.commit(CommitOptions::default()).expect("a checkpoint");
    }
}
