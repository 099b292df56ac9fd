// SPDX-License-Identifier: GPL-2.0-or-later
//! Checkpoints that are mounted as files.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::SeekFrom;
use rustix::process::{Pid, Signal, kill_process};
use vmem::PAGE_SIZE;

use super::store::{Store, memory_of};
use crate::failure::{Outcome, ensure, equal, refused};
use crate::suite::vmemd::beside;
use crate::world::{run_command, wait_until};

const PAGES: usize = 2000;
/// Pages in a row that have contents, and as many after them that are zero.
const RUN: usize = 100;
const NAME: &str = "vmem-checkpoint-mounted";

/// What the memory is full of: contents that no compression makes smaller.
fn contents() -> Vec<u8> {
    let mut word = 0x2545_f491_4f6c_dd1d_u64;
    let mut memory = vec![0; PAGES * PAGE_SIZE];
    for (page, bytes) in memory.chunks_exact_mut(PAGE_SIZE).enumerate() {
        if page / RUN % 2 == 1 {
            continue;
        }
        for eight in bytes.chunks_exact_mut(8) {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            eight.copy_from_slice(&word.to_le_bytes());
        }
    }
    memory
}

/// Memory of this program, in a file that goes at the end.
struct Memory(File);

impl Memory {
    fn new(contents: &[u8]) -> Outcome<Self> {
        let path = Path::new("/dev/shm").join(NAME);
        let _ = fs::remove_file(&path);
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.write_all_at(contents, 0)?;
        Ok(Self(file))
    }

    fn checkpoint(&self, store: &Store, key: &[&str]) -> Outcome {
        let (pid, memory) = memory_of(&self.0);
        let arguments = ["--name", "data", "--pid", &pid, "--memory", &memory];
        store.run("create", &[key, &arguments].concat()).map(drop)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = fs::remove_file(Path::new("/dev/shm").join(NAME));
    }
}

/// A store that is mounted.
struct Mounted {
    vmemctl: Child,
    directory: PathBuf,
    errors: PathBuf,
}

impl Mounted {
    fn new(store: &Store, arguments: &[&str]) -> Outcome<Self> {
        let directory = store.directory.join("mounted");
        let errors = store.directory.join("errors");
        fs::create_dir(&directory)?;
        let mut command = store.command("mount")?;
        command
            .args(arguments)
            .arg(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors)?);
        let mut mounted = Self {
            vmemctl: command.spawn()?,
            directory,
            errors,
        };
        let mut line = String::new();
        let output = mounted.vmemctl.stdout.take().ok_or("no output")?;
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line.contains("is mounted at"), "{line:?} {}", mounted.errors()?);
        Ok(mounted)
    }

    fn errors(&self) -> Outcome<String> {
        Ok(fs::read_to_string(&self.errors)?)
    }

    fn path(&self, number: u32, file: &str) -> PathBuf {
        self.directory.join(format!("data/{number}/{file}"))
    }

    fn memory(&self, number: u32) -> PathBuf {
        self.path(number, &format!("{NAME}.raw"))
    }

    fn signal(&self, signal: Signal) -> Outcome {
        Ok(kill_process(Pid::from_child(&self.vmemctl), signal)?)
    }

    fn is_mounted(&self) -> Outcome<bool> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let place = format!(" {} ", self.directory.display());
        Ok(mounts.lines().any(|line| line.contains(&place)))
    }

    fn umount(&self) -> Outcome<String> {
        run_command("umount", &[&self.directory.to_string_lossy()])
    }

    fn wait(&mut self) -> Outcome<ExitStatus> {
        let mut ended = None;
        wait_until("the command has ended", || {
            ended = self.vmemctl.try_wait()?;
            Ok(ended.is_some())
        })?;
        Ok(ended.ok_or("it has not ended")?)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.vmemctl.kill();
        let _ = self.vmemctl.wait();
        if self.is_mounted().unwrap_or(true) {
            let _ = run_command("umount", &["-l", &self.directory.to_string_lossy()]);
        }
        let _ = fs::remove_dir(&self.directory);
    }
}

