// SPDX-License-Identifier: GPL-2.0-or-later
//! Checkpoints of a guest.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use vmem::{MapHandle, ProcessMemory};

use super::store::Store;
use crate::failure::{Outcome, ensure, equal};
use crate::suite::boot::{BootDisk, FIRST, SEGMENT, SEGMENTS};
use crate::suite::qemu::{MEMORY, Qemu, accelerators};
use crate::suite::snapshot::guest::{Cursor, check_prefix, words};
use crate::suite::vmemd::{map, open};
use crate::world::wait_until;

const FILE: &str = "/dev/shm/vmem-checkpoint-guest";

/// A guest that writes without end.
pub(super) struct Guest {
    pub(super) qemu: Qemu,
    pub(super) directory: PathBuf,
    disk: BootDisk,
    /// QEMU writes to its disk, and not to a temporary copy.
    has_disk: bool,
    /// More devices.
    devices: &'static [&'static str],
}

impl Guest {
    pub(super) fn new() -> Outcome<Self> {
        Self::start(false, &[])
    }

    /// A guest that is told when it was restored.
    pub(super) fn with_generation_id() -> Outcome<Self> {
        Self::start(false, &["-device", "VGA", "-device", "vmgenid,guid=auto"])
    }

    /// A guest whose disk can be kept.
    pub(super) fn with_disk() -> Outcome<Self> {
        Self::start(true, &[])
    }

    /// A guest of both kinds.
    pub(super) fn with_disk_and_generation_id() -> Outcome<Self> {
        Self::start(true, &["-device", "vmgenid,guid=auto"])
    }

    /// Whether its disk can be kept.
    pub(super) fn has_disk(&self) -> bool {
        self.has_disk
    }

    fn start(has_disk: bool, devices: &'static [&'static str]) -> Outcome<Self> {
        let directory = PathBuf::from("/tmp/vmem-checkpoint");
        let _ = (fs::remove_dir_all(&directory), fs::remove_file(FILE));
        fs::create_dir(&directory)?;
        let disk = BootDisk::new()?;
        let memory = format!("memory-backend-file,id=ram,size={MEMORY},mem-path={FILE},share=on");
        let socket = format!("unix:{},server=on,wait=off", directory.join("qmp").display());
        let options = [
            &disk.options()[..if has_disk { 2 } else { 3 }],
            &["-qmp", &socket, "-name", "guest0"],
            devices,
        ]
        .concat();
        let guest = Self {
            qemu: Qemu::start(&memory, &options)?,
            directory,
            disk,
            has_disk,
            devices,
        };
        wait_until("QEMU listens", || Ok(UnixStream::connect(guest.qmp()).is_ok()))?;
        wait_until("QEMU has its memory", || {
            Ok(ProcessMemory::open(guest.qemu.pid(), FILE).is_ok_and(|memory| memory.file().size == MEMORY))
        })?;
        let (file, mut word) = (fs::File::open(FILE)?, [0; 2]);
        wait_until("the guest writes", || {
            file.read_exact_at(&mut word, (FIRST + SEGMENTS * SEGMENT - 2) as u64)?;
            Ok(word != [0; 2])
        })?;
        Ok(guest)
    }

    pub(super) fn boot_disk(&self) -> &Path {
        self.disk.path()
    }

    /// A QEMU with the same devices, whose memory is its own, and which loads this stream and stands still.
    pub(super) fn loaded(&self, stream: &Path, qmp: &Path) -> Outcome<Qemu> {
        let memory = format!("memory-backend-ram,id=ram,size={MEMORY}");
        let (socket, incoming) = (
            format!("unix:{},server=on,wait=off", qmp.display()),
            format!("file:{}", stream.display()),
        );
        let options = [
            &self.disk.options()[..],
            &["-qmp", &socket, "-name", "guest0", "-S", "-incoming", &incoming],
        ]
        .concat();
        Qemu::start(&memory, &options)
    }

    pub(super) fn qmp(&self) -> PathBuf {
        self.directory.join("qmp")
    }

    pub(super) fn create(&self, store: &Store, more: &[&str]) -> Outcome<String> {
        let qmp = self.qmp();
        store.run("create", &[&["--json", "--qmp", &qmp.to_string_lossy()], more].concat())
    }

    pub(super) fn status(&self) -> Outcome<String> {
        status(&self.qmp())
    }

    /// The options of a QEMU that takes a checkpoint of this one.
    fn twin(&self) -> Vec<String> {
        self.taker("guest0", "share=on")
    }

    /// The same with this name, and with these options of its memory.
    pub(super) fn taker(&self, name: &str, memory: &str) -> Vec<String> {
        let mut words = vec!["qemu-system-x86_64", "-nodefaults", "-display", "none", "-name", name];
        words.extend(accelerators());
        let memory = format!("memory-backend-file,id=ram,size={MEMORY},mem-path={{memory:ram}},{memory}");
        words.extend(["-object", &memory, "-machine", "pc,memory-backend=ram"]);
        match self.has_disk {
            true => words.extend(["-drive", "file={disk:ide0-hd0},format=qcow2,if=ide"]),
            false => words.extend(self.disk.options()),
        }
        words.extend([
            "-chardev",
            "null,id=firmware",
            "-device",
            "isa-debugcon,iobase=0x402,chardev=firmware",
        ]);
        words.extend(self.devices);
        words.extend(["-incoming", "defer", "-qmp", "unix:{qmp},server=on,wait=off"]);
        words.into_iter().map(str::to_owned).collect()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
        let _ = fs::remove_file(FILE);
    }
}

