// SPDX-License-Identifier: GPL-2.0-or-later
//! Regions that are filled from NBD servers: nbdkit and qemu-nbd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use vmem::PAGE_SIZE;

use super::{Daemon, PAGES, Process, Program, SIZE, Scratch, check_page, map, open, wait_info};
use crate::certificates::Certificates;
use crate::failure::{Outcome, ensure, equal};
use crate::world::{run_command, wait_until};

crate::tests![
    a_region_is_filled_from_nbdkit_and_qemu_nbd_whatever_they_have,
    a_page_of_an_nbd_server_is_not_behind_the_stream_on_a_shared_connection,
    pages_that_an_nbd_server_cannot_read_are_unreadable_and_can_be_cured,
    an_nbd_server_that_is_silent_or_killed_is_waited_for,
    an_nbd_server_that_is_not_to_be_used_is_an_error_that_says_why,
    a_region_is_filled_over_tls_and_never_in_clear_text_instead,
];

/// A server at a socket.
struct Server {
    process: Process,
    socket: PathBuf,
}

impl Server {
    fn start(name: &str, command: impl FnOnce(&Path) -> Command) -> Outcome<Self> {
        let socket = PathBuf::from(format!("/run/vmemd-nbd-{name}"));
        // That of one that was killed.
        let _ = fs::remove_file(&socket);
        let process = Process::new(
            command(&socket)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )?;
        let server = Self { process, socket };
        wait_until("the server listens", || Ok(server.socket.exists()))?;
        Ok(server)
    }

    fn nbdkit(name: &str, arguments: &[&str]) -> Outcome<Self> {
        Self::start(name, |socket| {
            let mut command = Command::new("nbdkit");
            command.args(["-f", "-r", "-U"]).arg(socket).args(arguments);
            command
        })
    }

    fn qemu(name: &str, format: &str, file: &Path) -> Outcome<Self> {
        Self::start(name, |socket| {
            let mut command = Command::new("qemu-nbd");
            command.args([
                "--read-only",
                "--persistent",
                "--shared=4",
                "--export-name=nbd",
                "--format",
                format,
                "--socket",
            ]);
            command.args([socket, file]);
            command
        })
    }

    fn uri_over_tls(&self) -> String {
        format!("nbds+unix:///?socket={}", self.socket.display())
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
    }
}

fn text(path: &Path) -> Outcome<&str> {
    Ok(path.to_str().ok_or("a path that is no text")?)
}

fn a_region_is_filled_from_nbdkit_and_qemu_nbd_whatever_they_have() -> Outcome {
    let file = Scratch::new("served", PAGES)?;
    let path = text(&file.0)?;
    run_command("fallocate", &["--dig-holes", path])?;
    let qcow2 = Scratch(file.0.with_extension("qcow2"));
    // A cluster of it is a page: what is zero has none.
    let options = [
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        "cluster_size=4096",
        path,
        text(&qcow2.0)?,
    ];
    run_command("qemu-img", &options)?;
    let check = |what: &str, server: &Server, export: &str, sends_holes: bool| -> Outcome {
        let daemon = Daemon::new(&server.uri(export), &[])?;
        let handle = open("nbd")?;
        // What somebody waits for is sent, hole or not: nobody touches these pages before they are there.
        let memory = map(&handle)?;
        let end = daemon.end()?.with_code(0)?;
        (0..PAGES).try_for_each(|page| check_page(&memory, page))?;
        let (data, zero, wire) = (
            end.number("data_bytes")?,
            end.number("zero_bytes")?,
            end.number("wire_bytes")?,
        );
        equal!((data + zero, zero), (SIZE, SIZE / 5));
        let right = match sends_holes {
            true => wire >= SIZE,
            false => (data..data + SIZE / 10).contains(&wire),
        };
        ensure!(right, "{what}: {wire} of {SIZE} bytes");
        Ok(())
    };
    for (options, sends_holes) in [
        (&["file"][..], false),
        (&["--no-sr", "file"], true),
        (
            &[
                "--filter=multi-conn",
                "--filter=blocksize-policy",
                "file",
                "multi-conn-mode=disable",
                "blocksize-minimum=4096",
                // Less than the four pages that are between two holes.
                "blocksize-maximum=8192",
                "blocksize-error-policy=error",
            ],
            false,
        ),
    ] {
        let server = Server::nbdkit("served", &[options, &[path]].concat())?;
        check(&format!("nbdkit {options:?}"), &server, "", sends_holes)?;
    }
    check(
        "qemu-nbd of a raw image",
        &Server::qemu("served", "raw", &file.0)?,
        "nbd",
        false,
    )?;
    check(
        "qemu-nbd of a qcow2 image",
        &Server::qemu("served", "qcow2", &qcow2.0)?,
        "nbd",
        false,
    )
}

