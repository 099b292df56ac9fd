// SPDX-License-Identifier: GPL-2.0
//! A checkpoint in a directory, and `qemu-img` as the client.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use vmem_store::testing::packs;
use vmem_store::{CommitOptions, InitOptions, OpenOptions, Store, WriteOptions};

use super::*;

const PAGE: usize = vmem::PAGE_SIZE;
const PAGES: usize = 3000;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    nbd: Nbd,
}

/// What the memory is full of: every third 64 KiB are zero.
fn memory() -> Vec<u8> {
    (0..PAGES * PAGE)
        .map(|at| if at / (16 * PAGE) % 3 == 0 { 0 } else { (at / 64) as u8 | 1 })
        .collect()
}

/// A store with checkpoint guest0@1.
fn store(directory: &Path) -> Location {
    let location: Location = directory.join("store").display().to_string().parse().expect("a place");
    let objects = location.objects().expect("a place");
    let store = Store::init(objects, &InitOptions::default(), OpenOptions::default()).expect("a store");
    let memories = [("ram".to_owned(), (PAGES * PAGE) as u64)];
    let guest = "guest0".parse().expect("a name");
    let writer = store
        .begin(&guest, None, &memories, &WriteOptions::default())
        .expect("a writer");
    let first = vmem::PageIndex::new(0).expect("a page");
    writer.put_pages(0, first, &memory()).expect("room");
    writer.put_blob("device-state", &mut &b"devices"[..], 100).expect("room");
    writer.commit(CommitOptions::default()).expect("a checkpoint");
    location
}

/// Ends the server also if the test fails: the server's thread is waited for.
struct Ends(Signals);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.raise();
    }
}

/// Runs `use_it` while the checkpoint is served at a socket.
fn served<T>(directory: &Path, use_it: impl FnOnce(&Path) -> T) -> T {
    let socket = &directory.join("nbd");
    let line = format!("nbd --store {0}/store --socket {0}/nbd guest0", directory.display());
    let args = Line::try_parse_from(line.split(' ')).expect("a command line").nbd;
    let signals = Signals::default();
    let ends = Ends(signals.clone());
    thread::scope(move |scope| {
        let server = scope.spawn(move || run(&args, &signals, false));
        let until = Instant::now() + Duration::from_secs(20);
        while !socket.exists() && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
        let used = use_it(socket);
        drop(ends);
        server.join().expect("no panic").expect("it ends by the signal");
        assert!(!socket.exists());
        used
    })
}

fn qemu_img(command: &str, socket: &Path, rest: &[&str]) -> Output {
    let uri = format!("nbd+unix:///ram?socket={}", socket.display());
    let words = command.split(' ');
    // A server that does not answer fails the test.
    let mut run = Command::new("timeout");
    run.args(["30", "qemu-img"])
        .args(words)
        .arg(uri)
        .args(rest)
        .output()
        .expect("qemu-utils are in the test root")
}

#[test]
fn qemu_img_copies_the_memory_and_sees_its_holes() {
    let directory = tempfile::tempdir().expect("a directory");
    let location = store(directory.path());
    let copy = directory.path().join("copy");
    served(directory.path(), |socket| {
        let mode = fs::metadata(socket).expect("a socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "for its owner only");
        let copied = qemu_img("convert -f raw -O raw", socket, &[&copy.display().to_string()]);
        assert!(copied.status.success(), "{copied:?}");
        let map = qemu_img("map -f raw --output=json", socket, &[]);
        let map: serde_json::Value = serde_json::from_slice(&map.stdout).expect("a map");
        let first: Vec<_> = map.as_array().expect("extents").iter().take(3).cloned().collect();
        let fields = |extent: &serde_json::Value| (extent["start"].as_u64(), extent["length"].as_u64(), extent["zero"].as_bool());
        let (piece, data) = (16 * PAGE as u64, 32 * PAGE as u64);
        assert_eq!(fields(&first[0]), (Some(0), Some(piece), Some(true)));
        assert_eq!(fields(&first[1]), (Some(piece), Some(data), Some(false)));
        // A reader's lease.
        let store = location.open(None).expect("a store");
        let name = store.latest(&"guest0".parse().expect("a name")).expect("a checkpoint");
        assert!(matches!(store.remove(&name), Err(vmem_store::Error::BeingRead(_))));
    });
    assert!(fs::read(copy).expect("a copy") == memory(), "another image");
}

#[test]
fn damaged_page_is_an_error_of_the_client_and_never_zeros() {
    let directory = tempfile::tempdir().expect("a directory");
    store(directory.path());
    let pack = packs(directory.path()).remove(0);
    let mut bytes = fs::read(&pack).expect("a pack");
    bytes[40] ^= 1;
    fs::remove_file(&pack).expect("a pack");
    fs::write(&pack, bytes).expect("a pack");
    let copy = directory.path().join("copy");
    served(directory.path(), |socket| {
        let copied = qemu_img("convert -f raw -O raw", socket, &[&copy.display().to_string()]);
        let text = String::from_utf8_lossy(&copied.stderr);
        assert!(!copied.status.success() && text.contains("Input/output error"), "{copied:?}");
    });
}
