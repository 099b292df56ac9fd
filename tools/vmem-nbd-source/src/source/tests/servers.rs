// SPDX-License-Identifier: GPL-2.0-or-later
//! The servers that people use: nbdkit and qemu-nbd.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;

/// A server, until it is dropped.
struct Program(Child);

impl Program {
    /// Starts it, and waits until its socket is there.
    fn start(socket: &Path, command: &mut Command) -> Self {
        let program = Self(
            command
                .stdout(Stdio::null())
                .spawn()
                .expect("a server: nbdkit and qemu-utils are in the root"),
        );
        let since = Instant::now();
        while !socket.exists() {
            assert!(since.elapsed() < LONG, "{command:?} does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        program
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The source, and whether it gives holes.
fn connect(socket: &Path, export: &str, lane: Lane) -> ExportSource {
    let uri: Uri = format!("nbd+unix:///{export}?socket={}", socket.display())
        .parse()
        .expect("a URI");
    Endpoint::new(uri, Security::Loopback, LONG).connect(lane).expect("a source")
}

/// All pages are as they should be, and what is told of holes is right.
fn check_all(source: &mut ExportSource, has_holes: bool) {
    assert_eq!(source.exports()[0].pages, range(0, PAGES));
    assert_eq!(source.can_map(), has_holes);
    let found = fetched(source, &[range(0, 100), range(200, 100)]).expect("pages");
    assert_eq!((found.len(), check(&found)), (200, vec![]));
    if has_holes {
        source.map(0, range(0, PAGES)).expect("a map");
        let holes = holes(source, range(0, PAGES));
        assert!(holes.iter().all(|page| byte(*page) == 0), "{holes:?}");
        assert!((112..192).all(|page| holes.contains(&page)), "{holes:?}");
    }
}

/// A file with the contents, and real holes.
fn sparse(directory: &Path) -> std::path::PathBuf {
    use std::os::unix::fs::FileExt;
    let path = directory.join("ram.raw");
    let file = std::fs::File::create(&path).expect("a file");
    file.set_len(PAGES * PAGE_SIZE as u64).expect("a size");
    for page in (0..PAGES).filter(|page| byte(*page) != 0) {
        file.write_all_at(&[byte(page); PAGE_SIZE], page * PAGE_SIZE as u64)
            .expect("room");
    }
    path
}

#[test]
fn nbdkit_is_read_with_all_it_has_and_without() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = sparse(directory.path());
    for (number, (options, has_holes)) in [
        (&["file"][..], true),
        (&["--no-sr", "file"], false),
        (&["--no-mc", "file"], false),
        (
            &["--mask-handshake=1", "--filter=multi-conn", "file", "multi-conn-mode=disable"],
            true,
        ),
        (&["--filter=noextents", "file"], true),
        (
            &[
                "--filter=blocksize-policy",
                "file",
                "blocksize-minimum=4096",
                "blocksize-maximum=8192",
                "blocksize-error-policy=error",
            ],
            true,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let socket = directory.path().join(format!("s{number}"));
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-r", "-U"]).arg(&socket).args(options).arg(&file);
        let _server = Program::start(&socket, &mut command);
        for lane in [Lane::Urgent, Lane::Stream] {
            let mut source = connect(&socket, "", lane);
            // It knows of no holes, and says that all is data.
            let knows = has_holes && !options.contains(&"--filter=noextents");
            assert_eq!(source.can_map(), has_holes, "{options:?}");
            match knows {
                true => check_all(&mut source, true),
                false => assert_eq!(check(&fetched(&mut source, &[range(0, PAGES)]).expect("pages")), []),
            }
        }
    }
}

#[test]
fn nbdkit_and_qemu_nbd_are_read_over_tls() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path();
    vmem_tls::testing::write(&["localhost"], place);
    vmem_tls::testing::copy_for_others(place);
    let file = sparse(place);
    let connect = |socket: &Path| {
        let uri = format!("nbds+unix:///ram?socket={}", socket.display());
        let identity = vmem_tls::Identity::load(place).expect("an identity");
        Endpoint::new(uri.parse().expect("a URI"), Security::Tls(identity), LONG).connect(Lane::Stream)
    };
    let nbdkit = |options: &[&str], name: &str| {
        let socket = place.join(name);
        let mut command = Command::new("nbdkit");
        command
            .args(["-f", "-r", "-U"])
            .arg(&socket)
            .args(options)
            .arg("file")
            .arg(&file);
        (Program::start(&socket, &mut command), socket)
    };
    let certificates = format!("--tls-certificates={}", place.display());
    let (_server, socket) = nbdkit(&["--tls=require", &certificates, "--tls-verify-peer"], "nbdkit");
    check_all(&mut connect(&socket).expect("a source"), true);

    let socket = place.join("qemu");
    let credentials = format!(
        "tls-creds-x509,id=tls,dir={},endpoint=server,verify-peer=yes",
        place.display()
    );
    let mut command = Command::new("qemu-nbd");
    command.args(["--object", &credentials, "--tls-creds", "tls", "--persistent", "--read-only"]);
    command.args(["--export-name=ram", "--format=raw", "--socket"]);
    let _qemu = Program::start(&socket, command.arg(&socket).arg(&file));
    check_all(&mut connect(&socket).expect("a source"), true);

    // One that does not have it is not used in clear text.
    let (_server, socket) = nbdkit(&["--tls=off"], "clear");
    let error = connect(&socket).map(drop).expect_err("no TLS");
    assert!(
        matches!(&error, Error::Nbd(why) if why.to_string().contains("does not protect")) && !error.is_transient(),
        "{error:?}"
    );
}

#[test]
fn qemu_nbd_is_read_with_raw_and_qcow2_images() {
    let directory = tempfile::tempdir().expect("a directory");
    let raw = sparse(directory.path());
    let qcow2 = directory.path().join("ram.qcow2");
    let converted = Command::new("qemu-img")
        .args(["convert", "-O", "qcow2"])
        .args([&raw, &qcow2])
        .status();
    assert!(converted.expect("qemu-img").success());
    for (format, file) in [("raw", &raw), ("qcow2", &qcow2)] {
        let socket = directory.path().join(format);
        let mut command = Command::new("qemu-nbd");
        command.args([
            "--persistent",
            "--read-only",
            "--shared=4",
            "--export-name=ram",
            "--format",
            format,
            "--socket",
        ]);
        let _server = Program::start(&socket, command.arg(&socket).arg(file));
        for lane in [Lane::Urgent, Lane::Stream] {
            check_all(&mut connect(&socket, "ram", lane), true);
        }
        let uri: Uri = format!("nbd+unix:///other?socket={}", socket.display())
            .parse()
            .expect("a URI");
        let error = Endpoint::new(uri, Security::Loopback, LONG)
            .connect(Lane::Urgent)
            .map(drop)
            .expect_err("no such export");
        let Error::Nbd(why) = &error else { panic!("{error}") };
        assert!(why.to_string().contains("no such export"), "{why}");
    }
}
