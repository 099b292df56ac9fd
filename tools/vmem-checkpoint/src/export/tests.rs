// SPDX-License-Identifier: GPL-2.0-or-later
//! Exports of a small store.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use vmem::{PAGE_SIZE, PageIndex};
use vmem_qemu::recorded::BEGIN;
use vmem_store::objects::Directory;
use vmem_store::{CommitOptions, InitOptions, OpenOptions, WriteOptions};

use super::*;

const BYTES: usize = 32 << 20;

struct Made {
    place: TempDir,
    store: Store,
    memory: Vec<u8>,
}

impl Made {
    /// `guest0@1` of QEMU, `data@1` of a program, and `bad@1` with a page that could not be read.
    fn new() -> Self {
        let place = tempfile::tempdir().expect("a directory");
        let objects = Arc::new(Directory::new(place.path().join("store")));
        let store = Store::init(objects, &InitOptions::default(), OpenOptions::default()).expect("a store");
        let mut memory = vec![0; BYTES];
        for page in [3_usize, 4, 700, 701, 1500, 8191] {
            memory[page * PAGE_SIZE..(page + 1) * PAGE_SIZE].fill(page as u8 | 1);
        }
        for guest in ["guest0", "data", "bad"] {
            let memories = [("ram".to_owned(), BYTES as u64)];
            let guest_name = guest.parse().expect("a name");
            let writer = store
                .begin(&guest_name, None, &memories, &WriteOptions::default())
                .expect("a writer");
            let page = |pgoff| PageIndex::new(pgoff).expect("a page");
            if guest == "bad" {
                writer.put_unreadable(0, page(0).into()).expect("put");
                writer.put_pages(0, page(1), &memory[PAGE_SIZE..]).expect("put");
            } else {
                writer.put_pages(0, page(0), &memory).expect("put");
            }
            if guest == "guest0" {
                let state = [BEGIN, b"devices"].concat();
                writer.put_blob(DEVICE_STATE, &mut state.as_slice(), 1 << 20).expect("put");
            }
            writer.commit(CommitOptions::default()).expect("a checkpoint");
        }
        Self { place, store, memory }
    }

    fn export(&self, guest: &str, format: Format, to: &str, force: bool) -> Result<PathBuf, String> {
        self.export_part(guest, format, to, force, None)
    }

    fn export_part(&self, guest: &str, format: Format, to: &str, force: bool, part: Option<Part>) -> Result<PathBuf, String> {
        let options = Options {
            format,
            output: self.place.path().join(to),
            force,
            part,
        };
        let mut last = 0;
        let mut report = |progress: Progress| {
            assert!(progress.done > last && progress.done <= progress.size, "{progress:?}");
            last = progress.done;
        };
        let selector = guest.parse().expect("a checkpoint");
        export(&self.store, &selector, &options, &Signals::default(), &mut report)
            .map(|()| options.output)
            .map_err(|error| vmem_cli::chain(&error))
    }

    /// What is beside the store.
    fn others(&self) -> Vec<String> {
        let entries = fs::read_dir(self.place.path()).expect("entries");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .filter(|name| name != "store")
            .collect();
        names.sort();
        names
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).expect("a file")
}

#[test]
fn raw_directory_has_sparse_files_for_the_owner_alone() {
    let made = Made::new();
    let place = made.export("guest0@1", Format::Raw, "out", false).expect("exported");
    assert!(read(&place.join("ram.raw")) == made.memory);
    assert!(read(&place.join("device-state")).ends_with(b"devices"));
    let manifest: serde_json::Value = serde_json::from_slice(&read(&place.join("manifest.json"))).expect("JSON");
    assert_eq!(manifest["checkpoint"]["guest"], "guest0");
    let found = fs::metadata(place.join("ram.raw")).expect("metadata");
    assert!(found.blocks() * 512 <= 64 << 10, "{} blocks", found.blocks());
    assert_eq!(found.mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(place).expect("metadata").mode() & 0o777, 0o700);
    assert_eq!(made.others(), ["out"]);
}

#[test]
fn qemu_file_has_every_page_once() {
    let made = Made::new();
    let place = made.export("guest0", Format::Qemu, "stream", false).expect("exported");
    let stream = read(&place);
    let pages = 6 * (8 + PAGE_SIZE);
    let zeros = (BYTES / PAGE_SIZE - 6) * 9;
    // Without the capability and the addresses of 8 blocks; with a part of the section, and the block's name once.
    let head = BEGIN.len() - (1 + 1 + 26 + 4 + 4 + 1 + 15) - 8 * 8;
    let part = 5 + 4 + zeros + pages + 8 + 5;
    assert_eq!(stream.len(), head + part + b"devices".len());
    assert!(
        made.export("data", Format::Qemu, "other", false)
            .expect_err("no guest")
            .contains("no device state")
    );
    assert_eq!(made.others(), ["stream"]);
}