/// A Python program that fails unless all of it is true.
fn python(program: &str, arguments: &[&Path]) -> Outcome {
    let mut command = Command::new("python3");
    let output = command.args(["-c", program]).args(arguments).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Another user can read nothing, a mapping has the contents, and the other files are JSON.
const LOOK: &str = "
import json, mmap, os, sys
memory, manifest, statistics = sys.argv[1:]
with open(memory, 'rb') as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    file.seek(5000)
    assert mapped[5000:9000] == file.read(4000) != bytes(4000)
with open(manifest) as file:
    assert json.load(file)['checkpoint'] == {'guest': 'data', 'sequence': 1}
with open(statistics) as file:
    assert json.load(file)['backends'][0]['file'] == os.path.basename(memory)
os.setuid(65534)
try:
    open(memory)
except PermissionError:
    sys.exit(0)
sys.exit('another user has opened the memory')
";

fn check_holes(path: &Path, memory: &[u8]) -> Outcome {
    let run = (RUN * PAGE_SIZE) as u64;
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    equal!(metadata.len(), memory.len() as u64);
    equal!(metadata.blocks() * 512, memory.len() as u64 / 2);
    for (from, found) in [
        (SeekFrom::Hole(0), run),
        (SeekFrom::Data(run + 9), 2 * run),
        (SeekFrom::Data(2 * run + 9), 2 * run + 9),
        (SeekFrom::Hole(memory.len() as u64 - 9), memory.len() as u64 - 9),
    ] {
        equal!(rustix::fs::seek(&file, from)?, found);
    }
    refused!(rustix::fs::seek(&file, SeekFrom::Data(memory.len() as u64 - 9)), NXIO);
    Ok(())
}

pub(super) fn read() -> Outcome {
    let key = PathBuf::from("/dev/shm/vmem-checkpoint-mount-key");
    let _ = fs::remove_file(&key);
    let made = beside("vmemctl")?
        .args(["checkpoint", "key", "generate"])
        .arg(&key)
        .status()?;
    ensure!(made.success(), "key generate: {made}");
    let result = read_with(&key);
    let _ = fs::remove_file(&key);
    result
}

fn read_with(key: &Path) -> Outcome {
    let store = Store::encrypted(key)?;
    let text = key.to_string_lossy().into_owned();
    let key = ["--key-file", &text];
    let contents = contents();
    let memory = Memory::new(&contents)?;
    memory.checkpoint(&store, &key)?;
    let refused = store.end("mount", &["/mnt"])?;
    ensure!(
        String::from_utf8_lossy(&refused.stderr).contains("needs a key"),
        "{refused:?}"
    );
    let over = store.end("mount", &[&key[..], &["/dev/shm"]].concat())?;
    ensure!(String::from_utf8_lossy(&over.stderr).contains("is below"), "{over:?}");

    let mut mounted = Mounted::new(&store, &key)?;
    let path = mounted.memory(1);
    ensure!(fs::read(&path)? == contents, "the file is not the memory");
    run_command("cmp", &[&path.to_string_lossy(), &format!("/dev/shm/{NAME}")])?;
    check_holes(&path, &contents)?;
    python(
        LOOK,
        &[&path, &mounted.path(1, "manifest.json"), &mounted.path(1, "stats.json")],
    )?;
    refused!(File::options().write(true).open(&path), ROFS);
    refused!(File::create(mounted.path(1, "new")), ROFS);
    refused!(fs::remove_file(&path), ROFS);
    refused!(fs::rename(&path, mounted.path(1, "new")), ROFS);
    refused!(fs::create_dir(mounted.directory.join("data/7")), ROFS);

    // What is in the store comes and goes.
    memory.0.write_all_at(&[9; 100], 7)?;
    memory.checkpoint(&store, &key)?;
    let second = mounted.memory(2);
    wait_until("the second checkpoint is there", || Ok(second.exists()))?;
    ensure!(
        fs::read(&second)?[..107] == [&contents[..7], &[9; 100]].concat(),
        "the second checkpoint is not the memory"
    );
    let open = File::open(&path)?;
    let reading = store.end("rm", &[&key[..], &["data@1"]].concat())?;
    ensure!(
        String::from_utf8_lossy(&reading.stderr).contains("is being read"),
        "{reading:?}"
    );
    ensure!(mounted.umount().is_err(), "it was unmounted while a file was open");
    let mut page = [0; PAGE_SIZE];
    open.read_exact_at(&mut page, 0)?;
    ensure!(page == contents[..PAGE_SIZE], "another page");
    drop(open);
    wait_until("the lease is given back", || {
        Ok(store.end("rm", &[&key[..], &["data@1"]].concat())?.status.success())
    })?;
    wait_until("the removed checkpoint has vanished", || Ok(!path.exists()))?;
    equal!(fs::read_dir(mounted.directory.join("data"))?.count(), 1);

    mounted.umount()?;
    equal!(mounted.wait()?.code(), Some(0));
    equal!(mounted.errors()?, "");
    Ok(())
}

/// Reads page by page. Returns the pages that cannot be read; all others must be right.
fn unreadable(path: &Path, contents: &[u8]) -> Outcome<Vec<usize>> {
    let file = File::open(path)?;
    let mut bad = Vec::new();
    let mut page = [0; PAGE_SIZE];
    for (number, expected) in contents.chunks_exact(PAGE_SIZE).enumerate() {
        match file.read_exact_at(&mut page, (number * PAGE_SIZE) as u64) {
            Ok(()) => ensure!(page == expected, "page {number} is another one"),
            Err(error) => {
                equal!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
                bad.push(number);
            }
        }
    }
    Ok(bad)
}

pub(super) fn damaged() -> Outcome {
    let store = Store::new()?;
    let contents = contents();
    Memory::new(&contents)?.checkpoint(&store, &[])?;
    let (place, away) = (store.directory.join("store"), store.directory.join("away"));
    let packs = run_command("find", &[&place.to_string_lossy(), "-name", "*.vpk"])?;
    let pack = packs.lines().next().ok_or("no pack")?;
    let mut bytes = fs::read(pack)?;
    *bytes.get_mut(40).ok_or("a short pack")? ^= 1;
    fs::remove_file(pack)?;
    fs::write(pack, bytes)?;

    let mounted = Mounted::new(&store, &["--timeout", "2"])?;
    let path = mounted.memory(1);
    // The bad byte is in one frame, of 16 pages. The rest can be read, also what the kernel reads together with it.
    let bad = unreadable(&path, &contents)?;
    ensure!((1..=16).contains(&bad.len()), "these pages cannot be read: {bad:?}");
    ensure!(bad.iter().all(|page| page / RUN % 2 == 0), "a page of zeros is bad: {bad:?}");
    let errors = mounted.errors()?;
    ensure!(errors.contains("cannot read") && errors.contains("data@1"), "{errors}");

    // A page that nobody has read yet: those that were are in the kernel's cache.
    drop(mounted);
    let mut mounted = Mounted::new(&store, &["--timeout", "2"])?;
    let file = File::open(mounted.memory(1))?;
    fs::rename(&place, &away)?;
    let mut page = [0; PAGE_SIZE];
    let last = ((PAGES - RUN - 1) * PAGE_SIZE) as u64;
    let since = Instant::now();
    refused!(file.read_exact_at(&mut page, last), IO);
    let waited = since.elapsed();
    ensure!((1..30).contains(&waited.as_secs()), "it took {waited:?}");
    let mut reader = Command::new("cat")
        .arg(mounted.memory(1))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    thread::sleep(Duration::from_millis(300));
    reader.kill()?;
    wait_until("the reader is dead", || Ok(reader.try_wait()?.is_some()))?;
    fs::rename(&away, &place)?;
    file.read_exact_at(&mut page, last)?;
    ensure!(page == contents[last as usize..][..PAGE_SIZE], "another page");

    // It is in use, and the store is away.
    fs::rename(&place, &away)?;
    mounted.signal(Signal::TERM)?;
    equal!(mounted.wait()?.code(), Some(0));
    ensure!(!mounted.is_mounted()?, "it is mounted still");
    drop(file);
    Ok(())
}

pub(super) fn killed() -> Outcome {
    let store = Store::new()?;
    let contents = contents();
    Memory::new(&contents)?.checkpoint(&store, &[])?;
    let mut mounted = Mounted::new(&store, &["--timeout", "1000"])?;
    let file = File::open(mounted.memory(1))?;
    fs::rename(store.directory.join("store"), store.directory.join("away"))?;
    let last = ((PAGES - RUN - 1) * PAGE_SIZE) as u64;
    let reader = thread::spawn(move || file.read_exact_at(&mut [0; PAGE_SIZE], last));
    thread::sleep(Duration::from_millis(300));
    ensure!(!reader.is_finished(), "the read has not waited for the store");
    mounted.signal(Signal::KILL)?;
    let read = reader.join().map_err(|_| "the reader panicked")?;
    ensure!(read.is_err(), "the read has succeeded");
    mounted.wait()?;
    fs::rename(store.directory.join("away"), store.directory.join("store"))?;
    let again = store.end("mount", &[&mounted.directory.to_string_lossy()])?;
    ensure!(
        String::from_utf8_lossy(&again.stderr).contains("unmount it first"),
        "{again:?}"
    );
    mounted.umount()?;
    ensure!(!mounted.is_mounted()?, "it is mounted still");
    Ok(())
}