fn a_page_of_an_nbd_server_is_not_behind_the_stream_on_a_shared_connection() -> Outcome {
    let file = Scratch::new("shared", PAGES)?;
    // All of it takes 4 s.
    let options = [
        "--threads=1",
        "--filter=multi-conn",
        "--filter=rate",
        "file",
        text(&file.0)?,
        "multi-conn-mode=disable",
        "rate=16M",
        "burstiness=0.2",
    ];
    let server = Server::nbdkit("shared", &options)?;
    let mut daemon = Daemon::new(&server.uri(""), &["--hold"])?;
    let handle = open("nbd")?;
    daemon.tell("start")?;
    let memory = map(&handle)?;
    wait_info(&handle, "the stream has begun", |info| info.present > 0)?;
    check_page(&memory, PAGES - 1)?;
    // The stream has asked for 1,024 pages by then, and 256 of them go before.
    let present = handle.info()?.present;
    ensure!(present < 900, "{present} pages came before the one that was waited for");
    drop(handle);
    daemon.end()?.with_code(0)?;
    for pgoff in 0..PAGES {
        check_page(&memory, pgoff)?;
    }
    Ok(())
}

fn pages_that_an_nbd_server_cannot_read_are_unreadable_and_can_be_cured() -> Outcome {
    const FEW: u64 = 40;
    const BAD: u64 = 8;
    let file = Scratch::new("bad", FEW)?;
    let cured = Scratch(file.0.with_extension("cured"));
    let (path, flag, page) = (text(&file.0)?, text(&cured.0)?, PAGE_SIZE as u64);
    let pread = format!(
        "pread=if [ ! -e {flag} ] && [ $4 -lt {} ] && [ $(($4 + $3)) -gt {} ]; then echo EIO bad sector >&2; exit 1; fi; \
         dd if={path} skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none",
        (BAD + 1) * page,
        BAD * page
    );
    let server = Server::nbdkit("bad", &["eval", &format!("get_size=echo {}", FEW * page), &pread])?;
    let daemon = Daemon::new(&server.uri(""), &[])?;
    let handle = open("nbd")?;
    let memory = map(&handle)?;
    let end = daemon.end()?.with_code(4)?;
    equal!(end.number("unreadable_pages")?, 1);
    ensure!(end.errors.contains("error 5 of the NBD server"), "{}", end.errors);
    let mut bytes = vec![0; PAGE_SIZE];
    equal!(memory.read_until_fault(BAD as usize * PAGE_SIZE, &mut bytes)?, 0);
    for pgoff in (0..FEW).filter(|pgoff| *pgoff != BAD) {
        check_page(&memory, pgoff)?;
    }
    fs::write(&cured.0, "")?;
    drop(handle);
    Daemon::new(&server.uri(""), &["--resume"])?.end()?.with_code(0)?;
    check_page(&memory, BAD)
}

fn an_nbd_server_that_is_silent_or_killed_is_waited_for() -> Outcome {
    let file = Scratch::new("waited", PAGES)?;
    let options = ["file", text(&file.0)?];
    let mut server = Server::nbdkit("waited", &options)?;
    let mut daemon = Daemon::new(&server.uri(""), &["--no-background", "--retry", "60", "--timeout", "1"])?;
    let program = Program::new("nbd", &file.0)?;
    let handle = open("nbd")?;
    wait_info(&handle, "the program has some pages", |info| info.present > 20)?;
    server.process.signal(Signal::STOP)?;
    daemon.wait_line("\"event\":\"lost\"")?;
    let before = handle.info()?.present;
    server.process.signal(Signal::CONT)?;
    wait_info(&handle, "the program goes on", |info| info.present > before)?;
    server.process.kill()?;
    wait_info(&handle, "the program waits", |info| info.waiters == 1)?;
    ensure!(handle.info()?.present < PAGES, "the program was done already");
    drop(handle);
    let server = Server::nbdkit("waited", &options)?;
    let end = daemon.end()?.with_code(0)?;
    ensure!(end.number("reconnects")? >= 2, "{}", end.output);
    program.succeeds()?;
    // One that stays away.
    let mut program = Program::new("nbd", &file.0)?;
    let daemon = Daemon::new(&server.uri(""), &["--no-background", "--retry", "0.5"])?;
    let handle = open("nbd")?;
    wait_info(&handle, "the program has some pages", |info| info.present > 20)?;
    drop(server);
    daemon.end()?.with_code(2)?;
    let info = wait_info(&handle, "the program waits", |info| info.waiters == 1)?;
    ensure!(!info.attached && info.sigbus == 0, "{info:?}");
    program.process.kill()
}

