// SPDX-License-Identifier: GPL-2.0-or-later
//! The demo of checkpoints, `make demo-checkpoint`: a guest is kept in S3 every few seconds, its host fails, and it goes on on another host.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmem::{Access, MapHandle, PAGE_SIZE};

use crate::bucket::{Bucket, STORE};
use crate::chart::{Chart, Line, Panel};
use crate::client::Client;
use crate::guest::{Guest, Load, Memory};
use crate::harm::is_emulated;
use crate::machine::Machine;
use crate::network::Host;
use crate::patience::wait_until;
use crate::rig::Rig;
use crate::seconds::seconds;
use crate::slot::Slot;
use crate::story::Story;
use crate::timeline::Growing;
use crate::variant::Variant;
use crate::vmemctl::{Vmemctl, said};

/// Seconds from one checkpoint to the next.
const EVERY: &str = "3";
const COUNT: usize = 6;
/// Pages that the guest writes each second.
const PACE: u32 = 300;
/// How long somebody who asks a guest waits before asking again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long all of its memory may take, and when it is said how much is there.
const FILLED: Duration = Duration::from_secs(600);
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// A checkpoint, as its guest and its client felt it.
struct Kept {
    /// Seconds since the first one was ordered.
    time: f64,
    /// Seconds that the guest stood still.
    pause: f64,
    /// The longest time that the client waited for an answer since the one before.
    wait: f64,
}

/// Shows it, and draws the pauses into the file `plot`.
pub(crate) fn run(setting: &[String], plot: Option<&Path>, variant: Variant) -> Result<()> {
    let story = Story::begin();
    let mut guest = Guest {
        variant,
        ..Guest::default()
    };
    let [first, second] = Host::BOTH.map(Host::name);
    story.step(&format!(
        "Two hosts, {first} and {second}, and a bucket in S3 that both can reach (moto, a server that others wrote)"
    ));
    setting.iter().for_each(|line| story.say(line));
    if is_emulated() {
        // As in the demo of moves.
        guest.variant.without_async_pf = true;
    }
    for (number, host) in (1..).zip(Host::BOTH) {
        host.join_lan(number)?;
    }
    let kept = story.persist(|| once(&story, &guest))?;
    if let Some(plot) = plot {
        fs::write(plot, chart(&kept)).with_context(|| format!("cannot write {}", plot.display()))?;
    }
    Ok(())
}

fn once(story: &Story, guest: &Guest) -> Result<Vec<Kept>> {
    // Those of an attempt that was given up would go on with its store.
    for host in Host::BOTH {
        let _ = host.kill_all("vmemd");
    }
    let _bucket = Bucket::new()?;
    let [first, second] = Host::BOTH.map(Host::name);
    story.step(&format!(
        "On {first}: an unmodified QEMU boots a Linux on {}",
        Rig::accelerator()
    ));
    let machine = Machine::boot(Host::First, guest, Memory::Shared)?;
    guest.work(Load::Writing(PACE))?;
    let client = Client::start(guest.service()?)?;
    story.say(&format!(
        "it checks and writes {PACE} pages a second, all over {} MiB of its {} MiB; a client talks to it every few milliseconds",
        guest.work_mib,
        guest.memory() >> 20
    ));

    story.step(&format!(
        "On {first}: vmemctl checkpoint create --store {STORE} --every {EVERY} --qmp guest0.qmp"
    ));
    checkpoint(&machine.slot, "init", &["--store", STORE])?.expect(&machine.slot, 0)?;
    let kept = keep(story, &machine.slot, &client)?;
    client.stop()?;

    story.step(&format!("{first} fails: its QEMU is killed"));
    drop(machine);
    ensure!(ask(guest).is_err(), "the guest answers, and has no host");

    story.step(&format!(
        "On {second}: vmemctl checkpoint restore --store {STORE} guest0@latest -- qemu-system-x86_64 ..."
    ));
    restored(story, guest)?;
    Ok(kept)
}

/// Makes the checkpoints, one every few seconds, and tells of each.
fn keep(story: &Story, slot: &Slot, client: &Client) -> Result<Vec<Kept>> {
    let (qmp, count) = (slot.qmp(), COUNT.to_string());
    let qmp = qmp.to_str().context("a path that is no text")?;
    client.mark();
    let began = Instant::now();
    let words = ["--store", STORE, "--qmp", qmp, "--every", EVERY, "--count", &count];
    let mut create = checkpoint(slot, "create", &words)?;
    let mut log = Growing::new(slot.log("create"));
    let mut kept = Vec::new();
    wait_until("the checkpoints are made", || {
        let has_ended = !create.runs()?;
        for made in log.lines().iter().filter(|line| line["event"] == "checkpoint") {
            let wait = client.waits().longest;
            client.mark();
            kept.push(tell(story, made, began.elapsed(), wait)?);
        }
        ensure!(
            kept.len() >= COUNT || !has_ended,
            "vmemctl has ended: {}",
            slot.read_log("create")
        );
        Ok(kept.len() >= COUNT)
    })?;
    create.expect(slot, 0)?;
    let longest = kept.iter().map(|kept| kept.pause).fold(0.0, f64::max);
    story.say(&format!("the guest stood still for {} at most", seconds(longest)));
    Ok(kept)
}

