// SPDX-License-Identifier: GPL-2.0-or-later
//! Pages that are staged, and what a commit makes of them.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmem::{Name, PAGE_SIZE, PageRange};
use vmem_source::answer::{Kind, Run};
use vmem_source::digest::Key;
use vmem_source::{
    Answer, Error as SourceError, Export, ExportHoles, ExportRanges, Holes, PageSource, Readiness, StagingEvent, StagingSource,
};

use super::memory::{Memory, Page};
use crate::{Error, Seed, Sink, Staged, Staging, Stats, Target};

const PAGES: u64 = 16;
const LIMIT: Duration = Duration::from_secs(10);

/// What a source says, in its order.
enum Say {
    /// Pages from the first on: of this byte each, or zero.
    Data(u64, &'static [u8]),
    Zero(u64, u64),
    Unreadable(u64),
    /// A page whose digest, by the announced key, is that of a page of these bytes.
    Known(u64, u8),
    /// Pages from the first on that are the same as before.
    Same(u64, u64),
    /// Holes of pages from the first on, of which so many are known.
    Holes(u64, u64, &'static [(u64, u64)]),
    Batch(bool),
    Remainder(&'static [(u64, u64)]),
    End,
    Lost,
}

/// A source that says what it is given, once it has been asked often enough.
struct Script {
    exports: Vec<Export>,
    lines: Receiver<Say>,
    asked: Arc<Mutex<u64>>,
    /// What was announced.
    announced: Option<(Key, Vec<u64>)>,
    /// How often a map was asked for, of a source that gives one.
    maps: Option<Arc<Mutex<u64>>>,
    runs: Vec<Run>,
    data: Vec<u8>,
    /// Has a byte for each line, if it is there.
    link: Option<UnixStream>,
}

/// The connection after the rounds. No page is fetched from it here.
struct Rest(Vec<Export>);

fn run(first: u64, count: u64) -> PageRange {
    PageRange::from_pgoff(first, count).expect("a range")
}

fn export() -> Export {
    Export {
        name: Name::new("ram").expect("a name"),
        pages: run(0, PAGES),
        padding: 0,
        identity: 7,
    }
}

impl StagingSource for Script {
    fn exports(&self) -> &[Export] {
        &self.exports
    }

    fn next(&mut self, max: u64) -> Result<(), SourceError> {
        assert!((1..=4096).contains(&max));
        *self.asked.lock().expect("no panic") += 1;
        Ok(())
    }

    fn can_map(&self) -> bool {
        self.maps.is_some()
    }

    fn map(&mut self, export: usize, pages: PageRange) -> Result<(), SourceError> {
        assert_eq!((export, pages), (0, run(0, PAGES)));
        let maps = self.maps.as_ref().expect("a source that can");
        assert_eq!(*self.asked.lock().expect("no panic"), 0, "holes come before the rounds");
        *maps.lock().expect("no panic") += 1;
        Ok(())
    }

    fn can_hash(&self) -> bool {
        true
    }

    fn announce(&mut self, key: &Key, prefixes: &[u64]) -> Result<(), SourceError> {
        self.announced = (!prefixes.is_empty()).then(|| (key.clone(), prefixes.to_vec()));
        Ok(())
    }

    fn readiness(&self) -> Readiness<'_> {
        self.link
            .as_ref()
            .map_or(Readiness::Always, |link| Readiness::When(link.as_fd()))
    }

    fn next_event(&mut self) -> Result<StagingEvent<'_>, SourceError> {
        if let Some(link) = &mut self.link {
            let _ = link.read(&mut [0]);
        }
        let said = self.lines.recv_timeout(LIMIT).unwrap_or(Say::Lost);
        let (range, kind, bytes): (_, _, &[u8]) = match said {
            Say::Data(first, bytes) => (run(first, bytes.len() as u64), Kind::Data, bytes),
            Say::Zero(first, count) => (run(first, count), Kind::Zero, &[]),
            Say::Unreadable(first) => (run(first, 1), Kind::Unreadable, &[]),
            Say::Same(first, count) => (run(first, count), Kind::Same, &[]),
            Say::Known(page, byte) => {
                let (key, prefixes) = self.announced.as_ref().expect("an announcement");
                let digest = key.digest(&[byte; PAGE_SIZE]);
                assert!(prefixes.contains(&digest.prefix()));
                let (range, kind) = (run(page, 1), Kind::Known);
                self.runs = vec![Run { range, kind }];
                self.data = digest.bytes().to_vec();
                return Ok(StagingEvent::Pages(Answer::new(0, &self.runs, &self.data).expect("a digest")));
            }
            Say::Holes(first, count, ranges) => {
                let ranges = ranges.iter().map(|(first, count)| run(*first, *count)).collect();
                let pages = run(first, count);
                let holes = Holes { pages, ranges };
                return Ok(StagingEvent::Holes(ExportHoles { export: 0, holes }));
            }
            Say::Batch(over) => return Ok(StagingEvent::Batch { round: 1, over }),
            Say::Remainder(ranges) => {
                let ranges = ranges.iter().map(|(first, count)| run(*first, *count)).collect();
                return Ok(StagingEvent::Remainder(ExportRanges { export: 0, ranges }));
            }
            Say::End => return Ok(StagingEvent::End),
            Say::Lost => return Err(SourceError::InvalidFetch("lost".to_owned())),
        };
        self.runs = vec![Run { range, kind }];
        self.data = bytes.iter().flat_map(|byte| [*byte; PAGE_SIZE]).collect();
        Ok(StagingEvent::Pages(
            Answer::new(0, &self.runs, &self.data).expect("as many bytes as pages"),
        ))
    }

    fn into_source(self: Box<Self>) -> Box<dyn PageSource> {
        Box::new(Rest(self.exports))
    }
}

impl PageSource for Rest {
    fn exports(&self) -> &[Export] {
        &self.0
    }

