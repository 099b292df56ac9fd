// SPDX-License-Identifier: GPL-2.0-or-later
//! Exports of servers with different features, as sources.

mod protected;
mod servers;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmem::PAGE_SIZE;
use vmem_nbd::testing::{Features, Server};
use vmem_source::endpoint::Security;
use vmem_source::{Contents, Lane};

use super::*;
use crate::{Endpoint, Uri};

const PAGES: u64 = 300;
const LONG: Duration = Duration::from_secs(30);

/// Page N is full of the byte N, but every third one is zero, and so is a run from page 100 to 199.
fn byte(page: u64) -> u8 {
    if page % 3 == 0 || (100..200).contains(&page) {
        0
    } else {
        page as u8 | 1
    }
}

fn contents(bytes: usize) -> Vec<u8> {
    let mut contents: Vec<u8> = (0..PAGES).flat_map(|page| [byte(page); PAGE_SIZE]).collect();
    contents.truncate(bytes);
    contents
}

struct Test {
    _directory: tempfile::TempDir,
    server: Server,
    endpoint: Endpoint,
}

fn test(features: Features) -> Test {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("s");
    let server = Server::start(&path, features);
    let uri: Uri = format!("nbd+unix:///ram?socket={}", path.display()).parse().expect("a URI");
    Test {
        server,
        endpoint: Endpoint::new(uri, Security::Loopback, LONG),
        _directory: directory,
    }
}

fn range(first: u64, count: u64) -> PageRange {
    PageRange::from_pgoff(first, count).expect("pages")
}

/// Waits as the engine does, until there is a reply.
fn wait(source: &ExportSource) {
    let Readiness::When(fd) = source.readiness() else {
        panic!("it is read over a network")
    };
    let limit = Timespec::try_from(LONG).expect("a time");
    let ready = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&limit)).expect("a poll");
    assert_eq!(ready, 1, "nothing comes");
}

fn is_readable(source: &ExportSource) -> bool {
    let Readiness::When(fd) = source.readiness() else {
        panic!("it is read over a network")
    };
    let now = Timespec::default();
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&now)).expect("a poll") > 0
}

/// Fetches these pages. The bytes of each: `None` for an unreadable one.
fn fetched(source: &mut ExportSource, ranges: &[PageRange]) -> Result<BTreeMap<u64, Option<Vec<u8>>>, Error> {
    source.fetch(0, ranges)?;
    let wanted: u64 = ranges.iter().map(|range| range.count()).sum();
    let mut found = BTreeMap::new();
    while (found.len() as u64) < wanted {
        wait(source);
        for (pages, contents) in source.next_answer()?.contents() {
            for (at, page) in pages.iter().enumerate() {
                let bytes = match contents {
                    Contents::Zero => Some(vec![0; PAGE_SIZE]),
                    Contents::Data(data) => Some(data[at * PAGE_SIZE..(at + 1) * PAGE_SIZE].to_vec()),
                    Contents::Unreadable => None,
                    Contents::Known(_) | Contents::Same => panic!("a server knows nothing of its readers"),
                };
                assert!(found.insert(page.get(), bytes).is_none(), "{page} twice");
            }
        }
    }
    assert!(!is_readable(source), "nothing is left");
    Ok(found)
}

/// Whether all pages are as they should be, and those that are not there.
fn check(found: &BTreeMap<u64, Option<Vec<u8>>>) -> Vec<u64> {
    for (page, bytes) in found {
        let right = |bytes: &Vec<u8>| bytes.iter().all(|found| *found == byte(*page));
        assert!(bytes.as_ref().is_none_or(right), "page {page}");
    }
    found
        .iter()
        .filter(|(_, bytes)| bytes.is_none())
        .map(|(page, _)| *page)
        .collect()
}