fn an_nbd_server_that_is_not_to_be_used_is_an_error_that_says_why() -> Outcome {
    let keys = Scratch("/dev/shm/vmemd-keys.psk".into());
    fs::write(&keys.0, "alice:0123456789abcdef0123456789abcdef\n")?;
    let psk = format!("--tls-psk={}", text(&keys.0)?);
    let file = Scratch::new("refused", 4)?;
    let refused = |uri: &str, code: i32, part: &str| -> Outcome {
        let end = Daemon::new(uri, &[])?.end()?.with_code(code)?;
        ensure!(end.errors.contains(part), "no {part:?} in {}", end.errors);
        Ok(())
    };
    for (options, part) in [
        (&["--tls=require", &psk, "memory", "1M"][..], "demands TLS"),
        (&["-o", "memory", "1M"], "the oldstyle handshake"),
        (&["null", "0"], "the export has 0 bytes"),
    ] {
        let server = Server::nbdkit("refused", options)?;
        refused(&server.uri(""), 3, part)?;
    }
    let server = Server::qemu("refused", "raw", &file.0)?;
    refused(&server.uri("other"), 3, "it has no such export")?;
    // A region of another size, smaller or larger.
    let daemon = Daemon::new(&server.uri("nbd"), &["--no-background"])?;
    let handle = open("nbd")?;
    let memory = map(&handle)?;
    drop(handle);
    check_page(&memory, 0)?;
    drop(daemon);
    for pages in [3, 5] {
        let other = Scratch::new("resized", pages)?;
        let server = Server::qemu("resized", "raw", &other.0)?;
        let end = Daemon::new(&server.uri("nbd"), &["--resume"])?.end()?.with_code(5)?;
        let sizes = format!(
            "with {} bytes, but the source exports {}",
            4 * PAGE_SIZE,
            pages as usize * PAGE_SIZE
        );
        ensure!(end.errors.contains(&sizes), "{}", end.errors);
    }
    Daemon::new(&server.uri("nbd"), &["--resume"])?.end()?.with_code(0)?;
    (0..4).try_for_each(|pgoff| check_page(&memory, pgoff))?;
    let uri = server.uri("nbd");
    drop(server);
    refused(&uri, 2, "cannot connect to /run/vmemd-nbd-refused")
}

fn a_region_is_filled_over_tls_and_never_in_clear_text_instead() -> Outcome {
    let (own, strangers) = (Certificates::new("own")?, Certificates::new("strangers")?);
    let file = Scratch::new("protected", PAGES)?;
    let path = text(&file.0)?;
    let certificates = format!("--tls-certificates={}", own.text()?);
    let options = ["--tls=require", &certificates, "--tls-verify-peer", "file", path];
    let tls = ["--tls", own.text()?];
    // The server dies in the middle, and another one takes its place.
    let mut server = Server::nbdkit("protected", &options)?;
    let mut daemon = Daemon::new(
        &server.uri_over_tls(),
        &[&tls[..], &["--no-background", "--retry", "60"]].concat(),
    )?;
    let program = Program::new("nbd", &file.0)?;
    let handle = open("nbd")?;
    wait_info(&handle, "the program has some pages", |info| info.present > 20)?;
    server.process.kill()?;
    daemon.wait_line("\"event\":\"lost\"")?;
    ensure!(handle.info()?.present < PAGES, "the program was done already");
    // Its place is taken by one without TLS: that is refused, however long it is tried.
    let clear = Server::nbdkit("protected", &["--tls=off", "file", path])?;
    let end = daemon.end()?.with_code(3)?;
    ensure!(
        end.errors.contains("does not protect the connection by TLS"),
        "{}",
        end.errors
    );
    let info = wait_info(&handle, "the program waits", |info| info.waiters == 1)?;
    ensure!(info.present < PAGES, "pages came in clear text");
    drop(clear);
    let server = Server::nbdkit("protected", &options)?;
    // Nor does one get a certificate that is not for it, or a client that has no certificate, or one of another authority.
    for (uri, options, code, part) in [
        (
            server.uri_over_tls(),
            &["--tls", strangers.text()?][..],
            2,
            "the TLS handshake failed",
        ),
        (
            server.uri_over_tls() + "&tls-hostname=host1",
            &tls,
            2,
            "the TLS handshake failed",
        ),
        (server.uri_over_tls(), &[], 1, "nbds:// needs certificates"),
        (server.uri(""), &tls, 1, "are clear text"),
        (server.uri(""), &[], 3, "demands TLS"),
    ] {
        let end = Daemon::new(&uri, &[options, &["--resume"]].concat())?
            .end()?
            .with_code(code)?;
        ensure!(end.errors.contains(part), "no {part:?} in {}", end.errors);
    }
    fs::copy(strangers.path().join("cert.pem"), own.path().join("cert.pem"))?;
    fs::copy(strangers.path().join("key.pem"), own.path().join("key.pem"))?;
    Daemon::new(&server.uri_over_tls(), &[&tls[..], &["--resume"]].concat())?
        .end()?
        .with_code(2)?;
    for (from, to) in [("client-cert.pem", "cert.pem"), ("client-key.pem", "key.pem")] {
        fs::copy(own.path().join(from), own.path().join(to))?;
    }
    drop(handle);
    Daemon::new(&server.uri_over_tls(), &[&tls[..], &["--resume"]].concat())?
        .end()?
        .with_code(0)?;
    program.succeeds()
}
