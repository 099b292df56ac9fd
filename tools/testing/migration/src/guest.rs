// SPDX-License-Identifier: GPL-2.0-or-later
//! A guest, wherever it runs: what it is made of, and what can be asked of it.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::evidence;
use crate::harm::ensure_unharmed;
use crate::network::Host;
use crate::patience::patience;
use crate::qemu;
use crate::slot::Slot;
use crate::variant::Variant;

/// When the clock of a guest with an agent begins, in seconds since 1970: long ago.
pub(crate) const AGENT_EPOCH: u64 = 1_500_000_000;

/// What a guest is made of.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    /// Tells guests apart that are there at the same time: below 100.
    pub(crate) number: u8,
    /// MiB of RAM of each of its memory backends: one, or two (each a NUMA node).
    pub(crate) memory_mib: Vec<u32>,
    /// How much of that it works on.
    pub(crate) work_mib: u32,
    /// Whether it has a network device.
    pub(crate) network: bool,
    /// Whether it has a disk (`disk`).
    pub(crate) has_disk: bool,
    /// Whether QEMU's guest agent runs in it, and it has a file system that can be frozen. Its clock begins at [`AGENT_EPOCH`].
    pub(crate) has_agent: bool,
    /// Whether it has a balloon, which gives memory back to its host.
    pub(crate) has_balloon: bool,
    /// Variables of its QEMU's environment, as NAME=VALUE.
    pub(crate) environment: Vec<String>,
    /// What is done otherwise than usual.
    pub(crate) variant: Variant,
}

/// What a guest's RAM is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// QEMU's own, anonymous.
    Anonymous,
    /// A file in shared memory for each backend.
    Shared,
    /// What `vmemctl receive` puts in.
    Template,
    /// The file of a region for each backend ([`Guest::region`]).
    Region,
    /// The node of a region for each backend.
    Node,
}

/// What a guest has seen since it was last told to mark.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Report {
    pub(crate) ticker: Ticker,
    pub(crate) touches: Touches,
}

/// Its ticker. Seconds.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Ticker {
    pub(crate) own_gap: f64,
    pub(crate) host_gap: Option<f64>,
    pub(crate) late: f64,
}

/// Its worker's touches of pages. Seconds.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Touches {
    pub(crate) count: u64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
    pub(crate) work: u64,
    pub(crate) wrong: Vec<String>,
}

/// What it has found in its memory.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) pages: u64,
    wrong: u64,
    first: Vec<String>,
    pub(crate) work: u64,
    generations: u64,
}

/// What it has found in the memory that its disk has written to.
#[derive(Clone, Debug, Deserialize)]
struct DiskVerdict {
    reads: u64,
    wrong: u64,
    first: Vec<String>,
}

/// What it has written to its file.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Written {
    /// Writes that have ended.
    pub(crate) writes: u64,
    /// Seconds since the last one ended, by its own clock.
    pub(crate) held: f64,
    error: Option<String>,
}

/// What the worker of a guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Next to nothing: a page is read now and then.
    Idle,
    /// Pages all over its memory are checked and written: so many a second, or (0) as many as it can.
    Writing(u32),
    /// The same. It is so many percent of what the wire carries.
    OfWire { percent: u32, pages: u32 },
}

impl Load {
    /// What the tables call it.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Idle => "idle".into(),
            Self::Writing(_) => "writing all over its memory".into(),
            Self::OfWire { percent, .. } => format!("writing {} times what the wire carries", f64::from(percent) / 100.0),
        }
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            number: 0,
            memory_mib: vec![192],
            work_mib: 96,
            network: true,
            has_disk: false,
            has_agent: false,
            has_balloon: false,
            environment: Vec::new(),
            variant: Variant::default(),
        }
    }
}

impl Guest {
    fn address(&self) -> String {
        format!("192.0.2.{}", 10 + self.number)
    }

    /// Where `vmemctl receive` listens for it.
    pub(crate) fn port(&self) -> u16 {
        8637 + u16::from(self.number)
    }

    /// A place for it on this host.
    pub(crate) fn slot(&self, host: Host) -> Result<Slot> {
        Slot::new(host, self.number, self.has_disk)
    }

    /// Where its service is.
    pub(crate) fn service(&self) -> Result<SocketAddr> {
        Ok(format!("{}:7", self.address()).parse()?)
    }

    /// The words that start QEMU for it on this host.
    pub(crate) fn qemu(&self, host: Host) -> Vec<String> {
        let env = (!self.environment.is_empty()).then_some("env");
        let before = env.into_iter().chain(self.environment.iter().map(String::as_str));
        let words = before.chain(self.variant.before_qemu().iter().copied());
        words.chain([qemu::program(host)]).map(str::to_owned).collect()
    }

