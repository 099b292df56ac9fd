// SPDX-License-Identifier: GPL-2.0-or-later
//! A checkpoint over NBD: read by the tools that people use, by the kernel, and by vmemd.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;

use vmem::PAGE_SIZE;

use super::store::{Store, memory_of};
use crate::certificates::Certificates;
use crate::failure::{Outcome, ensure, equal};
use crate::suite::vmemd::{Daemon, Process, Scratch, check_page, map, open};
use crate::world::{run_command, wait_until};

const PAGES: u64 = 1000;
const SIZE: u64 = PAGES * PAGE_SIZE as u64;
const SOCKET: &str = "/run/vmem-checkpoint-nbd";
const DISK: &str = "/dev/nbd0";

/// `vmemctl checkpoint nbd` with a checkpoint of the file.
struct Server(Process);

impl Server {
    fn start(store: &Store, file: &Scratch) -> Outcome<Self> {
        Self::with(store, file, &[])
    }

    fn with(store: &Store, file: &Scratch, options: &[&str]) -> Outcome<Self> {
        let opened = File::options().read(true).write(true).open(file.path())?;
        let (pid, memory) = memory_of(&opened);
        store.run("create", &["--name", "data", "--pid", &pid, "--memory", &memory])?;
        let mut command = store.command("nbd")?;
        command
            .args(["--socket", SOCKET, "data"])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut process = Process::new(&mut command)?;
        let mut line = String::new();
        BufReader::new(process.stdout()?).read_line(&mut line)?;
        ensure!(line.contains(SOCKET), "{line:?}");
        Ok(Self(process))
    }

    /// The default export.
    fn uri() -> String {
        format!("nbd+unix:///?socket={SOCKET}")
    }

    /// A signal ends it, and removes its socket.
    fn end(mut self) -> Outcome {
        self.0.terminate()?;
        let status = self.0.wait()?;
        ensure!(status.success() && !Path::new(SOCKET).exists(), "{status}");
        Ok(())
    }
}