    fn fetch(&mut self, _: usize, _: &[PageRange]) -> Result<(), SourceError> {
        Err(SourceError::InvalidFetch("lost".to_owned()))
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::Always
    }

    fn next_answer(&mut self) -> Result<Answer<'_>, SourceError> {
        Err(SourceError::InvalidFetch("lost".to_owned()))
    }
}

/// A region, its staging, and what the source says next.
fn staging(memory: &Arc<Memory>) -> (Staging, Sender<Say>, Arc<Mutex<u64>>) {
    staging_over(memory, None)
}

fn staging_over(memory: &Arc<Memory>, link: Option<UnixStream>) -> (Staging, Sender<Say>, Arc<Mutex<u64>>) {
    staging_with(memory, link, None, None)
}

fn staging_with(
    memory: &Arc<Memory>,
    link: Option<UnixStream>,
    maps: Option<Arc<Mutex<u64>>>,
    seed: Option<Arc<Seed>>,
) -> (Staging, Sender<Say>, Arc<Mutex<u64>>) {
    let (script, lines, asked) = script(link, maps);
    (start(memory, vec![Box::new(script)], seed.as_ref()), lines, asked)
}

fn start(memory: &Arc<Memory>, sources: Vec<Box<dyn StagingSource>>, seed: Option<&Arc<Seed>>) -> Staging {
    let target = Target {
        export: export(),
        name: "ram".to_owned(),
        sink: Arc::clone(memory) as Arc<dyn Sink>,
    };
    let stats = Arc::new(Stats::new().expect("counters"));
    // One batch at a time on each connection.
    Staging::start(&[target], sources, 1, seed, &stats).expect("a thread")
}

/// A source, what it says next, and how often it was asked for pages.
fn script(link: Option<UnixStream>, maps: Option<Arc<Mutex<u64>>>) -> (Script, Sender<Say>, Arc<Mutex<u64>>) {
    let (lines, receiver) = channel();
    let asked = Arc::default();
    let script = Script {
        exports: vec![export()],
        lines: receiver,
        asked: Arc::clone(&asked),
        runs: Vec::new(),
        data: Vec::new(),
        link,
        maps,
        announced: None,
    };
    (script, lines, asked)
}