#[test]
fn each_page_is_answered_once_whatever_the_server_has() {
    let all = contents(usize::MAX);
    let kinds = [
        Features::all(all.clone()),
        Features::none(all.clone()),
        Features {
            structured: true,
            ..Features::none(all.clone())
        },
        Features {
            blocks: Some([512, 4096, 65536]),
            ..Features::all(all.clone())
        },
        // Less than a page at a time, and blocks of many pages.
        Features {
            blocks: Some([512, 512, 1536]),
            ..Features::all(all.clone())
        },
        Features {
            blocks: Some([65536, 65536, 65536]),
            ..Features::none(contents(18 << 16))
        },
        Features {
            blocks: Some([16384, 16384, 32 << 20]),
            ..Features::all(contents(18 << 16))
        },
    ];
    for features in kinds {
        let size = features.contents.len() as u64 / PAGE_SIZE as u64;
        let test = test(features);
        for lane in [Lane::Stream, Lane::Urgent] {
            let mut source = test.endpoint.connect(lane).expect("a source");
            assert_eq!(source.exports()[0].pages, range(0, size));
            let found = fetched(&mut source, &[range(0, 150), range(201, size - 201)]).expect("pages");
            assert_eq!((found.len() as u64, check(&found)), (size - 51, vec![]));
            let one = fetched(&mut source, &[range(7, 1)]).expect("a page");
            assert_eq!((one.len(), check(&one)), (1, vec![]));
        }
    }
}

#[test]
fn what_an_export_lacks_of_its_last_page_is_zeros() {
    for blocks in [[1, 4096, 32 << 20], [512, 512, 4096], [65536, 65536, 65536]] {
        let size = 200 * PAGE_SIZE + 12 * PAGE_SIZE + 1000;
        let test = test(Features {
            blocks: Some(blocks),
            ..Features::all(contents(size))
        });
        let mut source = test.endpoint.connect(Lane::Urgent).expect("a source");
        assert_eq!(source.exports()[0].pages, range(0, 213));
        let found = fetched(&mut source, &[range(211, 2)]).expect("pages");
        let last = found[&212].as_ref().expect("it can be read");
        assert!(last[..1000].iter().all(|found| *found == byte(212)) && byte(212) != 0);
        assert!(last.len() == PAGE_SIZE && last[1000..].iter().all(|byte| *byte == 0));
        source.map(0, range(200, 13)).expect("a map");
        let holes = holes(&mut source, range(200, 13));
        // A block of 64 KiB has pages that are not zero.
        assert!(
            !holes.contains(&212) && holes.contains(&210) == (blocks[0] < 4096),
            "{holes:?}"
        );
    }
}

#[test]
fn page_with_an_error_is_unreadable_and_the_others_are_read() {
    let bad: Vec<Range<u64>> = [5, 70, 299].map(|page: u64| page * 4096 + 100..page * 4096 + 101).to_vec();
    for features in [Features::all(contents(usize::MAX)), Features::none(contents(usize::MAX))] {
        let test = test(Features {
            bad: bad.clone(),
            ..features
        });
        let mut source = test.endpoint.connect(Lane::Stream).expect("a source");
        let found = fetched(&mut source, &[range(0, PAGES)]).expect("pages");
        assert_eq!(check(&found), [5, 70, 299], "no zeros for what is lost");
    }
}

/// The pages of the holes that are told of `pages`, all of which a map was asked for.
fn holes(source: &mut ExportSource, pages: PageRange) -> Vec<u64> {
    let (mut found, mut next) = (Vec::new(), pages.first().get());
    while next < pages.end() {
        wait(source);
        match source.next_reply().expect("holes") {
            Reply::Holes(holes) => {
                assert_eq!(holes.holes.pages.first().get(), next, "in their order");
                next = holes.holes.pages.end();
                for range in &holes.holes.ranges {
                    assert!(range.first() >= holes.holes.pages.first() && range.end() <= next);
                    found.extend(range.iter().map(|page| page.get()));
                }
            }
            Reply::Pages(_) => panic!("no pages were asked for"),
        }
    }
    assert!(!is_readable(source), "nothing is left");
    found
}