    /// The command of a QEMU that takes it in this slot, for vmemctl.
    pub(crate) fn taker(&self, slot: &Slot) -> Vec<String> {
        let mut words = self.qemu(slot.host);
        words.extend(self.arguments(slot, Memory::Template));
        words.extend(["-incoming", "defer"].map(str::to_owned));
        words
    }

    /// The name of the region of a backend on this host: the hosts are one machine, which has each name once.
    pub(crate) fn region(&self, host: Host, backend: usize) -> String {
        format!("{}-guest{}-ram{backend}", host.name(), self.number)
    }

    /// Bytes of its RAM.
    pub(crate) fn memory(&self) -> u64 {
        self.memory_mib.iter().map(|mib| u64::from(*mib) << 20).sum()
    }

    /// QEMU's command line for it, without the program.
    pub(crate) fn arguments(&self, slot: &Slot, memory: Memory) -> Vec<String> {
        let mut arguments: Vec<String> =
            "-nodefaults -no-user-config -display none -bios qboot.rom -smp 1 -kernel build/guest/vmlinuz"
                .split(' ')
                .map(str::to_owned)
                .collect();
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        let file_system = if self.has_agent { "initramfs-agent" } else { "initramfs" };
        add("-initrd", format!("build/guest/{file_system}"));
        let end = if evidence::keeps_dead() { "pause" } else { "poweroff" };
        add("-action", format!("reboot=shutdown,shutdown={end}"));
        let (accelerator, cpu) = match Path::new("/dev/kvm").exists() && !self.variant.emulated {
            true => ("kvm", "host,svm=off,vmx=off"),
            false => ("tcg", "max"),
        };
        add("-name", format!("guest{}", self.number));
        add("-pidfile", slot.pid().display().to_string());
        add("-cpu", cpu.into());
        add("-m", format!("{}M", self.memory_mib.iter().sum::<u32>()));
        let mut machine = format!("{},accel={accelerator}", qemu::machine_type());
        if memory != Memory::Anonymous {
            for (node, mib) in self.memory_mib.iter().enumerate() {
                let path = match memory {
                    Memory::Template => format!("{{memory:ram{node}}}"),
                    Memory::Region => format!("/run/vmem/{}", self.region(slot.host, node)),
                    Memory::Node => format!("/dev/vmem/{}", self.region(slot.host, node)),
                    _ => slot.shared_memory(node),
                };
                add(
                    "-object",
                    format!("memory-backend-file,id=ram{node},size={mib}M,mem-path={path},share=on"),
                );
                match self.memory_mib.len() {
                    1 => machine += ",memory-backend=ram0",
                    _ => add("-numa", format!("node,nodeid={node},memdev=ram{node}")),
                }
            }
        }
        add("-machine", machine);
        let mut append = format!(
            "console=ttyS0 quiet panic=-1 GUEST_ADDRESS={}/24 GUEST_MIB={} GUEST_NETWORK={}",
            self.address(),
            self.work_mib,
            qemu::network_device()
        );
        if self.variant.without_async_pf {
            append += " no-kvmapf";
        }
        if self.has_agent {
            append += &format!(" GUEST_AGENT={AGENT_EPOCH}");
        }
        add("-append", append);
        add("-serial", format!("file:{}", slot.console().display()));
        if self.network {
            add("-netdev", format!("tap,id=lan,ifname={},script=no,downscript=no", slot.tap()));
            let mac = format!("52:54:00:00:00:{:02x}", self.number);
            add("-device", format!("{},netdev=lan,mac={mac},romfile=", qemu::network_device()));
        }
        if self.has_disk {
            add("-chardev", format!("socket,id=disk,path={}", slot.disk_socket().display()));
            add("-device", "vhost-user-blk-pci,chardev=disk".into());
        }
        if self.has_agent {
            add("-device", "virtio-serial".into());
            add(
                "-chardev",
                format!("socket,id=agent,path={},server=on,wait=off", slot.agent().display()),
            );
            add("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0".into());
        }
        if self.has_balloon {
            add("-device", "virtio-balloon-pci".into());
        }
        add("-qmp", format!("unix:{},server=on,wait=off", slot.own_qmp().display()));
        let qmp = match memory {
            Memory::Template => "{qmp}".into(),
            _ => slot.qmp().display().to_string(),
        };
        add("-qmp", format!("unix:{qmp},server=on,wait=off"));
        arguments
    }

    /// Tells its worker what to do.
    pub(crate) fn work(&self, load: Load) -> Result<()> {
        self.order(&match load {
            Load::Idle => "idle".into(),
            Load::Writing(pages) | Load::OfWire { pages, .. } => format!("write {pages}"),
        })
    }