pub(super) fn read_by_tools(store: &Store) -> Outcome {
    let file = Scratch::new("over-nbd", PAGES)?;
    let contents = fs::read(file.path())?;
    let server = Server::start(store, &file)?;
    let uri = Server::uri();
    equal!(run_command("nbdinfo", &["--size", &uri])?.trim(), SIZE.to_string());
    for feature in ["structured-reply", "multi-conn"] {
        run_command("nbdinfo", &["--can", feature, &uri]).map_err(|failure| format!("{feature}: {}", failure.text()))?;
    }
    run_command("nbdinfo", &["--is", "read-only", &uri])?;
    // Every fifth page is zero: 200 holes with as many pieces of data.
    let map = run_command("nbdinfo", &["--map", &uri])?;
    let holes: Vec<&str> = map.lines().filter(|line| line.trim_end().ends_with("hole,zero")).collect();
    equal!((holes.len(), map.lines().count()), (200, 400));
    ensure!(
        holes.iter().all(|line| line.split_whitespace().nth(1) == Some("4096")),
        "{map}"
    );
    let copy = Scratch::empty("over-nbd-copy");
    let target = copy.path().to_str().ok_or("a path that is no text")?;
    run_command("nbdcopy", &[&uri, target])?;
    ensure!(fs::read(target)? == contents, "nbdcopy has copied something else");
    fs::remove_file(target)?;
    run_command("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, target])?;
    ensure!(fs::read(target)? == contents, "qemu-img has copied something else");
    run_command("qemu-img", &["compare", "-f", "raw", "-F", "raw", target, &uri])?;
    let other = Scratch::new("over-nbd-less", PAGES - 1)?;
    let path = other.path().to_str().ok_or("a path that is no text")?;
    ensure!(
        run_command("qemu-img", &["compare", "-s", "-f", "raw", "-F", "raw", path, &uri]).is_err(),
        "qemu-img finds no difference"
    );
    server.end()
}

/// Is there while the kernel's client is connected.
const CLIENT: &str = "/sys/block/nbd0/pid";

/// The kernel's client, until it is dropped. Its module stays: it may not be unloaded before the last kobject of the disk is released, which a debug
/// kernel delays (`CONFIG_DEBUG_KOBJECT_RELEASE`), and nobody can see.
struct Disk;

impl Disk {
    fn new() -> Outcome<Self> {
        run_command("modprobe", &["nbd", "nbds_max=1"])?;
        let disk = Self;
        run_command("nbd-client", &["-unix", SOCKET, DISK, "-readonly", "-block-size", "4096"])?;
        wait_until("the disk has its size", || Ok(disk.sectors()? == SIZE / 512))?;
        ensure!(Path::new(CLIENT).exists(), "a client has no {CLIENT}");
        Ok(disk)
    }

    fn sectors(&self) -> Outcome<u64> {
        Ok(fs::read_to_string("/sys/block/nbd0/size")?.trim().parse()?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run_command("nbd-client", &["-d", DISK]);
        let _ = wait_until("the client has ended", || Ok(!Path::new(CLIENT).exists()));
    }
}

pub(super) fn read_by_the_kernel(store: &Store) -> Outcome {
    let file = Scratch::new("over-nbd", PAGES)?;
    let server = Server::start(store, &file)?;
    let disk = Disk::new()?;
    let mut found = Vec::new();
    File::open(DISK)?.read_to_end(&mut found)?;
    ensure!(found == fs::read(file.path())?, "the disk has something else");
    // The kernel lets it be opened, and refuses the write.
    let written = File::options()
        .write(true)
        .open(DISK)
        .and_then(|disk| disk.write_at(&[1; PAGE_SIZE], 0));
    ensure!(written.is_err(), "the disk can be written");
    let path = file.path().to_str().ok_or("a path that is no text")?;
    run_command("cmp", &[path, DISK])?;
    drop(disk);
    ensure!(!Path::new(CLIENT).exists(), "the kernel's client is still there");
    server.end()
}

pub(super) fn read_by_vmemd(store: &Store) -> Outcome {
    let file = Scratch::new("over-nbd", PAGES)?;
    let server = Server::start(store, &file)?;
    let daemon = Daemon::new(&Server::uri(), &[])?;
    let handle = open("nbd")?;
    let memory = map(&handle)?;
    for pgoff in (0..PAGES).rev() {
        check_page(&memory, pgoff)?;
    }
    drop(handle);
    let end = daemon.end()?.with_code(0)?;
    equal!(
        (end.number("zero_bytes")?, end.number("data_bytes")?),
        (SIZE / 5, SIZE / 5 * 4)
    );
    server.end()
}

pub(super) fn read_over_tls(store: &Store) -> Outcome {
    let (own, strangers) = (Certificates::new("own")?, Certificates::new("strangers")?);
    let file = Scratch::new("over-nbd", PAGES)?;
    let contents = fs::read(file.path())?;
    let server = Server::with(store, &file, &["--tls", own.text()?])?;
    let uri = |certificates: &Certificates| -> Outcome<String> {
        Ok(format!(
            "nbds+unix:///?socket={SOCKET}&tls-certificates={}",
            certificates.text()?
        ))
    };
    let protected = uri(&own)?;
    equal!(run_command("nbdinfo", &["--size", &protected])?.trim(), SIZE.to_string());
    run_command("nbdinfo", &["--is", "tls", &protected])?;
    let copy = Scratch::empty("over-nbd-copy");
    let target = copy.path().to_str().ok_or("a path that is no text")?;
    run_command("nbdcopy", &[&protected, target])?;
    ensure!(fs::read(target)? == contents, "nbdcopy has copied something else");
    fs::remove_file(target)?;
    let credentials = format!("tls-creds-x509,id=tls,dir={},endpoint=client", own.text()?);
    let image = format!("driver=nbd,server.type=unix,server.path={SOCKET},tls-creds=tls,tls-hostname=localhost");
    let words = [
        "convert",
        "--object",
        &credentials,
        "--image-opts",
        &image,
        "-O",
        "raw",
        target,
    ];
    run_command("qemu-img", &words)?;
    ensure!(fs::read(target)? == contents, "qemu-img has copied something else");
    // Without TLS, or with a certificate of another authority, a client learns nothing.
    for refused in [Server::uri(), uri(&strangers)?] {
        let learned = run_command("nbdinfo", &["--size", &refused]);
        ensure!(learned.is_err(), "{refused}: {learned:?}");
    }
    // vmemd has its certificates by the names that --tls has.
    let daemon = Daemon::new(&format!("nbds+unix:///?socket={SOCKET}"), &["--tls", own.text()?])?;
    let handle = open("nbd")?;
    let memory = map(&handle)?;
    for pgoff in (0..PAGES).rev() {
        check_page(&memory, pgoff)?;
    }
    drop(handle);
    daemon.end()?.with_code(0)?;
    server.end()
}