#[test]
fn holes_are_those_of_the_server_in_the_order_of_the_questions() {
    for (max_extents, blocks) in [
        (usize::MAX, [1, 4096, 4096]),
        (3, [1, 4096, 4096]),
        (1, [4096, 4096, 4096]),
        (1, [16384, 16384, 16384]),
    ] {
        let of_block = u64::from(blocks[0].max(4096)) / PAGE_SIZE as u64;
        let is_zero = |page: &u64| {
            let first = page - page % of_block;
            (first..first + of_block).all(|page| byte(page) == 0)
        };
        let zeros: Vec<u64> = (0..PAGES).filter(is_zero).collect();
        let features = Features {
            max_extents,
            blocks: Some(blocks),
            ..Features::all(contents(usize::MAX))
        };
        let test = test(features);
        let mut source = test.endpoint.connect(Lane::Stream).expect("a source");
        assert!(source.can_map());
        source.map(0, range(0, 10)).expect("a map");
        source.map(0, range(10, PAGES - 10)).expect("a map");
        assert_eq!(holes(&mut source, range(0, PAGES)), zeros, "{max_extents} {blocks:?}");
        assert!(test.server.seen().reads.is_empty());
        assert!(source.map(0, range(0, PAGES + 1)).is_err() && source.map(1, range(0, 1)).is_err());
    }
    let test = test(Features::none(contents(usize::MAX)));
    let mut source = test.endpoint.connect(Lane::Stream).expect("a source");
    assert!(!source.can_map() && source.map(0, range(0, 1)).is_err());
}

#[test]
fn lanes_have_connections_of_their_own_where_the_server_allows_it() {
    for (can_multi_conn, connections) in [(true, 3), (false, 1)] {
        let test = test(Features {
            can_multi_conn,
            ..Features::all(contents(usize::MAX))
        });
        let mut sources = [Lane::Urgent, Lane::Stream, Lane::Stream].map(|lane| test.endpoint.connect(lane).expect("a source"));
        for source in &mut sources {
            assert_eq!(check(&fetched(source, &[range(0, PAGES)]).expect("pages")), []);
        }
        assert_eq!(test.server.seen().connections, connections);
    }
}

#[test]
fn lost_connection_is_made_again_once_for_all_lanes() {
    let test = test(Features::none(contents(usize::MAX)));
    let connect = || [Lane::Urgent, Lane::Stream].map(|lane| test.endpoint.connect(lane).expect("a source"));
    let mut sources = connect();
    test.server.hang_up();
    for source in &mut sources {
        // Also if nothing is outstanding.
        wait(source);
        let error = source.next_answer().map(drop).expect_err("it is lost");
        assert!(error.is_transient() && error.is_lost(), "{error}");
        assert!(source.fetch(0, &[range(0, 1)]).is_err());
    }
    for source in &mut connect() {
        assert_eq!(check(&fetched(source, &[range(0, PAGES)]).expect("pages")), []);
    }
    assert_eq!(test.server.seen().connections, 2);
}

#[test]
fn export_that_has_another_size_later_is_another_memory() {
    let test = test(Features::none(contents(5000)));
    let before = test.endpoint.connect(Lane::Urgent).expect("a source").exports()[0].clone();
    test.server.change(|features| features.contents = contents(5001));
    let after = test.endpoint.connect(Lane::Urgent).expect("a source").exports()[0].clone();
    assert!(before != after && before.pages == after.pages, "the engine compares exports");
}

#[test]
fn export_without_bytes_is_refused() {
    let test = test(Features::none(Vec::new()));
    let error = test.endpoint.connect(Lane::Urgent).map(drop).expect_err("no pages");
    assert!(
        matches!(&error, Error::Nbd(why) if why.to_string().contains("0 bytes")) && !error.is_transient(),
        "{error}"
    );
}

#[test]
fn socket_can_be_in_the_abstract_namespace() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let name = format!("vmem-nbd-source-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let listener = UnixListener::bind_addr(&address).expect("a socket");
    let uri: Uri = format!("nbd+unix:///ram?socket=%00{name}").parse().expect("a URI");
    let connects = std::thread::spawn(move || Endpoint::new(uri, Security::Loopback, LONG).connect(Lane::Urgent).map(drop));
    drop(listener.accept().expect("a client"));
    assert!(matches!(connects.join().expect("no panic"), Err(Error::Closed { .. })));
}