    /// What is reported is of now and later.
    pub(crate) fn mark(&self) -> Result<()> {
        self.order("mark")
    }

    /// What it has seen.
    pub(crate) fn report(&self) -> Result<Report> {
        let report: Report = self.question("report")?;
        ensure_unharmed!(
            report.touches.wrong.is_empty(),
            "wrong pages: {}",
            report.touches.wrong.join("; ")
        );
        Ok(report)
    }

    /// How many pages it had written, over time: seconds since 1970, by the clock of its host.
    pub(crate) fn samples(&self) -> Result<Vec<(f64, u64)>> {
        self.question("samples")
    }

    /// It looks at all pages that it works on; that one is wrong is an error.
    pub(crate) fn verify(&self) -> Result<Verdict> {
        let verdict: Verdict = self.question("verify")?;
        ensure_unharmed!(
            verdict.wrong == 0,
            "{} of the guest's {} pages are wrong: {}",
            verdict.wrong,
            verdict.pages,
            verdict.first.join("; ")
        );
        ensure_unharmed!(
            verdict.work == verdict.generations,
            "the guest has written {} pages, and its pages tell of {}",
            verdict.work,
            verdict.generations
        );
        Ok(verdict)
    }

    /// It starts a process with a few pages. Returns where they are: page frame numbers in the guest.
    pub(crate) fn start_victim(&self) -> Result<Vec<u64>> {
        let answer = self.ask("victim")?;
        let frames = answer.split(' ').map(str::parse).collect::<Result<Vec<u64>, _>>();
        frames.with_context(|| format!("the guest answers {answer:?} and not with numbers"))
    }

    /// That process looks at one of its pages: "ok", or the signal of which it has died.
    pub(crate) fn touch(&self, page: usize) -> Result<String> {
        self.ask(&format!("touch {page}"))
    }

    /// It starts to send datagrams to this address, without a pause.
    pub(crate) fn start_traffic(&self, to: SocketAddr) -> Result<()> {
        self.order(&format!("traffic {to}"))
    }

    /// It ends that; returns how many datagrams of others have come to it.
    pub(crate) fn end_traffic(&self) -> Result<u64> {
        let answer = self.ask("quiet")?;
        answer
            .parse()
            .with_context(|| format!("the guest answers {answer:?} and not with a number"))
    }

    /// It starts to read its disk into its memory, all the time.
    pub(crate) fn start_disk(&self) -> Result<()> {
        self.order("disk")
    }

    /// It looks at all that it has read from its disk. That some of it is wrong is an error. Returns how many pages it has read.
    pub(crate) fn check_disk(&self) -> Result<u64> {
        let verdict: DiskVerdict = self.question("check-disk")?;
        ensure_unharmed!(
            verdict.wrong == 0,
            "wrong pages: {} of those that the guest has read from its disk: {}",
            verdict.wrong,
            verdict.first.join("; ")
        );
        Ok(verdict.reads)
    }

    /// It starts to write a file on its file system, all the time.
    pub(crate) fn start_log(&self) -> Result<()> {
        self.order("log")
    }

    /// What it has written to that file.
    pub(crate) fn written(&self) -> Result<Written> {
        let written: Written = self.question("check-log")?;
        ensure!(written.error.is_none(), "the guest cannot write its file: {written:?}");
        Ok(written)
    }

    /// Its clock: seconds since 1970.
    pub(crate) fn time(&self) -> Result<u64> {
        self.question("time")
    }

    fn order(&self, order: &str) -> Result<()> {
        let answer = self.ask(order)?;
        ensure!(answer == "ok", "the guest answers {answer:?} to {order:?}");
        Ok(())
    }

    fn question<T: DeserializeOwned>(&self, question: &str) -> Result<T> {
        let answer = self.ask(question)?;
        serde_json::from_str(&answer).with_context(|| format!("the guest answers {answer:?} to {question:?}"))
    }

    fn ask(&self, line: &str) -> Result<String> {
        let asked = || -> Result<String> {
            let mut connection = TcpStream::connect_timeout(&self.service()?, patience())?;
            connection.set_read_timeout(Some(patience()))?;
            connection.write_all(format!("{line}\n").as_bytes())?;
            let mut answer = String::new();
            BufReader::new(connection).read_line(&mut answer)?;
            Ok(answer.trim_end().to_owned())
        };
        asked().with_context(|| format!("cannot ask the guest: {line}"))
    }
}

impl Ticker {
    /// The longest time in which the guest did not run, as it saw it: by its host's clock, where that can be read.
    pub(crate) fn gap(&self) -> f64 {
        self.host_gap.unwrap_or(self.own_gap)
    }
}