fn committed(memory: &Arc<Memory>, says: impl IntoIterator<Item = Say>) -> Result<Staged, Error> {
    let (staging, lines, _) = staging(memory);
    says.into_iter().for_each(|say| lines.send(say).expect("a thread"));
    staging.commit(LIMIT)
}

/// Which pages are present, and their first bytes.
fn present(memory: &Memory) -> Vec<(u64, u8)> {
    let (bytes, pages) = memory.contents();
    let at = |(pgoff, page): (usize, &Page)| (*page == Page::Present).then(|| (pgoff as u64, bytes[pgoff * PAGE_SIZE]));
    pages.iter().enumerate().filter_map(at).collect()
}

#[test]
fn nothing_is_present_before_the_commit() {
    let memory = Arc::new(Memory::new(PAGES));
    let (staging, lines, asked) = staging(&memory);
    for say in [Say::Data(0, &[1, 2]), Say::Zero(4, 2), Say::Batch(false)] {
        lines.send(say).expect("a thread");
    }
    super::wait_until(|| *asked.lock().expect("no panic") == 2);
    assert_eq!(present(&memory), []);
    for say in [Say::Batch(true), Say::End] {
        lines.send(say).expect("a thread");
    }
    staging.commit(LIMIT).expect("the list is complete");
    assert_eq!(present(&memory), [(0, 1), (1, 2), (4, 0), (5, 0)]);
}

#[test]
fn page_that_is_sent_again_has_its_last_contents() {
    let memory = Arc::new(Memory::new(PAGES));
    let says = [
        Say::Data(0, &[1, 1, 1, 1]),
        Say::Zero(4, 2),
        Say::Batch(false),
        Say::Data(1, &[2]),
        Say::Zero(2, 1),
        Say::Data(4, &[3]),
        Say::Unreadable(3),
        Say::Batch(true),
        Say::End,
    ];
    committed(&memory, says).expect("the list is complete");
    assert_eq!(present(&memory), [(0, 1), (1, 2), (2, 0), (4, 3), (5, 0)]);
}

#[test]
fn holes_are_staged_as_zero_before_the_rounds_and_replaced_by_them() {
    let (memory, maps) = (Arc::new(Memory::new(PAGES)), Arc::new(Mutex::new(0)));
    let (staging, lines, asked) = staging_with(&memory, None, Some(Arc::clone(&maps)), None);
    super::wait_until(|| *asked.lock().expect("no panic") == 1);
    assert_eq!(*maps.lock().expect("no panic"), 1);
    for say in [
        Say::Holes(0, 5, &[(1, 4)]),
        Say::Holes(5, PAGES - 5, &[(8, 4)]),
        Say::Data(2, &[7]),
        Say::Batch(true),
        Say::Remainder(&[(9, 1)]),
        Say::End,
    ] {
        lines.send(say).expect("a thread");
    }
    staging.commit(LIMIT).expect("the list is complete");
    assert_eq!(present(&memory), [(1, 0), (2, 7), (3, 0), (4, 0), (8, 0), (10, 0), (11, 0)]);
}

#[test]
fn no_other_connection_asks_for_pages_before_all_holes_are_staged() {
    let (memory, maps) = (Arc::new(Memory::new(PAGES)), Arc::new(Mutex::new(0)));
    let (first, lines, _) = script(None, Some(Arc::clone(&maps)));
    let (second, others, asked) = script(None, None);
    let staging = start(&memory, vec![Box::new(first), Box::new(second)], None);
    let say = |to: &Sender<Say>, say| to.send(say).expect("a thread");
    say(&lines, Say::Holes(0, 5, &[(1, 4)]));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(*asked.lock().expect("no panic"), 0, "some holes are not known");
    say(&lines, Say::Holes(5, PAGES - 5, &[(8, 4)]));
    super::wait_until(|| *asked.lock().expect("no panic") == 1);
    // A hole that is written comes over another connection.
    for line in [Say::Data(2, &[7]), Say::Batch(true), Say::End] {
        say(&others, line);
    }
    for line in [Say::Batch(true), Say::Remainder(&[(9, 1)]), Say::End] {
        say(&lines, line);
    }
    staging.commit(LIMIT).expect("the list is complete");
    assert_eq!(present(&memory), [(1, 0), (2, 7), (3, 0), (4, 0), (8, 0), (10, 0), (11, 0)]);
}

