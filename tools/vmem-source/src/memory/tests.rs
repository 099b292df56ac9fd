// SPDX-License-Identifier: GPL-2.0-or-later
//! What is read of memory is what is in it, or is said to be unreadable.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};
use vmem::PAGE_SIZE;

use super::*;
use crate::answer::{Answer, Contents};

/// A memfd, which knows holes, of `size` bytes, in which each of `pages` holds its number plus one.
pub(crate) fn memfd(size: u64, pages: &[u64]) -> File {
    let file = File::from(memfd_create("source", MemfdFlags::CLOEXEC).expect("a memfd"));
    for page in pages {
        let byte = (page % 255) as u8 + 1;
        file.write_all_at(&[byte; PAGE_SIZE], page * PAGE_SIZE as u64).expect("room");
    }
    file.set_len(size).expect("a size");
    file
}

/// What `NAME=PATH` is for an open file.
pub(crate) fn spec(name: &str, file: &File) -> String {
    format!("{name}=/proc/self/fd/{}", file.as_raw_fd())
}

fn open(file: &File) -> Memory {
    Memory::open(&spec("ram", file)).expect("memory")
}

/// All of `memory`, as runs of (first, count, first byte or None).
fn read(memory: &Memory, first: u64, count: u64) -> Vec<(u64, u64, Option<u8>)> {
    let mut found = Vec::new();
    let mut rest = PageRange::from_pgoff(first, count);
    let mut chunk = Chunk::new();
    while let Some(range) = rest {
        chunk.clear();
        rest = memory.read(range, &mut chunk);
        let answer = Answer::new(0, chunk.runs(), chunk.data()).expect("consistent");
        assert!(answer.pages() > 0, "no progress");
        found.extend(answer.contents().map(|(range, contents)| {
            let byte = match contents {
                Contents::Data(data) => Some(data[0]),
                Contents::Zero => Some(0),
                Contents::Unreadable => None,
                other => panic!("{other:?}"),
            };
            (range.first().get(), range.count(), byte)
        }));
    }
    found
}

const MIB: u64 = 1 << 20;

#[test]
fn backing_has_the_whole_pages_of_the_file_and_keeps_its_lock() {
    let file = memfd(MIB, &[3]);
    let pages = |size| {
        file.set_len(size).expect("a size");
        open(&file).backing_file().expect("a descriptor").pages
    };
    assert_eq!(pages(MIB), PageRange::of_pages(256));
    assert_eq!(pages(MIB + 1), PageRange::of_pages(256));
    assert_eq!(pages(MIB - 1), PageRange::of_pages(255));
    assert_eq!(pages(PAGE_SIZE as u64 - 1), None);
    let backing = open(&file).backing_file().expect("a descriptor");
    let records = tempfile::tempdir().expect("a directory");
    let serve = || Memory::open_releasable(&spec("ram", &file), records.path());
    assert!(
        matches!(serve(), Err(Error::InUse { .. })),
        "pages that the kernel reads are freed"
    );
    drop(backing);
    assert!(serve().is_ok());
}

#[test]
fn holes_and_zero_pages_read_as_zero_and_others_as_data() {
    let file = memfd(MIB, &[3, 7]);
    file.write_all_at(&[0; PAGE_SIZE], 5 * PAGE_SIZE as u64).expect("room");
    let memory = open(&file);
    assert_eq!(memory.export().pages.count(), 256);
    let expected = [
        (0, 3, Some(0)),
        (3, 1, Some(4)),
        (4, 3, Some(0)),
        (7, 1, Some(8)),
        (8, 248, Some(0)),
    ];
    assert_eq!(read(&memory, 0, 256), expected);
    assert_eq!(read(&memory, 3, 1), [(3, 1, Some(4))]);
    assert_eq!(read(&memory, 200, 56), [(200, 56, Some(0))]);
}

