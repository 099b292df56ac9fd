// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemd serve` as a process: what it gives up, and what its output and its limits cost its peers.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vmem_source::endpoint::{Endpoint, Security};
use vmem_source::{Contents, Lane, PageSource};

const TIMEOUT: Duration = Duration::from_secs(20);

struct Source {
    child: Child,
    address: String,
}

impl Source {
    fn new(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("vmemd starts");
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut lines = output.lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.strip_prefix("listening on ").map(str::to_owned));
        let Some(address) = address else {
            let mut errors = String::new();
            child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
            panic!("it does not listen: {errors}");
        };
        Self { child, address }
    }

    fn connect(&self) -> Box<dyn PageSource> {
        self.connect_as(Security::Loopback)
    }

    fn connect_as(&self, security: Security) -> Box<dyn PageSource> {
        let endpoint = Endpoint::new(&self.address, security, TIMEOUT);
        Box::new(endpoint.connect(Lane::Stream).expect("a connection"))
    }

    fn status(&self, field: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a field");
        line.split_whitespace().next().unwrap().to_owned()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file of one page, which only its owner can read.
fn file(directory: &Path, name: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = directory.join(name);
    fs::write(&path, [7; 4096]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn serve(exports: &[(&str, &Path)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmemd"));
    command.args(["serve", "--listen", "127.0.0.1:0"]);
    command.args(exports.iter().map(|(name, path)| format!("{name}={}", path.display())));
    command
}

fn first_byte(source: &mut dyn PageSource) -> u8 {
    source.fetch(0, &[vmem::PageRange::of_len(1).unwrap()]).unwrap();
    let answer = source.next_answer().expect("an answer");
    let (_, contents) = answer.contents().next().unwrap();
    match contents {
        Contents::Data(data) => data[0],
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_standard_error_that_nobody_reads_keeps_nobody_out() {
    let directory = tempfile::tempdir().unwrap();
    let source = Source::new(&mut serve(&[("ram", &file(directory.path(), "ram"))]));
    // Each of these is a line of the log at the least, and a pipe takes 64 KiB.
    for _ in 0..2000 {
        drop(source.connect());
    }
    let since = Instant::now();
    assert_eq!(first_byte(&mut *source.connect()), 7);
    assert!(since.elapsed() < TIMEOUT);
}

#[test]
fn strangers_fill_no_log() {
    bounds_its_log(&[], Security::Loopback);
}

#[test]
fn strangers_without_a_certificate_fill_no_log() {
    let directory = tempfile::tempdir().unwrap();
    vmem_tls::testing::write(&["127.0.0.1"], directory.path());
    let identity = vmem_tls::Identity::load(directory.path()).unwrap();
    let options = ["--tls", directory.path().to_str().unwrap()];
    bounds_its_log(&options, Security::Tls(identity));
}

#[test]
fn renewed_certificates_are_used_if_its_user_may_read_the_key() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let (directory, old, new) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let names = ["ca.pem", "cert.pem", "key.pem"];
    let install = |from: &Path| {
        for name in names {
            fs::copy(from.join(name), directory.path().join(name)).unwrap();
        }
    };
    let identity = |directory: &Path| Security::Tls(vmem_tls::Identity::load(directory).unwrap());
    for directory in [old.path(), new.path()] {
        vmem_tls::testing::write(&["127.0.0.1"], directory);
        mode(&directory.join("key.pem"), 0o600);
    }
    install(old.path());
    mode(directory.path(), 0o755);
    let mut command = serve(&[("ram", &file(directory.path(), "ram"))]);
    let mut source = Source::new(command.args(["--tls", directory.path().to_str().unwrap()]));
    let mut first = source.connect_as(identity(old.path()));
    install(new.path());
    if rustix::process::geteuid().is_root() {
        // Nobody may not read it.
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(1100));
            assert_eq!(first_byte(&mut *source.connect_as(identity(old.path()))), 7);
        }
    }
    mode(&directory.path().join("key.pem"), 0o644);
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(first_byte(&mut *source.connect_as(identity(new.path()))), 7);
    assert_eq!(first_byte(&mut *first), 7, "the first connection goes on");
    source.child.kill().unwrap();
    let mut errors = String::new();
    source.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    let said = |what| errors.matches(what).count();
    let kept = usize::from(rustix::process::geteuid().is_root());
    assert_eq!((said("may not read it"), said("were renewed")), (kept, 1), "{errors}");
}

fn bounds_its_log(options: &[&str], security: Security) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = serve(&[("ram", &file(directory.path(), "ram"))]);
    let mut source = Source::new(command.args(options));
    for _ in 0..1000 {
        drop(TcpStream::connect(&source.address).unwrap());
    }
    assert_eq!(first_byte(&mut *source.connect_as(security)), 7);
    std::thread::sleep(Duration::from_millis(500));
    source.child.kill().unwrap();
    let mut errors = String::new();
    source.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert!((1..60).contains(&errors.lines().count()), "{errors}");
}

#[test]
fn it_serves_what_is_open_and_has_no_privileges() {
    let directory = tempfile::tempdir().unwrap();
    let source = Source::new(&mut serve(&[("ram", &file(directory.path(), "ram"))]));
    assert_eq!(source.status("NoNewPrivs:"), "1");
    for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
        assert_eq!(u64::from_str_radix(&source.status(set), 16), Ok(0), "{set}");
    }
    if rustix::process::geteuid().is_root() {
        assert_eq!(
            (source.status("Uid:"), source.status("Gid:")),
            ("65534".to_owned(), "65534".to_owned())
        );
    }
    assert_eq!(first_byte(&mut *source.connect()), 7);
    let mut other = serve(&[("ram", &file(directory.path(), "ram"))]);
    other.args(["--user", "1234:99"]);
    let other = Source::new(&mut other);
    if rustix::process::geteuid().is_root() {
        assert_eq!(
            (other.status("Uid:"), other.status("Gid:")),
            ("1234".to_owned(), "99".to_owned())
        );
    }
    assert_eq!(first_byte(&mut *other.connect()), 7);
}

/// Starts it with these limits of open files.
fn limited(mut command: Command, soft: u64, hard: u64) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -Sn \"$2\" && ulimit -Hn \"$1\" && shift 2 && exec \"$@\"", "sh"]);
    shell.args([hard.to_string(), soft.to_string()]);
    shell.arg(command.get_program()).args(command.get_args());
    command = shell;
    command.process_group(0);
    command
}

