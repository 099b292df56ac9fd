// SPDX-License-Identifier: GPL-2.0-or-later
//! A region that comes from one vmemd to another over a loopback socket.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use vmem::{Access, MapHandle, PAGE_SIZE};
use vmem_bench_sys::{Memory, Sharing};

use crate::contents::{Contents, POOL};
use crate::failure::{During, Failure, Outcome};
use crate::setting::field;

/// The name of the region.
const NAME: &str = "bench";
/// Where the source listens.
const ADDRESS: &str = "127.0.0.1:18636";
/// How long the source may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A file in memory, with a path, removed when dropped.
pub(crate) struct MemoryFile {
    path: PathBuf,
    /// The file.
    pub(crate) file: File,
}

impl MemoryFile {
    /// An empty one.
    pub(crate) fn new(name: &str) -> Outcome<Self> {
        let path = PathBuf::from(format!("/dev/shm/vmem-bench-{}-{name}", std::process::id()));
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.during("open a file in /dev/shm")?;
        Ok(Self { path, file })
    }

    /// One of so many pages, a multiple of [`POOL`], with the contents that pages have.
    pub(crate) fn full(name: &str, pages: u64, contents: &Contents) -> Outcome<Self> {
        let this = Self::new(name)?;
        for first in (0..pages).step_by(POOL) {
            let written = this.file.write_all_at(contents.of(first, POOL), first * PAGE_SIZE as u64);
            written.during("write to a file in /dev/shm")?;
        }
        Ok(this)
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        // If it cannot be removed, it goes with the machine.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A process that does not outlive this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // If it has ended by itself, there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The daemon's program, beside this one.
fn vmemd() -> Outcome<Command> {
    let this = std::env::current_exe().during("where is this program")?;
    Ok(Command::new(this.with_file_name("vmemd")))
}

/// A vmemd that offers a file.
pub(crate) struct Source {
    _process: Process,
    _file: MemoryFile,
}

impl Source {
    /// Offers `file`.
    pub(crate) fn of(file: MemoryFile) -> Outcome<Self> {
        let export = format!("{NAME}={}", file.path.display());
        let mut command = vmemd()?;
        command.args(["serve", "--listen", ADDRESS, &export]);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = Process(process.during("start vmemd serve")?);
        let since = Instant::now();
        while let Err(error) = TcpStream::connect(ADDRESS) {
            if since.elapsed() > PATIENCE {
                return Err(error).during("vmemd serve does not listen");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self {
            _process: process,
            _file: file,
        })
    }

    /// Offers a file of so many bytes without any data.
    pub(crate) fn sparse(size: u64) -> Outcome<Self> {
        let file = MemoryFile::new("sparse")?;
        file.file.set_len(size).during("ftruncate")?;
        Self::of(file)
    }
}

/// A vmemd that receives the region.
pub(crate) struct Transfer {
    handle: MapHandle,
    process: Process,
    /// Its report, kept open.
    report: BufReader<ChildStdout>,
}

/// Reads the next line of a report, which must be of this event. That vmemd has taken an order may be reported before.
fn expect(report: &mut impl BufRead, event: &str) -> Outcome {
    let mut line = String::new();
    while line.is_empty() || line.contains("\"event\":\"order\"") {
        line.clear();
        let bytes = report.read_line(&mut line).during("read the report of vmemd")?;
        if bytes == 0 {
            break;
        }
    }
    match line.contains(&format!("\"{event}\"")) {
        true => Ok(()),
        false => Err(Failure::Wrong(format!("vmemd says {line:?} and not that it is {event}"))),
    }
}

impl Transfer {
    /// Starts it, and returns when it is connected and has made the region. It asks for no page before [`Transfer::go`].
    pub(crate) fn hold(_: &Source, options: &[&str]) -> Outcome<Self> {
        let mut command = vmemd()?;
        command.args(["--source", ADDRESS, "--json", "--hold"]).args(options);
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut process = Process(child.during("start vmemd")?);
        let report = process.0.stdout.take();
        let mut report = BufReader::new(report.ok_or(Failure::Wrong("vmemd without a standard output".into()))?);
        expect(&mut report, "holding")?;
        Ok(Self {
            handle: MapHandle::open(NAME, Access::ReadWrite)?,
            process,
            report,
        })
    }

    /// It may begin.
    pub(crate) fn go(&mut self) -> Outcome {
        let orders = self.process.0.stdin.as_mut();
        let orders = orders.ok_or(Failure::Wrong("vmemd without a standard input".into()))?;
        orders.write_all(b"start\n").during("write to vmemd")
    }

    /// Starts it, and returns when it serves faults (and, unless told otherwise, has begun with the stream).
    pub(crate) fn start(source: &Source, options: &[&str]) -> Outcome<Self> {
        let mut this = Self::hold(source, options)?;
        this.go()?;
        expect(&mut this.report, "ready")?;
        Ok(this)
    }

    /// Maps the region.
    pub(crate) fn map(&self) -> Outcome<Memory> {
        let pages = self.handle.info()?.size / PAGE_SIZE as u64;
        Memory::of_file(&self.handle, pages as usize, Sharing::Shared).during("mmap")
    }

    /// The region.
    pub(crate) fn handle(&self) -> &MapHandle {
        &self.handle
    }

    /// Whether all pages are present.
    pub(crate) fn is_complete(&self) -> Outcome<bool> {
        let info = self.handle.info()?;
        Ok(info.present == info.size / PAGE_SIZE as u64)
    }

    /// The most memory that the daemon had so far, in KiB; if it has ended by itself, it is not known.
    pub(crate) fn peak_kib(&self) -> Outcome<u64> {
        let value = field(&format!("/proc/{}/status", self.process.0.id()), "VmHWM")?;
        let number = value.trim_end_matches(" kB").parse();
        number.map_err(|_| Failure::Wrong(format!("vmemd has a VmHWM of {value}")))
    }
}