/// What QEMU answers to this command.
pub(super) fn ask(qmp: &Path, command: &str) -> Outcome<String> {
    let mut stream = UnixStream::connect(qmp)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    lines.next().ok_or("no greeting")??;
    for command in ["{\"execute\": \"qmp_capabilities\"}", command] {
        writeln!(stream, "{command}")?;
        loop {
            let line = lines.next().ok_or("no answer")??;
            ensure!(!line.contains("\"error\""), "{command}: {line}");
            if line.starts_with("{\"return\"") {
                if command.contains("qmp_capabilities") {
                    break;
                }
                return Ok(line);
            }
        }
    }
    Err("no answer".into())
}

pub(super) fn status(qmp: &Path) -> Outcome<String> {
    let answer = ask(qmp, "{\"execute\": \"query-status\"}")?;
    let (_, status) = answer.split_once("\"status\": \"").ok_or(answer.clone())?;
    Ok(status.split('"').next().unwrap_or_default().to_owned())
}

/// A register of the guest's processor, its lower half.
fn register(qmp: &Path, name: &str) -> Outcome<u16> {
    let command = "{\"execute\": \"human-monitor-command\", \"arguments\": {\"command-line\": \"info registers\"}}";
    let answer = ask(qmp, command)?;
    let (_, value) = answer.split_once(&format!("{name}=")).ok_or(answer.clone())?;
    Ok(u16::from_str_radix(value.get(4..8).ok_or("a short number")?, 16)?)
}

/// Fails unless the memory is what the processor of a guest that stands still has written up to the instant of its registers, to the word.
pub(super) fn check_instant(qmp: &Path, segments: &[Vec<u16>]) -> Outcome<u16> {
    let Cursor { number, filled } = check_prefix(segments)?;
    let (ax, di) = (register(qmp, "EAX")?, register(qmp, "EDI")?);
    let is_within = ax == number && usize::from(di) == 2 * filled % SEGMENT;
    let is_between = ax == number.wrapping_add(1) && di == 0 && 2 * filled == SEGMENT;
    ensure!(
        is_within || is_between,
        "the processor is at {ax} and byte {di}, the memory at {number} and {filled} words"
    );
    Ok(number)
}

/// Lets a guest that stands still run on.
pub(super) fn go_on(qmp: &Path) -> Outcome {
    equal!(status(qmp)?, "paused");
    ask(qmp, "{\"execute\": \"cont\"}")?;
    let before = register(qmp, "EAX")?;
    wait_until("the restored guest writes", || Ok(register(qmp, "EAX")? != before))
}

/// The words of each segment.
pub(super) fn segments(bytes: &[u8]) -> Vec<Vec<u16>> {
    bytes.chunks(SEGMENT).map(words).collect()
}

/// A restored guest, which stands still.
pub(super) struct Restored {
    pub(super) qmp: PathBuf,
    region: MapHandle,
    node: PathBuf,
    restore: super::store::Restore,
}