#[test]
fn data_longer_than_a_chunk_is_read_in_several() {
    let pages: Vec<u64> = (10..300).collect();
    let memory = open(&memfd(2 * MIB, &pages));
    let found = read(&memory, 0, 512);
    assert_eq!(found[0], (0, 10, Some(0)));
    assert_eq!(found[1], (10, 64, Some(11)));
    assert_eq!(found.iter().map(|run| run.1).sum::<u64>(), 512);
    assert_eq!(found.last(), Some(&(300, 212, Some(0))));
}

#[test]
fn last_page_of_a_file_is_padded_with_zeros() {
    let file = memfd(0, &[]);
    file.write_all_at(&[7; PAGE_SIZE + 10], 0).expect("room");
    let memory = open(&file);
    assert_eq!(memory.export().pages.count(), 2);
    let mut chunk = Chunk::new();
    assert_eq!(memory.read(PageRange::from_pgoff(0, 2).expect("a range"), &mut chunk), None);
    assert_eq!(chunk.data().len(), 2 * PAGE_SIZE);
    assert!(chunk.data()[..PAGE_SIZE + 10].iter().all(|byte| *byte == 7));
    assert!(chunk.data()[PAGE_SIZE + 10..].iter().all(|byte| *byte == 0));
}

#[test]
fn pages_of_a_truncated_file_are_unreadable() {
    let file = memfd(10 * PAGE_SIZE as u64, &[0, 1, 2, 3, 4, 9]);
    let memory = open(&file);
    file.set_len(3 * PAGE_SIZE as u64 + 1).expect("a size");
    assert_eq!(read(&memory, 0, 1), [(0, 1, Some(1))]);
    let found = read(&memory, 0, 10);
    assert_eq!(found[0..1], [(0, 3, Some(1))]);
    assert!(found[1..].iter().all(|run| run.2.is_none()), "{found:?}");
    assert_eq!(
        found[1..].iter().map(|run| run.1).sum::<u64>(),
        7,
        "the page that was cut is unreadable as a whole"
    );
    file.set_len(0).expect("a size");
    assert_eq!(read(&memory, 5, 5), [(5, 5, None)]);
}

#[test]
fn pages_appended_after_open_are_not_exported() {
    let file = memfd(PAGE_SIZE as u64, &[0]);
    let memory = open(&file);
    file.set_len(MIB).expect("a size");
    assert_eq!(memory.export().pages.count(), 1);
    assert_eq!(read(&memory, 0, 1), [(0, 1, Some(1))]);
}

#[test]
fn same_file_has_the_same_identity() {
    let (one, other) = (memfd(MIB, &[1]), memfd(MIB, &[1]));
    assert_eq!(open(&one).export(), open(&one).export());
    assert_ne!(open(&one).export().identity, open(&other).export().identity);
}

#[test]
fn fifo_directory_device_and_bad_size_are_refused_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let fifo = directory.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).expect("a FIFO");
    let empty = directory.path().join("empty");
    File::create(&empty).expect("a file");
    let huge = directory.path().join("huge");
    let refused = |path: &Path| {
        Memory::open(&format!("ram={}", path.display()))
            .map(|_| ())
            .expect_err("no memory")
    };
    assert!(matches!(refused(&fifo), Error::NotMemory { .. }));
    assert!(matches!(refused(directory.path()), Error::NotMemory { .. }));
    assert!(matches!(refused(Path::new("/dev/null")), Error::NotMemory { .. }));
    assert!(matches!(refused(&empty), Error::Size { size: 0, .. }));
    assert!(matches!(refused(&huge), Error::File { .. }));
    let file = memfd((1 << 44) + 1, &[]);
    assert!(matches!(
        Memory::open(&spec("ram", &file)).map(|_| ()),
        Err(Error::Size { .. })
    ));
    assert!(matches!(Memory::open("ram").map(|_| ()), Err(Error::Spec(_))));
    assert!(matches!(Memory::open("control=/dev/null").map(|_| ()), Err(Error::Name(_))));
}

/// Not a memfd, which no file system marks.
fn file_in(directory: &Path) -> File {
    let path = directory.join("file");
    std::fs::write(&path, vec![7; 4 * PAGE_SIZE]).expect("a file");
    File::open(path).expect("the file")
}