fn tell(story: &Story, made: &Value, at: Duration, wait: Duration) -> Result<Kept> {
    let number = |name: &str| made[name].as_f64().with_context(|| format!("no {name} in {made}"));
    let pause = number("pause_seconds")?;
    story.say(&format!(
        "{}: {} of {} pages stored in {:.1} MiB; the guest stood still {}, the client waited {} at most",
        made["checkpoint"].as_str().unwrap_or_default(),
        number("stored_pages")?,
        number("memory_bytes")? / PAGE_SIZE as f64,
        number("stored_bytes")? / f64::from(1 << 20),
        seconds(pause),
        seconds(wait.as_secs_f64())
    ));
    Ok(Kept {
        time: at.as_secs_f64(),
        pause,
        wait: wait.as_secs_f64(),
    })
}

/// Restores the guest from its latest checkpoint, and looks at what it has.
fn restored(story: &Story, guest: &Guest) -> Result<()> {
    let slot = guest.slot(Host::Second)?;
    let qmp = slot.qmp();
    let mut words = vec!["--store", STORE, "guest0@latest", "--qmp"];
    words.extend([qmp.to_str().context("a path that is no text")?, "--"]);
    let qemu = guest.taker(&slot);
    words.extend(qemu.iter().map(String::as_str));

    let began = Instant::now();
    let mut restore = checkpoint(&slot, "restore", &words)?;
    let ready = restore.wait_for(&slot, "ready")?;
    // It has a name only until all of it is there.
    let region = ready["regions"][0]["region"].as_str().context("no region")?;
    let region = MapHandle::open(region, Access::ReadOnly)?;
    wait_until("the restored guest answers", || {
        // A guest that is slow may answer only when all of its memory is there.
        let (runs, log) = (restore.runs()?, slot.read_log("restore"));
        ensure!(runs || said(&log, "complete").is_some(), "vmemctl has ended: {log}");
        Ok(ask(guest).is_ok())
    })?;
    let answered = began.elapsed();
    let present = region.info()?.present * PAGE_SIZE as u64;
    story.step("The guest answers");
    story.say(&format!(
        "{} after the order; {} of its {} MiB are there, and the others come when they are touched, and meanwhile",
        seconds(answered.as_secs_f64()),
        present >> 20,
        guest.memory() >> 20
    ));
    fill(story, guest, &mut restore, &slot, &region)?;
    drop(region);
    story.step("All of its memory is there");
    story.say(&format!("{} after the order", seconds(began.elapsed().as_secs_f64())));
    restore.expect(&slot, 0)?;
    let mut machine = Machine::adopt(slot)?;
    guest.work(Load::Idle)?;
    let verdict = guest.verify().or_else(|error| machine.check().and(Err(error)))?;
    story.step("The guest looks at all of its pages: each holds its number, and what was last written to it before the checkpoint and since");
    story.say(&format!("{} pages, none of them wrong", verdict.pages));
    Ok(())
}

/// Waits until all of the guest's memory is there. A server in Python on an emulated machine takes minutes.
fn fill(story: &Story, guest: &Guest, restore: &mut Vmemctl, slot: &Slot, region: &MapHandle) -> Result<()> {
    let began = Instant::now();
    let mut told = began;
    while restore.runs()? {
        ensure!(began.elapsed() < FILLED, "the guest's memory is not there after {FILLED:?}");
        if told.elapsed() >= SAY_AGAIN {
            told = Instant::now();
            let present = region.info()?.present * PAGE_SIZE as u64;
            story.say(&format!("{} of {} MiB", present >> 20, guest.memory() >> 20));
        }
        sleep(Duration::from_millis(100));
    }
    ensure!(
        said(&slot.read_log("restore"), "complete").is_some(),
        "vmemctl has ended: {}",
        slot.read_log("restore")
    );
    Ok(())
}

/// Asks the guest something that it does not count: it may be answered when nobody waits any more. That there is no answer is an error.
fn ask(guest: &Guest) -> Result<()> {
    let mut connection = TcpStream::connect_timeout(&guest.service()?, ASK_AGAIN)?;
    connection.set_read_timeout(Some(ASK_AGAIN))?;
    connection.write_all(b"mark\n")?;
    let mut answer = String::new();
    BufReader::new(connection).read_line(&mut answer)?;
    ensure!(answer == "ok\n", "the guest answers {answer:?}");
    // Somebody who asks all the time takes the processor from the guest.
    sleep(Duration::from_millis(1));
    Ok(())
}

fn checkpoint(slot: &Slot, command: &str, words: &[&str]) -> Result<Vmemctl> {
    Vmemctl::checkpoint(slot, &Bucket::environment(), command, words)
}

/// The pauses over time.
fn chart(kept: &[Kept]) -> String {
    let line = |name, colour, value: fn(&Kept) -> f64| Line {
        name,
        colour,
        width: 2.0,
        points: kept.iter().map(|kept| (kept.time, value(kept) * 1e3)).collect(),
    };
    let lines = vec![
        line("the guest stood still", "#d62728", |kept| kept.pause),
        line("its client waited at most", "#1f77b4", |kept| kept.wait),
    ];
    Chart {
        title: "A guest that is kept every few seconds",
        unit: "ms",
        panels: vec![Panel {
            name: format!("guest writing {PACE} pages a second"),
            lines,
        }],
    }
    .svg()
}