#[test]
fn connection_that_is_lost_within_the_map_ends_staging_on_all() {
    let (memory, maps) = (Arc::new(Memory::new(PAGES)), Arc::new(Mutex::new(0)));
    let (first, lines, _) = script(None, Some(maps));
    let (second, _others, asked) = script(None, None);
    let staging = start(&memory, vec![Box::new(first), Box::new(second)], None);
    lines.send(Say::Lost).expect("a thread");
    assert!(matches!(staging.commit(LIMIT), Err(Error::Source(_))));
    assert_eq!(*asked.lock().expect("no panic"), 0);
}

/// An image of pages of these bytes.
fn image_of(bytes: &[u8]) -> (tempfile::NamedTempFile, Arc<Seed>) {
    let file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file");
    let contents: Vec<u8> = bytes.iter().flat_map(|byte| [*byte; PAGE_SIZE]).collect();
    file.as_file().write_all_at(&contents, 0).expect("room");
    let image = std::fs::File::open(file.path()).expect("an image");
    let seed = Seed::start(vec![(file.path().to_owned(), image)]).expect("a thread");
    super::wait_until(|| seed.is_complete());
    (file, seed)
}

#[test]
fn known_pages_are_copied_from_the_image_and_same_ones_stay() {
    let memory = Arc::new(Memory::new(PAGES));
    let (_file, seed) = image_of(&[5, 6, 7]);
    let (staging, lines, _) = staging_with(&memory, None, None, Some(seed));
    for say in [
        Say::Known(3, 6),
        Say::Data(4, &[9, 9]),
        Say::Zero(6, 1),
        Say::Batch(false),
        Say::Known(4, 7),
        Say::Same(5, 1),
        Say::Same(3, 1),
        // Pages that are not staged with contents: a source that says this of them is wrong, or there was no memory.
        Say::Same(6, 2),
        Say::Batch(true),
        Say::End,
    ] {
        lines.send(say).expect("a thread");
    }
    staging.commit(LIMIT).expect("the list is complete");
    assert_eq!(present(&memory), [(3, 6), (4, 7), (5, 9)]);
}

#[test]
fn known_page_that_the_image_has_no_more_stays_absent_also_if_it_comes_as_the_same() {
    let memory = Arc::new(Memory::new(PAGES));
    let (file, seed) = image_of(&[5, 6, 7]);
    let (staging, lines, asked) = staging_with(&memory, None, None, Some(Arc::clone(&seed)));
    lines.send(Say::Data(3, &[1, 1, 1])).expect("a thread");
    lines.send(Say::Batch(false)).expect("a thread");
    super::wait_until(|| *asked.lock().expect("no panic") == 2);
    file.as_file().write_all_at(&[8], PAGE_SIZE as u64 + 9).expect("room");
    for say in [Say::Known(3, 6), Say::Same(3, 2), Say::Batch(true), Say::End] {
        lines.send(say).expect("a thread");
    }
    staging.commit(LIMIT).expect("the list is complete");
    assert_eq!(present(&memory), [(4, 1), (5, 1)]);
    assert!(seed.failure().is_some_and(|why| why.contains("has changed")));
}

#[test]
fn remainder_stays_absent_and_is_fetched_in_its_order() {
    let memory = Arc::new(Memory::new(PAGES));
    let says = [
        Say::Data(0, &[1, 1, 1, 1]),
        Say::Zero(8, 4),
        Say::Batch(true),
        Say::Remainder(&[(9, 2), (15, 1)]),
        Say::Remainder(&[(0, 1), (2, 1)]),
        Say::End,
    ];
    let staged = committed(&memory, says).expect("the list is complete");
    assert_eq!(present(&memory), [(1, 1), (3, 1), (8, 0), (11, 0)]);
    let order: VecDeque<_> = [(9, 2), (15, 1), (0, 1), (2, 1)]
        .map(|(first, count)| (0, run(first, count)))
        .into();
    assert_eq!(staged.remainder, order);
    assert_eq!(staged.sources[0].exports(), [export()]);
}