#[test]
fn releasable_memory_is_locked_to_one_server_and_one_record() {
    let records = tempfile::tempdir().expect("a directory");
    let file = memfd(MIB, &[1]);
    let releasable = |name: &str, file: &File| Memory::open_releasable(&spec(name, file), records.path()).map(|_| ());
    let plain = open(&file);
    assert!(matches!(releasable("a", &file), Err(Error::InUse { .. })));
    assert!(Memory::open(&spec("b", &file)).is_ok(), "who only reads disturbs nobody");
    drop(plain);
    let alone = Memory::open_releasable(&spec("a", &file), records.path()).expect("memory");
    assert!(matches!(releasable("b", &file), Err(Error::InUse { .. })));
    assert!(matches!(
        Memory::open(&spec("b", &file)).map(|_| ()),
        Err(Error::InUse { .. })
    ));
    let other = memfd(MIB, &[1]);
    assert!(
        matches!(releasable("a", &other), Err(Error::File { .. })),
        "the record is in use"
    );
    drop(alone);
    assert!(releasable("a", &file).is_ok());
}

#[test]
fn file_with_released_pages_is_refused_without_its_record() {
    let (directory, records) = (
        tempfile::tempdir().expect("a directory"),
        tempfile::tempdir().expect("a directory"),
    );
    let file = file_in(directory.path());
    if fsetxattr(&file, "user.vmem.test", b"1", XattrFlags::empty()).is_err() {
        // Nothing can be told then, which the man page says.
        return;
    }
    let memory = Memory::open_releasable(&spec("a", &file), records.path()).expect("memory");
    memory.release(PageRange::from_pgoff(1, 1).expect("a range")).expect("a hole");
    drop(memory);
    assert!(matches!(
        Memory::open(&spec("a", &file)).map(|_| ()),
        Err(Error::PagesReleased { .. })
    ));
    assert!(
        Memory::open_releasable(&spec("b", &file), records.path()).is_err(),
        "it has no record"
    );
    let memory = Memory::open_releasable(&spec("a", &file), records.path()).expect("memory");
    assert_eq!(read(&memory, 0, 4), [(0, 1, Some(7)), (1, 1, None), (2, 2, Some(7))]);
}

#[test]
fn new_file_at_the_same_path_has_another_identity() {
    // A file system with few files gives a number again at once.
    let directory = tempfile::tempdir().expect("a directory");
    let before = open(&file_in(directory.path())).export().identity;
    std::fs::remove_file(directory.path().join("file")).expect("a file");
    assert_ne!(open(&file_in(directory.path())).export().identity, before);
}

#[test]
fn failed_hole_leaves_only_its_page_unreadable() {
    let records = tempfile::tempdir().expect("a directory");
    let sealable = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let file = File::from(memfd_create("sealed", sealable).expect("a memfd"));
    file.write_all_at(&[3; 4 * PAGE_SIZE], 0).expect("room");
    let memory = Memory::open_releasable(&spec("a", &file), records.path()).expect("memory");
    rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::WRITE).expect("a seal");
    let error = memory
        .release(PageRange::from_pgoff(1, 1).expect("a range"))
        .expect_err("no hole");
    assert!(matches!(error, Error::PunchHole(_)), "{error:?}");
    assert_eq!(read(&memory, 1, 2), [(1, 1, None), (2, 1, Some(3))]);
}

#[test]
fn only_files_in_the_directories_of_regions_are_in_place_of_one() {
    assert!(!is_in_place_of_a_region(Path::new("/dev/null")));
    assert!(!is_in_place_of_a_region(Path::new("/no/such/file")));
}

#[test]
fn only_eopnotsupp_and_enosys_mean_holes_are_unsupported() {
    for (errno, sure) in [
        (Errno::OPNOTSUPP, true),
        (Errno::NOSYS, true),
        (Errno::IO, false),
        (Errno::PERM, false),
    ] {
        assert_eq!(is_unsupported(&errno.into()), sure, "{errno:?}");
    }
}
