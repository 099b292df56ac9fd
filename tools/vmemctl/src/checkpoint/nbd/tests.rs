// SPDX-License-Identifier: GPL-2.0-or-later
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
    common: Common,
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
    served_with("", directory, use_it)
}

/// The same, with more options.
fn served_with<T>(options: &str, directory: &Path, use_it: impl FnOnce(&Path) -> T) -> T {
    let socket = &directory.join("nbd");
    let line = format!("nbd {options}--store {0}/store --socket {0}/nbd guest0", directory.display());
    let Line { common, nbd: args } = Line::try_parse_from(line.split(' ')).expect("a command line");
    let signals = Signals::default();
    let ends = Ends(signals.clone());
    thread::scope(move |scope| {
        let server = scope.spawn(move || run(&args, &signals, &common));
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
        assert!(matches!(store.remove(&name), Err(vmem_store::Error::BeingRead { .. })));
    });
    assert!(fs::read(copy).expect("a copy") == memory(), "another image");
}

#[test]
fn clients_over_tls_copy_the_memory_and_others_learn_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path();
    store(place);
    vmem_tls::testing::write(&["localhost"], place);
    vmem_tls::testing::copy_for_others(place);
    let strangers = tempfile::tempdir().expect("a directory");
    vmem_tls::testing::write(&["localhost"], strangers.path());
    vmem_tls::testing::copy_for_others(strangers.path());
    fs::copy(place.join("ca-cert.pem"), strangers.path().join("ca-cert.pem")).expect("a file");
    let run = |words: &[&str]| {
        let mut run = Command::new("timeout");
        run.arg("30")
            .args(words)
            .output()
            .expect("libnbd's tools and qemu-utils are in the root")
    };
    served_with(&format!("--tls {} ", place.display()), place, |socket| {
        let uri = |scheme: &str, certificates: &Path| {
            let (socket, certificates) = (socket.display(), certificates.display());
            format!("{scheme}+unix:///ram?socket={socket}&tls-certificates={certificates}")
        };
        let (protected, copy) = (uri("nbds", place), place.join("copy"));
        let info = run(&["nbdinfo", "--json", &protected]);
        let info = String::from_utf8_lossy(&info.stdout).into_owned() + &String::from_utf8_lossy(&info.stderr);
        assert!(info.contains("\"TLS\": true"), "{info}");
        let copied = run(&["nbdcopy", &protected, &copy.display().to_string()]);
        assert!(copied.status.success(), "{copied:?}");
        assert!(fs::read(&copy).expect("a copy") == memory(), "another image");
        fs::remove_file(&copy).expect("a file");
        let credentials = format!("tls-creds-x509,id=tls,dir={},endpoint=client", place.display());
        let image = format!(
            "driver=nbd,export=ram,server.type=unix,server.path={},tls-creds=tls,tls-hostname=localhost",
            socket.display()
        );
        let words = [
            "qemu-img",
            "convert",
            "--object",
            &credentials,
            "--image-opts",
            &image,
            "-O",
            "raw",
        ];
        let copied = run(&[&words[..], &[&copy.display().to_string()]].concat());
        assert!(copied.status.success(), "{copied:?}");
        assert!(fs::read(&copy).expect("a copy") == memory(), "another image");
        let clear = format!("nbd+unix:///ram?socket={}", socket.display());
        for refused in [clear, uri("nbds", strangers.path())] {
            let output = run(&["nbdinfo", &refused]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(
                !output.status.success() && !text.contains("export-size"),
                "{refused}: {output:?}"
            );
        }
    });
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
