// SPDX-License-Identifier: GPL-2.0
//! Checkpoints in a directory, as sources.

use std::collections::BTreeMap;
use std::fs;

use vmem::PageIndex;
use vmem_source::Contents;
use vmem_store::testing::packs;
use vmem_store::{CommitOptions, InitOptions, OpenOptions, Store, WriteOptions};

use crate::{Address, StoredPages};

use super::*;

const PAGES: u64 = 300;

/// A store with checkpoint guest0@1, in which page N is full of the byte N, and every third page zero.
fn store() -> (tempfile::TempDir, Address) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store");
    let address: Address = format!("{}#guest0", path.display()).parse().expect("an address");
    let store = Store::init(
        address.store.objects().expect("a place"),
        &InitOptions::default(),
        OpenOptions::default(),
    )
    .expect("a store");
    let memories = [("ram".to_owned(), PAGES * PAGE_SIZE as u64)];
    let guest = "guest0".parse().expect("a name");
    let writer = store
        .begin(&guest, None, &memories, &WriteOptions::default())
        .expect("a writer");
    let contents: Vec<u8> = (0..PAGES).flat_map(|page| [byte(page); PAGE_SIZE]).collect();
    writer
        .put_pages(0, PageIndex::new(0).expect("a page"), &contents)
        .expect("room");
    writer.put_blob("device-state", &mut &b"devices"[..], 100).expect("room");
    writer.commit(CommitOptions::default()).expect("a checkpoint");
    (directory, address)
}

fn byte(page: u64) -> u8 {
    if page % 3 == 0 { 0 } else { page as u8 }
}

/// Fetches these pages; the first byte of each, `None` for an unreadable one.
fn fetched(source: &mut ImageSource, ranges: &[PageRange]) -> Result<BTreeMap<u64, Option<u8>>, Error> {
    source.fetch(0, ranges)?;
    let wanted: u64 = ranges.iter().map(|range| range.count()).sum();
    let mut found = BTreeMap::new();
    while (found.len() as u64) < wanted {
        for (pages, contents) in source.next_answer()?.contents() {
            for (at, page) in pages.iter().enumerate() {
                let byte = match contents {
                    Contents::Zero => Some(0),
                    Contents::Data(data) => {
                        let page = &data[at * PAGE_SIZE..(at + 1) * PAGE_SIZE];
                        assert!(page.iter().all(|byte| *byte == page[0]));
                        Some(page[0])
                    }
                    Contents::Unreadable => None,
                    Contents::Known(_) | Contents::Same => panic!("a store knows no digests of its readers"),
                };
                assert!(found.insert(page.get(), byte).is_none(), "{page} twice");
            }
        }
    }
    Ok(found)
}

fn range(first: u64, count: u64) -> PageRange {
    PageRange::from_pgoff(first, count).expect("pages")
}

#[test]
fn each_page_is_answered_once_with_its_contents() {
    let (_directory, address) = store();
    let pages = StoredPages::open(&address, None, "test").expect("a checkpoint");
    assert_eq!(pages.exports().len(), 1, "the device state is no export");
    let mut source = pages.source(Lane::Stream).expect("a source");
    let found = fetched(&mut source, &[range(0, 150), range(200, 100)]).expect("pages");
    assert_eq!(found.len(), 250);
    assert!(found.iter().all(|(page, found)| *found == Some(byte(*page))), "{found:?}");
    let one = fetched(&mut source, &[range(7, 1)]).expect("a page");
    assert_eq!(one, BTreeMap::from([(7, Some(7))]));
    assert!(source.fetch(0, &[range(299, 2)]).is_err() && source.fetch(1, &[range(0, 1)]).is_err());
}

