// SPDX-License-Identifier: GPL-2.0-or-later
//! Two hosts and what is between them.
//!
//! Each host is a network namespace. The wire, a veth pair with a delay and a rate, joins the two: only migrations go over it. The LAN is
//! a bridge in the machine's own namespace, where the guests' clients are; each host has a bridge of its own at the LAN, and the taps
//! of its guests are on that. So a guest keeps its address wherever it runs.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::command::{line, run};

/// The address of the machine itself at the LAN.
pub(crate) const LAN_ADDRESS: &str = "192.0.2.254";

/// A host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// Where guests start.
    First,
    /// Where they go.
    Second,
}

/// What the wire is like.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    /// Delay in each direction, on top of what the machine itself takes.
    pub(crate) delay_ms: f64,
    /// Bits per second, as tc writes it. None: as fast as it goes.
    pub(crate) rate: Option<String>,
}

/// The network; gone when dropped.
pub(crate) struct Network(());

impl Wire {
    /// What it carries. Without a rate, nobody knows.
    pub(crate) fn bytes_per_second(&self) -> Result<u64> {
        let rate = self.rate.as_deref().context("the wire has no rate")?;
        let digits = rate.find(|sign: char| !sign.is_ascii_digit()).unwrap_or(rate.len());
        let (number, unit) = rate.split_at(digits);
        let bits: u64 = match unit {
            "kbit" => 1000,
            "mbit" => 1_000_000,
            "gbit" => 1_000_000_000,
            _ => bail!("the rate {rate:?} is not a number of kbit, mbit or gbit"),
        };
        let number: u64 = number.parse().with_context(|| format!("the rate {rate:?}"))?;
        number.checked_mul(bits / 8).context("the rate is too high")
    }
}

impl Host {
    /// Both of them.
    pub(crate) const BOTH: [Self; 2] = [Self::First, Self::Second];

    /// Its namespace.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::First => "host0",
            Self::Second => "host1",
        }
    }

    /// Its address on the wire.
    pub(crate) fn address(self) -> &'static str {
        match self {
            Self::First => "198.51.100.1",
            Self::Second => "198.51.100.2",
        }
    }

    /// Its address of IPv6 there.
    pub(crate) fn address_v6(self) -> &'static str {
        match self {
            Self::First => "2001:db8::1",
            Self::Second => "2001:db8::2",
        }
    }

    /// The other one.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// A program on this host: its words, or the first of them.
    pub(crate) fn command<W: AsRef<OsStr>>(self, words: &[W]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name()]).args(words);
        command
    }

    fn ip(self, arguments: &str) -> Result<()> {
        line(&format!("ip -n {} {arguments}", self.name())).map(drop)
    }

    fn tc(self, arguments: &str) -> Result<()> {
        line(&format!("tc -n {} {arguments}", self.name())).map(drop)
    }

    /// Makes this end of the wire what a network card is: what is sent waits in a fair queue, and the delay comes after it. (In a queue of
    /// netem's the connections of a migration would wait for each other, as long as their buffers are.)
    fn shape(self, wire: &Wire) -> Result<()> {
        if let Some(rate) = &wire.rate {
            self.tc(&format!(
                "qdisc add dev wire root handle 1: tbf rate {rate} burst 128kb latency 50ms"
            ))?;
            self.tc("qdisc add dev wire parent 1:1 fq_codel")?;
        }
        if wire.delay_ms > 0.0 {
            self.ip("link add delay type ifb")?;
            self.ip("link set delay up")?;
            self.tc("qdisc add dev wire ingress")?;
            self.tc("filter add dev wire parent ffff: matchall action mirred egress redirect dev delay")?;
            self.tc(&format!(
                "qdisc add dev delay root netem delay {}ms limit 100000",
                wire.delay_ms
            ))?;
        }
        Ok(())
    }

    /// The processes on this host.
    pub(crate) fn processes(self) -> Result<Vec<Pid>> {
        let list = line(&format!("ip netns pids {}", self.name()))?;
        Ok(list
            .lines()
            .filter_map(|pid| Pid::from_raw(pid.trim().parse().ok()?))
            .collect())
    }

    /// Those of them that run this program.
    pub(crate) fn processes_of(self, program: &str) -> Result<Vec<Pid>> {
        let is = |pid: &Pid| {
            let name = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
            name.is_ok_and(|name| name.trim() == program)
        };
        Ok(self.processes()?.into_iter().filter(is).collect())
    }

    /// Kills the processes that run this program. That there are none is an error.
    pub(crate) fn kill_all(self, program: &str) -> Result<()> {
        let processes = self.processes_of(program)?;
        ensure!(!processes.is_empty(), "no {program} runs on {}", self.name());
        for pid in processes {
            kill_process(pid, Signal::KILL)?;
        }
        Ok(())
    }

    /// Gives it an address of its own at the LAN, where guests have those below 110.
    pub(crate) fn join_lan(self, number: u8) -> Result<()> {
        self.ip(&format!("address add 192.0.2.{}/24 dev bridge", 200 + number))
    }

    /// Makes a tap at the LAN.
    pub(crate) fn add_tap(self, name: &str) -> Result<()> {
        self.ip(&format!("tuntap add {name} mode tap"))?;
        self.ip(&format!("link set {name} master bridge up"))
    }

    /// Removes a tap.
    pub(crate) fn remove_tap(self, name: &str) -> Result<()> {
        self.ip(&format!("link delete {name}"))
    }
}

