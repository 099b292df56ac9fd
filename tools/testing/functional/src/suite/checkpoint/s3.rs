// SPDX-License-Identifier: GPL-2.0-or-later
//! A store in S3, of which `moto_server` is the server: an implementation that has nothing to do with the store's.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use vmem::PAGE_SIZE;

use super::guest::{self, Guest};
use super::program;
use super::store::{Store, memory_of, wait_gone};
use crate::failure::{Outcome, ensure, equal};
use crate::link::Link;
use crate::suite::vmemd::{Process, map, open};
use crate::world::wait_until;

const BUCKET: &str = "checkpoints";
const FILE: &str = "/dev/shm/vmem-checkpoint-s3";
const PAGES: usize = 2000;

/// So many bytes a second that a restore is not over when it is looked at, and as many as the machine can.
const SLOW: u64 = 1 << 20;
const FAST: u64 = 1 << 30;

/// What an overloaded server says.
const BUSY: &[u8] = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// A server with an empty bucket.
struct Server {
    address: String,
    _process: Process,
}

impl Server {
    fn new() -> Outcome<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new("moto_server");
        command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let server = Self {
            address: address.to_string(),
            _process: Process(process),
        };
        wait_until("moto_server listens", || Ok(TcpStream::connect(address).is_ok()))?;
        server.ask("PUT", "")?;
        Ok(server)
    }

    /// Asks something about the bucket, without any program of ours.
    fn ask(&self, method: &str, query: &str) -> Outcome<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        write!(
            stream,
            "{method} /{BUCKET}{query} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            self.address
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        Ok(answer)
    }

    /// How many packs it has.
    fn packs(&self) -> Outcome<usize> {
        Ok(self.ask("GET", "?list-type=2")?.matches("/packs/").count())
    }
}

/// A store in its bucket, which is at this address for who uses it.
fn store(address: &str) -> Outcome<Store> {
    let environment = [
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", &format!("http://{address}")),
        ("AWS_ALLOW_HTTP", "true"),
    ];
    Store::at(&format!("s3://{BUCKET}/of/guests"), &environment)
}

/// As in a directory; and what was removed is given back.
pub(super) fn used() -> Outcome {
    let server = Server::new()?;
    let store = store(&server.address)?;
    program::exact(&store)?;
    store.run("verify", &["data@2"])?;
    // The program has written all of its memory between one checkpoint and the next: none has a page of another.
    let before = server.packs()?;
    ensure!(before >= 3, "{before} packs of three checkpoints");
    store.run("rm", &["data@1", "data@2"])?;
    store.run("gc", &["--grace", "0.001"])?;
    store.run("gc", &["--grace", "0.001"])?;
    let after = server.packs()?;
    ensure!((1..before).contains(&after), "{after} packs are left of {before}");
    store.run("verify", &["data@latest"])?;
    equal!(store.run("list", &["data"])?.lines().count(), 1);
    for command in ["list", "init"] {
        let output = store.command_at(command, "s3://nowhere/of/guests")?.output()?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(1) && stderr.matches("there is no bucket \"nowhere\"").count() == 1,
            "{command}: {:?} {stderr}",
            output.status
        );
    }
    guest::exact(&store, &mut Guest::new()?)
}

/// The contents of a page, which no compression makes smaller.
fn contents(page: usize) -> Vec<u8> {
    let mut state = page as u64 + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_ne_bytes()
    };
    (0..PAGE_SIZE / 8).flat_map(|_| next()).collect()
}

pub(super) fn away() -> Outcome {
    let server = Server::new()?;
    let link = Link::new(&server.address, FAST)?;
    let store = store(&link.address)?;
    let _ = fs::remove_file(FILE);
    let file = fs::File::options().read(true).write(true).create_new(true).open(FILE)?;
    for page in 0..PAGES {
        file.write_all_at(&contents(page), (page * PAGE_SIZE) as u64)?;
    }
    let (pid, memory) = memory_of(&file);
    // It is overloaded for longer than an operation has attempts, as soon as a checkpoint is begun.
    let [begun, go] = ["begun", "go"].map(|name| store.directory.join(name));
    let before = format!(
        "touch {}; while [ ! -e {} ]; do sleep 0.05; done",
        begun.display(),
        go.display()
    );
    let mut create = store.command("create")?;
    create.args(["--name", "data", "--pid", &pid, "--memory", &memory, "--before", &before]);
    let mut create = Process(create.stdin(Stdio::null()).spawn()?);
    wait_until("the checkpoint is begun", || Ok(begun.exists()))?;
    link.turn_away(BUSY);
    fs::File::create(&go)?;
    wait_until("the server is asked again", || Ok(link.turned_away() > 6))?;
    link.let_in();
    let status = create.0.wait()?;
    let _ = fs::remove_file(FILE);
    ensure!(status.success(), "create: {status}");

    link.set_rate(SLOW);
    let mut restore = store.restore("data", &[], "ready")?;
    let region = open("data.vmem-checkpo")?;
    link.turn_away(b"");
    let present = region.info()?.present;
    ensure!(present < PAGES as u64, "all pages are there already");
    restore.hear("lost")?;
    link.set_rate(FAST);
    link.let_in();
    restore.hear("back")?;
    let restored = map(&region)?;
    let mut found = vec![0; PAGE_SIZE];
    for page in 0..PAGES {
        restored.read_at(page * PAGE_SIZE, &mut found)?;
        ensure!(found == contents(page), "page {page} is not what was stored");
    }
    restore.end()?;
    drop((restored, region));
    wait_gone("data.vmem-checkpo")
}