#[test]
fn damaged_page_is_unreadable_and_the_others_are_read() {
    let (directory, address) = store();
    let path = packs(directory.path()).remove(0);
    let mut bytes = fs::read(&path).expect("a pack");
    bytes[40] ^= 1;
    fs::remove_file(&path).expect("a pack");
    fs::write(&path, bytes).expect("a pack");
    let pages = StoredPages::open(&address, None, "test").expect("a checkpoint");
    let mut source = pages.source(Lane::Urgent).expect("a source");
    let found = fetched(&mut source, &[range(0, PAGES)]).expect("pages");
    let lost: Vec<u64> = found
        .iter()
        .filter(|(_, found)| found.is_none())
        .map(|(page, _)| *page)
        .collect();
    assert!(!lost.is_empty() && lost.len() <= 16, "{lost:?}");
    let right = |(page, found): (&u64, &Option<u8>)| found.is_none_or(|found| found == byte(*page));
    assert!(
        found.iter().all(right),
        "no wrong contents, and no zeros for what is lost: {found:?}"
    );
}

#[test]
fn store_that_is_away_is_a_transient_error_and_comes_back() {
    let (directory, address) = store();
    let (path, away) = (directory.path().join("store"), directory.path().join("away"));
    let pages = StoredPages::open(&address, None, "test").expect("a checkpoint");
    let mut source = pages.source(Lane::Urgent).expect("a source");
    fs::rename(&path, &away).expect("a directory");
    let error = fetched(&mut source, &[range(1, 1)]).expect_err("away");
    assert!(error.is_transient(), "{error}");
    assert!(pages.source(Lane::Urgent).is_err_and(|error| error.is_transient()));
    // The lease may have made the directory again.
    let _ = fs::remove_dir_all(&path);
    fs::rename(&away, &path).expect("a directory");
    let mut source = pages.source(Lane::Urgent).expect("it is back");
    assert_eq!(
        fetched(&mut source, &[range(1, 1)]).expect("a page"),
        BTreeMap::from([(1, Some(1))])
    );
}

#[test]
fn page_that_was_missing_while_the_store_was_away_is_read_again() {
    let (directory, address) = store();
    let (path, away) = (directory.path().join("store"), directory.path().join("away"));
    let store = address.store.open(None).expect("a store");
    let checkpoint = address.checkpoint.find(&store).expect("a checkpoint");
    let image = store.image(&checkpoint).expect("a checkpoint");
    let backend = image.manifest().backend("ram").expect("a memory").0;
    let exports = StoredPages::open(&address, None, "test")
        .expect("a checkpoint")
        .exports()
        .to_vec();
    fs::rename(&path, &away).expect("a directory");
    fs::create_dir(&path).expect("an empty mount point");
    let (at, from) = (path, away);
    let comes_back: IsThere = Arc::new(move || {
        if from.exists() {
            fs::remove_dir_all(&at).expect("a directory");
            fs::rename(&from, &at).expect("a directory");
        }
        Ok(())
    });
    let mut source = ImageSource::new(Arc::new(image), exports, vec![backend], comes_back, Lane::Urgent).expect("a source");
    assert_eq!(
        fetched(&mut source, &[range(1, 1)]).expect("a page"),
        BTreeMap::from([(1, Some(1))])
    );
}

#[test]
fn unknown_checkpoint_is_refused() {
    let (_directory, mut address) = store();
    address.checkpoint.sequence = Some(9);
    assert!(matches!(
        StoredPages::open(&address, None, "test"),
        Err(crate::pages::Error::Store(vmem_store::Error::NoCheckpoint(_)))
    ));
}

#[test]
fn lease_is_given_back_while_a_lane_still_has_the_checkpoint() {
    let (_directory, address) = store();
    let store = address.store.open(None).expect("a store");
    let checkpoint = address.checkpoint.find(&store).expect("a checkpoint");
    let pages = StoredPages::open(&address, None, "test").expect("a checkpoint");
    let source = pages.source(Lane::Urgent).expect("a source");
    let refused = store.remove(&checkpoint).expect_err("it is being read");
    assert!(matches!(refused, vmem_store::Error::BeingRead(_)), "{refused}");
    pages.give_back();
    store.remove(&checkpoint).expect("nobody reads it");
    drop((source, pages));
}