#[test]
fn firecracker_file_is_the_memory_of_a_program() {
    let made = Made::new();
    let place = made.export("data", Format::Firecracker, "mem", false).expect("exported");
    assert!(read(&place) == made.memory);
    let refused = made
        .export("guest0", Format::Firecracker, "other", false)
        .expect_err("of QEMU");
    assert!(refused.contains("--format qemu"), "{refused}");
}

#[test]
fn page_that_cannot_be_read_and_a_signal_leave_nothing() {
    let made = Made::new();
    for format in [Format::Raw, Format::Firecracker] {
        let failed = made.export("bad", format, "out", false).expect_err("unreadable");
        assert!(
            failed.contains("page 0 of \"ram\"") && failed.contains("unreadable"),
            "{failed}"
        );
    }
    let signals = Signals::default();
    signals.raise();
    let options = Options {
        format: Format::Raw,
        output: made.place.path().join("out"),
        force: false,
        part: None,
    };
    let selector = "data".parse().expect("a checkpoint");
    let stopped = export(&made.store, &selector, &options, &signals, &mut |_| {}).expect_err("a signal");
    assert!(stopped.is_signal(), "{stopped}");
    assert_eq!(made.others(), [""; 0]);
}

#[test]
fn place_that_cannot_be_written_is_an_error() {
    let made = Made::new();
    let failed = made
        .export("data", Format::Firecracker, "none/mem", false)
        .expect_err("no directory");
    assert!(
        failed.contains("cannot write") && failed.contains("nothing is left"),
        "{failed}"
    );
}

#[test]
fn what_is_there_is_replaced_by_force_alone_and_only_by_its_like() {
    let made = Made::new();
    let place = made.export("data", Format::Raw, "out", false).expect("exported");
    let refused = made.export("guest0", Format::Raw, "out", false).expect_err("there");
    assert!(refused.contains("--force"), "{refused}");
    made.export("guest0", Format::Raw, "out", true).expect("replaced");
    assert!(place.join("device-state").exists());
    fs::write(place.join("letter"), "dear").expect("a file");
    let refused = made.export("guest0", Format::Raw, "out", true).expect_err("another file");
    assert!(refused.contains("letter"), "{refused}");
    assert!(place.join("ram.raw").exists() && place.join("letter").exists());
    assert!(
        made.export("data", Format::Firecracker, "out", true)
            .expect_err("a directory")
            .contains("no regular file")
    );
    let file = made.export("data", Format::Firecracker, "mem", false).expect("exported");
    fs::write(&file, "old").expect("a file");
    made.export("data", Format::Firecracker, "mem", false).expect_err("there");
    assert_eq!(read(&file), b"old");
    made.export("data", Format::Firecracker, "mem", true).expect("replaced");
    assert!(read(&file) == made.memory);
    assert_eq!(made.others(), ["mem", "out"]);
}

#[test]
fn part_of_a_memory_is_one_file_that_begins_with_it() {
    const PAGE: u64 = PAGE_SIZE as u64;
    let made = Made::new();
    let part = |memory: &str, bytes: Option<Range<u64>>| {
        let memory = memory.to_owned();
        Some(Part { memory, bytes })
    };
    let all = made
        .export_part("guest0", Format::Raw, "all", false, part("ram", None))
        .expect("a file");
    assert_eq!(fs::read(all).expect("a file"), made.memory);
    // From the middle of a chunk to behind the next one.
    let bytes = 4 * PAGE..702 * PAGE;
    let some = made.export_part("guest0", Format::Raw, "some", false, part("ram", Some(bytes)));
    let some = some.expect("a file");
    assert_eq!(fs::read(&some).expect("a file"), made.memory[4 * PAGE_SIZE..702 * PAGE_SIZE]);
    assert!(
        fs::metadata(&some).expect("a file").blocks() * 512 < 698 * PAGE,
        "its zeros are no holes"
    );

    let refused = |guest, format, part| made.export_part(guest, format, "none", false, part).expect_err("refused");
    assert!(refused("guest0", Format::Raw, part("rom", None)).contains("it has: ram"));
    assert!(refused("guest0", Format::Qemu, part("ram", None)).contains("--format raw only"));
    for bytes in [0..100, 1..PAGE, PAGE..PAGE, 0..BYTES as u64 + PAGE] {
        assert!(refused("guest0", Format::Raw, part("ram", Some(bytes))).contains("are no pages"));
    }
    // What is not in the part need not be readable.
    assert!(refused("bad", Format::Raw, part("ram", Some(0..PAGE))).contains("cannot be read"));
    assert!(
        made.export_part("bad", Format::Raw, "good", false, part("ram", Some(PAGE..2 * PAGE)))
            .is_ok()
    );
}