#[test]
fn page_without_memory_is_absent_whatever_was_staged_of_it_before() {
    let memory = Arc::new(Memory::new(PAGES));
    let (staging, lines, asked) = staging(&memory);
    for say in [Say::Data(0, &[1, 1]), Say::Batch(false)] {
        lines.send(say).expect("a thread");
    }
    super::wait_until(|| *asked.lock().expect("no panic") == 2);
    memory.set_room(0);
    for say in [Say::Data(1, &[2]), Say::Batch(false)] {
        lines.send(say).expect("a thread");
    }
    super::wait_until(|| *asked.lock().expect("no panic") == 3);
    memory.set_room(u64::MAX);
    for say in [Say::Batch(true), Say::End] {
        lines.send(say).expect("a thread");
    }
    staging.commit(LIMIT).expect("the list is complete");
    assert_eq!(present(&memory), [(0, 1)]);
}

#[test]
fn source_that_is_lost_before_the_end_of_the_list_commits_nothing() {
    for says in [
        vec![Say::Data(0, &[1])],
        vec![Say::Data(0, &[1]), Say::Batch(true)],
        vec![Say::Data(0, &[1]), Say::Batch(true), Say::Remainder(&[(1, 1)])],
    ] {
        let memory = Arc::new(Memory::new(PAGES));
        let failed = committed(&memory, says.into_iter().chain([Say::Lost]));
        assert!(matches!(failed, Err(Error::Source(SourceError::InvalidFetch(_)))));
        assert_eq!(present(&memory), []);
    }
}

#[test]
fn failure_is_known_before_the_commit() {
    let memory = Arc::new(Memory::new(PAGES));
    let (mut staging, lines, _) = staging(&memory);
    assert!(staging.failure().is_none());
    lines.send(Say::Lost).expect("a thread");
    let mut failure = None;
    super::wait_until_mut(|| {
        failure = staging.failure();
        failure.is_some()
    });
    assert!(matches!(failure, Some(Error::Source(SourceError::InvalidFetch(_)))));
}

#[test]
fn remainder_that_does_not_come_ends_the_commit_at_its_limit() {
    let memory = Arc::new(Memory::new(PAGES));
    let (staging, lines, _) = staging(&memory);
    lines.send(Say::Data(0, &[1])).expect("a thread");
    let failed = staging.commit(Duration::from_millis(50));
    assert!(matches!(failed, Err(Error::NoRemainder(_))));
    assert_eq!(present(&memory), []);
}

#[test]
fn source_that_is_lost_after_the_list_is_a_failure_before_the_commit_and_in_it() {
    for is_asked in [true, false] {
        let memory = Arc::new(Memory::new(PAGES));
        let (source, link) = UnixStream::pair().expect("sockets");
        let staging_end = link.try_clone().expect("a descriptor");
        let (mut staging, lines, asked) = staging_over(&memory, Some(link));
        for say in [Say::Data(0, &[1]), Say::Batch(true), Say::End] {
            (&source).write_all(b".").expect("room");
            lines.send(say).expect("a thread");
        }
        // All has been read: what comes now comes after the list.
        let unread = || rustix::io::ioctl_fionread(staging_end.as_fd()).expect("a socket");
        super::wait_until(|| unread() == 0);
        super::wait_until(|| *asked.lock().expect("no panic") == 1);
        assert!(staging.failure().is_none());
        drop(source);
        lines.send(Say::Lost).expect("a thread");
        let failure = match is_asked {
            true => staging.failure(),
            false => staging.commit(LIMIT).err(),
        };
        assert!(
            matches!(failure, Some(Error::Source(SourceError::InvalidFetch(_)))),
            "{is_asked}"
        );
        assert_eq!(present(&memory), []);
    }
}
