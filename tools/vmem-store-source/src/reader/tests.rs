// SPDX-License-Identifier: GPL-2.0-or-later
//! Checkpoints in a directory, as sources.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use vmem::{PAGE_SIZE, PageIndex};
use vmem_source::Contents;
use vmem_source::holes::MAX_HOLES;
use vmem_store::objects::{Fetched, Memory, ObjectError, ObjectMeta, Objects, Part, Put};
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
    write(&store);
    (directory, address)
}

/// Writes checkpoint guest0@1.
fn write(store: &Store) {
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

/// A place whose packs take long to read.
#[derive(Debug)]
struct Slow(Memory);

impl Objects for Slow {
    fn put(&self, name: &str, bytes: &[u8], put: Put) -> Result<(), ObjectError> {
        self.0.put(name, bytes, put)
    }

    fn get(&self, name: &str, part: Part) -> Result<Fetched, ObjectError> {
        if name.starts_with("packs/") {
            thread::sleep(Duration::from_millis(100));
        }
        self.0.get(name, part)
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        self.0.list(prefix)
    }

    fn delete(&self, name: &str) -> Result<(), ObjectError> {
        self.0.delete(name)
    }
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
fn index_says_which_pages_are_zero() {
    let (_directory, address) = store();
    let pages = StoredPages::open(&address, None, "test").expect("a checkpoint");
    let mut source = pages.source(Lane::Stream).expect("a source");
    source.map(0, range(0, 150)).expect("pages");
    source.fetch(0, &[range(1, 1)]).expect("pages");
    source.map(0, range(150, 150)).expect("pages");
    let (mut holes, mut mapped, mut read) = (Vec::new(), Vec::new(), 0);
    while mapped.iter().map(|pages: &PageRange| pages.count()).sum::<u64>() < PAGES || read == 0 {
        match source.next_reply().expect("an answer") {
            Reply::Pages(answer) => read += answer.pages(),
            Reply::Holes(found) => {
                mapped.push(found.holes.pages);
                holes.extend(found.holes.ranges.iter().flat_map(|range| range.iter()));
            }
        }
    }
    assert_eq!(mapped, [range(0, 150), range(150, 150)], "in the order of the questions");
    let zeros: Vec<u64> = (0..PAGES).filter(|page| byte(*page) == 0).collect();
    assert_eq!(holes.into_iter().map(PageIndex::get).collect::<Vec<_>>(), zeros);
    assert!(source.map(0, range(299, 2)).is_err() && source.map(1, range(0, 1)).is_err());
    source.map(0, range(0, 1)).expect("a page");
    assert!(source.next_answer().is_err(), "no pages");
}

#[test]
fn map_with_many_holes_comes_in_pieces() {
    const MANY: u64 = 2 * MAX_HOLES as u64 + 100;
    let place = Arc::new(Memory::new());
    let store = Store::init(place, &InitOptions::default(), OpenOptions::default()).expect("a store");
    let memories = [("ram".to_owned(), 2 * MANY * PAGE_SIZE as u64)];
    let guest = "guest0".parse().expect("a name");
    let begun = store.begin(&guest, None, &memories, &WriteOptions::default());
    let writer = begun.expect("a writer");
    let contents: Vec<u8> = (0..2 * MANY).flat_map(|page| [(page % 2) as u8; PAGE_SIZE]).collect();
    let first = PageIndex::new(0).expect("a page");
    writer.put_pages(0, first, &contents).expect("room");
    writer.put_blob("device-state", &mut &b"devices"[..], 100).expect("room");
    writer.commit(CommitOptions::default()).expect("a checkpoint");
    let checkpoint = "guest0".parse().expect("a name");
    let pages = StoredPages::open_in(store, &checkpoint, "test", Arc::new(|| Ok(()))).expect("a checkpoint");
    let mut source = pages.source(Lane::Stream).expect("a source");
    source.map(0, range(0, 2 * MANY)).expect("pages");
    let (mut next, mut holes) = (0, 0);
    while next < 2 * MANY {
        let Reply::Holes(found) = source.next_reply().expect("an answer") else {
            panic!("nothing was fetched")
        };
        assert_eq!(found.holes.pages.first().get(), next, "one piece after the other");
        assert!(found.holes.ranges.len() <= MAX_HOLES);
        let within = |hole: &PageRange| hole.first().get() % 2 == 0 && hole.count() == 1 && hole.end() <= found.holes.pages.end();
        assert!(found.holes.ranges.iter().all(within));
        (next, holes) = (found.holes.pages.end(), holes + found.holes.count());
    }
    assert_eq!(holes, MANY);
}

#[test]
fn pages_of_the_same_frame_are_near_for_those_who_wait() {
    let (_directory, address) = store();
    let pages = StoredPages::open(&address, None, "test").expect("a checkpoint");
    for (lane, is_urgent) in [(Lane::Urgent, true), (Lane::Stream, false)] {
        let mut source = pages.source(lane).expect("a source");
        assert_eq!(source.nearby(), []);
        fetched(&mut source, &[range(7, 1)]).expect("a page");
        let near: Vec<u64> = source
            .nearby()
            .iter()
            .flat_map(|(_, pages)| pages.iter())
            .map(PageIndex::get)
            .collect();
        // 16 pages that are not zero are in a frame, and two of three are not.
        let of_frame: Vec<u64> = (0..24).filter(|page| byte(*page) != 0 && *page != 7 && is_urgent).collect();
        assert_eq!(near, of_frame);
        assert_eq!(source.nearby(), [], "once");
        source.skip_nearby();
        fetched(&mut source, &[range(10, 1)]).expect("a page");
        assert_eq!(source.nearby(), [], "not sought any more");
    }
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
    let none: Order = Arc::new(|| Ok(Vec::new()));
    let mut source = ImageSource::new(Arc::new(image), exports, vec![backend], comes_back, none, Lane::Urgent).expect("a source");
    assert_eq!(
        fetched(&mut source, &[range(1, 1)]).expect("a page"),
        BTreeMap::from([(1, Some(1))])
    );
}

#[test]
fn page_that_both_lanes_want_is_read_from_the_store_once() {
    let place = Arc::new(Slow(Memory::new()));
    let store = Store::init(place.clone(), &InitOptions::default(), OpenOptions::default()).expect("a store");
    write(&store);
    let reads = |lanes: &[Lane]| {
        let before = place.0.counts();
        let checkpoint = "guest0".parse().expect("a name");
        let pages = StoredPages::open_in(store.clone(), &checkpoint, "test", Arc::new(|| Ok(()))).expect("a checkpoint");
        let mut sources: Vec<_> = lanes.iter().map(|lane| pages.source(*lane).expect("a source")).collect();
        // The second asks while the first is reading.
        for source in &mut sources {
            source.fetch(0, &[range(1, 2)]).expect("pages");
        }
        for source in &mut sources {
            assert_eq!(source.next_answer().expect("pages").pages(), 2);
        }
        let after = place.0.counts();
        (after.gets - before.gets, after.read - before.read)
    };
    let alone = reads(&[Lane::Stream]);
    assert_eq!(reads(&[Lane::Stream, Lane::Urgent]), alone);
}

#[test]
fn recorded_order_comes_first_and_then_what_is_left_as_it_is_stored() {
    let (_directory, address) = store();
    let store = address.store.open(None).expect("a store");
    let image = store
        .image(&address.checkpoint.find(&store).expect("a checkpoint"))
        .expect("a checkpoint");
    let backend = image.manifest().backend("ram").expect("a memory").0;
    // Page 198 is of zeros, which nobody reads from the store.
    let touched = [range(197, 3), range(10, 1)].map(|pages| Touch { backend, pages });
    store.record_order(&image, &touched).expect("room");
    let pages = StoredPages::open(&address, None, "test").expect("a checkpoint");
    let preferred = pages.source(Lane::Stream).expect("a source").preferred();
    assert_eq!(
        preferred[..4],
        [(0, range(197, 1)), (0, range(199, 1)), (0, range(10, 1)), (0, range(1, 2))]
    );
    let all: u64 = preferred.iter().map(|(_, pages)| pages.count()).sum();
    let with_contents = (0..PAGES).filter(|page| byte(*page) != 0).count() as u64;
    assert_eq!(all, with_contents, "each page with contents once");
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
    assert!(matches!(refused, vmem_store::Error::BeingRead { .. }), "{refused}");
    pages.give_back();
    store.remove(&checkpoint).expect("nobody reads it");
    drop((source, pages));
}