impl Restored {
    pub(super) fn new(store: &Store, guest: &Guest, checkpoint: &str, more: &[&str]) -> Outcome<Self> {
        Self::in_region(store, guest, checkpoint, "guest0.ram", more)
    }

    /// One whose memory gets this region.
    pub(super) fn in_region(store: &Store, guest: &Guest, checkpoint: &str, region: &str, more: &[&str]) -> Outcome<Self> {
        let qmp = guest.directory.join("restored");
        let _ = fs::remove_file(&qmp);
        let twin = guest.twin();
        let path = qmp.to_string_lossy().into_owned();
        let mut arguments = vec!["--qmp", &path];
        arguments.extend_from_slice(more);
        arguments.push("--");
        arguments.extend(twin.iter().map(String::as_str));
        let restore = store.restore(checkpoint, &arguments, "restored")?;
        Ok(Self {
            region: open(region)?,
            node: Path::new("/dev/vmem").join(region),
            qmp,
            restore,
        })
    }

    fn segments(&self) -> Outcome<Vec<Vec<u16>>> {
        let mut bytes = vec![0; SEGMENTS * SEGMENT];
        map(&self.region)?.read_at(FIRST, &mut bytes)?;
        Ok(segments(&bytes))
    }

    /// As [`check_instant`].
    pub(super) fn check(&self) -> Outcome<u16> {
        check_instant(&self.qmp, &self.segments()?)
    }

    /// Ends the guest, whatever of its memory is there.
    pub(super) fn quit(mut self) -> Outcome {
        ask(&self.qmp, "{\"execute\": \"quit\"}")?;
        // It says that the guest has ended too early.
        self.restore.child().wait()?;
        drop(self.region);
        let node = self.node;
        wait_until("its region is gone", || Ok(!node.exists()))
    }

    /// Lets the guest run on, and ends it.
    pub(super) fn end(self) -> Outcome {
        self.restore.end()?;
        go_on(&self.qmp)?;
        ask(&self.qmp, "{\"execute\": \"quit\"}")?;
        drop(self.region);
        let node = self.node;
        wait_until("its region is gone", || Ok(!node.exists()))
    }
}

/// The number after this text.
fn number(text: &str, before: &str) -> Outcome<f64> {
    let (_, number) = text.split_once(before).ok_or(format!("no {before} in {text}"))?;
    let end = number
        .find(|c: char| !c.is_ascii_digit() && !".e-".contains(c))
        .unwrap_or(number.len());
    Ok(number[..end].parse()?)
}

pub(super) fn exact(store: &Store, guest: &mut Guest) -> Outcome {
    let said = guest.create(store, &["--every", "1", "--count", "3"])?;
    // A process that knows nothing of the first ones compares hashes.
    let later = guest.create(store, &[])?;
    equal!(guest.status()?, "running");
    let lines: Vec<&str> = said
        .lines()
        .chain(later.lines())
        .filter(|line| line.contains("\"event\":\"checkpoint\""))
        .collect();
    equal!(lines.len(), 4);
    for (at, line) in lines.iter().enumerate() {
        ensure!(line.contains(&format!("\"checkpoint\":\"guest0@{}\"", at + 1)), "{line}");
        println!(
            "  {}: {} pages, {} stored; stood still {:.2} ms: devices {:.2}, arming {:.2}, resuming {:.2}",
            at + 1,
            number(line, "\"pages\":")?,
            number(line, "\"stored_pages\":")?,
            number(line, "\"pause_seconds\":")? * 1e3,
            number(line, "\"pause_devices_seconds\":")? * 1e3,
            number(line, "\"pause_arming_seconds\":")? * 1e3,
            number(line, "\"pause_resuming_seconds\":")? * 1e3
        );
    }
    // The guest writes 128 pages. The second and third look at what was written, the fourth at all and stores no more.
    for line in &lines[1..3] {
        let pages = number(line, "\"pages\":")?;
        ensure!((128.0..512.0).contains(&pages), "{line}");
    }
    equal!(number(lines[3], "\"pages\":")?, MEMORY as f64 / 4096.0);
    let stored = number(lines[3], "\"stored_pages\":")?;
    ensure!((0.0..1024.0).contains(&stored), "{}", lines[3]);
    let mut moments = Vec::new();
    for checkpoint in ["guest0@1", "guest0@2", "guest0@3", "guest0@latest"] {
        let restored = Restored::new(store, guest, checkpoint, &["--paused"])?;
        moments.push(restored.check()?);
        restored.end()?;
    }
    moments.dedup();
    equal!(moments.len(), 4);
    ensure!(guest.qemu.runs()?, "QEMU has ended");
    Ok(())
}