#[test]
fn as_many_files_are_open_as_may_be_and_a_limit_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..200).map(|number| format!("ram{number}")).collect();
    let paths: Vec<PathBuf> = names.iter().map(|name| file(directory.path(), name)).collect();
    let exports: Vec<(&str, &Path)> = names
        .iter()
        .map(String::as_str)
        .zip(paths.iter().map(PathBuf::as_path))
        .collect();
    let source = Source::new(&mut limited(serve(&exports), 100, 1024));
    assert_eq!(source.connect().exports().len(), 200);
    let refused = limited(serve(&exports), 100, 100).output().unwrap();
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(1) && errors.contains("the limit of 100"),
        "{errors}"
    );
}

#[test]
fn systemd_is_told_that_it_is_ready_and_alive() {
    let directory = tempfile::tempdir().unwrap();
    let (memory, path) = (directory.path().join("ram"), directory.path().join("notify"));
    fs::write(&memory, [7; 4096]).unwrap();
    // As nobody, vmemd still reaches the socket.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let socket = UnixDatagram::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmemd"));
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    command.env_remove("SYSTEMD_EXEC_PID").env_remove("WATCHDOG_PID");
    command
        .args(["serve", "--listen", "127.0.0.1:0"])
        .arg(format!("ram={}", memory.display()));
    let _source = Source::new(&mut command);
    let (mut ready, mut alive) = (0, 0);
    while ready < 1 || alive < 7 {
        let mut bytes = [0; 64];
        let length = socket.recv(&mut bytes).unwrap();
        match &bytes[..length] {
            b"READY=1\n" => ready += 1,
            b"WATCHDOG=1\n" => alive += 1,
            other => panic!("{:?}", String::from_utf8_lossy(other)),
        }
    }
    assert_eq!(ready, 1);
}