impl Network {
    /// Builds it.
    pub(crate) fn new(wire: &Wire) -> Result<Self> {
        // Of an earlier one that was not taken down.
        tear_down();
        let network = Self(());
        line("modprobe -a bridge tun veth sch_tbf sch_netem").context("the network's modules")?;
        line("ip link add lan type bridge forward_delay 0")?;
        line(&format!("ip address add {LAN_ADDRESS}/24 dev lan"))?;
        line("ip link set lan up")?;
        for host in Host::BOTH {
            let name = host.name();
            line(&format!("ip netns add {name}"))?;
            line(&format!("ip link add name lan-{name} type veth peer name lan netns {name}"))?;
            line(&format!("ip link set lan-{name} master lan up"))?;
            host.ip("link set lo up")?;
            host.ip("link add bridge type bridge forward_delay 0")?;
            host.ip("link set lan master bridge up")?;
            host.ip("link set bridge up")?;
        }
        let [first, second] = Host::BOTH.map(Host::name);
        line(&format!(
            "ip link add name wire netns {first} type veth peer name wire netns {second}"
        ))?;
        for host in Host::BOTH {
            host.ip(&format!("address add {}/24 dev wire", host.address()))?;
            host.ip(&format!("address add {}/64 dev wire nodad", host.address_v6()))?;
            host.ip("link set wire up")?;
            host.shape(wire)?;
        }
        // A client finds within moments that the guest answers again, and not when TCP thinks of trying again.
        line("ip route change 192.0.2.0/24 dev lan src 192.0.2.254 rto_min 20ms")?;
        run("sysctl", &["-qw", "net.ipv4.tcp_thin_linear_timeouts=1"])?;
        Ok(network)
    }

    /// Bytes that have gone over the wire, in both directions.
    pub(crate) fn wire_bytes(&self) -> Result<u64> {
        let statistics = "/sys/class/net/wire/statistics";
        let text = line(&format!(
            "ip netns exec {} cat {statistics}/tx_bytes {statistics}/rx_bytes",
            Host::First.name()
        ))?;
        text.split_whitespace()
            .map(|bytes| bytes.parse::<u64>().context("a counter of the wire"))
            .sum()
    }

    /// Gives both ends of the wire another rate.
    pub(crate) fn set_rate(&self, rate: &str) -> Result<()> {
        for host in Host::BOTH {
            host.tc(&format!(
                "qdisc change dev wire root handle 1: tbf rate {rate} burst 128kb latency 50ms"
            ))?;
        }
        Ok(())
    }

    /// Cuts the wire, or joins it again.
    pub(crate) fn set_wire(&self, up: bool) -> Result<()> {
        Host::First.ip(&format!("link set wire {}", if up { "up" } else { "down" }))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        tear_down();
    }
}

/// Removes what is there of a network.
fn tear_down() {
    for command in ["ip link delete lan", "ip netns delete host0", "ip netns delete host1"] {
        let _ = line(command);
    }
}