/// Where QEMU runs, another file system is in the place of the files of regions: QEMU makes a plain file there, which is full of zeros.
pub(super) fn with_another_file(store: &Store, guest: &mut Guest) -> Outcome {
    const HIDDEN: &str = "mount -t tmpfs none /run/vmem && exec \"$@\"";
    guest.create(store, &[])?;
    let qmp = guest.directory.join("restored").display().to_string();
    let twin = guest.twin();
    let mut arguments = vec![
        "guest0", "--qmp", &qmp, "--", "unshare", "--mount", "/bin/sh", "-c", HIDDEN, "sh",
    ];
    arguments.extend(twin.iter().map(String::as_str));
    let ended = store.end("restore", &arguments)?;
    let errors = String::from_utf8_lossy(&ended.stderr);
    ensure!(
        !ended.status.success() && errors.contains("does not have /run/vmem/guest0.ram open"),
        "{}: {errors}",
        ended.status
    );
    wait_until("its region is gone", || Ok(!Path::new("/dev/vmem/guest0.ram").exists()))
}

pub(super) fn paused(store: &Store, guest: &mut Guest) -> Outcome {
    ask(&guest.qmp(), "{\"execute\": \"stop\"}")?;
    let memory = fs::read(FILE)?;
    for _ in 0..2 {
        let said = guest.create(store, &[])?;
        ensure!(said.contains("\"running\":false"), "{said}");
        equal!(guest.status()?, "paused");
    }
    // Without --paused: it was, and so it is.
    let restored = Restored::new(store, guest, "guest0", &[])?;
    let mut found = vec![0; memory.len()];
    map(&restored.region)?.read_at(0, &mut found)?;
    ensure!(found == memory, "the memory is not that of the paused guest");
    restored.check()?;
    restored.end()?;
    ask(&guest.qmp(), "{\"execute\": \"cont\"}")?;
    equal!(guest.status()?, "running");
    Ok(())
}

pub(super) fn killed(store: &Store, guest: &mut Guest) -> Outcome {
    let qmp = guest.qmp();
    for delay in (0..24).map(|step| Duration::from_millis(20 * step)) {
        let mut child = store.command("create")?.arg("--qmp").arg(&qmp).spawn()?;
        sleep(delay);
        child.kill()?;
        child.wait()?;
        // QEMU continues the guest by itself. For a moment it may take a new client for the one that was killed.
        wait_until("the guest runs", || {
            Ok(guest.status().is_ok_and(|status| status == "running"))
        })?;
    }
    // The settings of a killed checkpoint may be on, and another one works all the same.
    wait_until("the memory can be tracked again", || {
        Ok(store.end("create", &["--qmp", &qmp.to_string_lossy()])?.status.success())
    })?;
    // The schema allows what that prints.
    store.run("list", &["--json"])?;
    // Each one that is listed is whole.
    let listed = store.run("list", &[])?;
    let names: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    ensure!(!names.is_empty(), "{listed}");
    let last = names.last().ok_or("none")?;
    for name in [names[0], last] {
        let restored = Restored::new(store, guest, name, &["--paused"])?;
        restored.check()?;
        restored.end()?;
    }
    Ok(())
}

pub(super) fn without_room(store: &Store, guest: &mut Guest) -> Outcome {
    let qmp = guest.qmp();
    let output = store.end("create", &["--qmp", &qmp.to_string_lossy(), "--copies", "16K"])?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(1) && stderr.contains("reached the limit"),
        "{:?} {stderr}",
        output.status
    );
    equal!(guest.status()?, "running");
    equal!(store.run("list", &[])?, "");
    guest.create(store, &["--copies", "64M"])?;
    let restored = Restored::new(store, guest, "guest0@1", &["--paused"])?;
    restored.check()?;
    restored.end()
}
