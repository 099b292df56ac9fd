// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl receive` on real regions: what becomes of a guest's pages that do not come. The guest, and its QEMU, are this test.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vmem::{Control, PAGE_SIZE, RegionBuilder};

use super::mark::{broken, bus_code};
use super::vmemd::{Process, beside, open};
use crate::failure::{Outcome, ensure, equal};
use crate::setting::{Setting, check_page, pages};
use crate::world::wait_until;

crate::tests![
    regions_of_receive_answer_as_broken_memory,
    missing_pages_of_a_lost_source_are_given_up_if_that_is_wanted,
];

const PAGES: usize = 4;
const NAME: &str = "guest0.ram";

/// The directory of records, gone at the end of its test.
struct State(PathBuf);

impl State {
    fn new() -> Outcome<Self> {
        let path = PathBuf::from("/dev/shm/receive-test");
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn qmp(&self) -> PathBuf {
        self.0.join("qmp")
    }

    /// `vmemctl receive`.
    fn receive(&self) -> Outcome<Command> {
        let mut command = beside("vmemctl")?;
        command.arg("--state").arg(&self.0).args(["--no-scope", "receive", "--qmp"]);
        command.arg(self.qmp()).args(["--listen", "127.0.0.1:0"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn regions_of_receive_answer_as_broken_memory() -> Outcome {
    let state = State::new()?;
    let region = format!("{NAME}={}", PAGES * PAGE_SIZE);
    let receive = Process::new(state.receive()?.args(["--region", &region]))?;
    let map = open(NAME)?;
    // The region has its node before `receive` has let go of it.
    wait_until("receive has made the region", || Ok(!map.info()?.attached))?;
    let setting = Setting {
        region: Control::open()?.attach(NAME)?.into(),
        map,
    };
    drop(receive);
    setting.region.mark_unreadable(&[pages(2, 1)]).complete()?;
    equal!(bus_code(&setting)?, broken());
    Ok(())
}

/// What QEMU replies: the guest runs, and has one memory backend.
fn reply(command: &str) -> String {
    let size = PAGES * PAGE_SIZE;
    let is = |name: &str| command.contains(&format!("\"execute\":\"{name}\""));
    let of = |property: &str| is("qom-get") && command.contains(&format!("\"property\":\"{property}\""));
    if is("query-status") {
        r#"{"status":"running"}"#.to_owned()
    } else if is("query-migrate") {
        r#"{"status":"completed"}"#.to_owned()
    } else if is("query-name") {
        r#"{"name":"guest0"}"#.to_owned()
    } else if is("qom-list") {
        r#"[{"name":"ram","type":"child<memory-backend-file>"}]"#.to_owned()
    } else if of("size") {
        size.to_string()
    } else if of("mem-path") {
        format!("\"/dev/vmem/{NAME}\"")
    } else if is("qom-get") {
        "true".to_owned()
    } else if is("query-memory-size-summary") {
        format!(r#"{{"base-memory":{size}}}"#)
    } else {
        "{}".to_owned()
    }
}

/// QEMU, until it is told to stop. Some clients look only whether it listens.
fn answer_all(listener: &UnixListener, stop: &AtomicBool) -> Outcome {
    loop {
        let (client, _) = listener.accept()?;
        if stop.load(Ordering::SeqCst) {
            return Ok(());
        }
        // A client that has gone has what it wanted.
        let _ = answer(client);
    }
}

fn answer(client: UnixStream) -> Outcome {
    let mut to = client.try_clone()?;
    writeln!(to, r#"{{"QMP":{{}}}}"#)?;
    for command in BufReader::new(client).lines() {
        let command = command?;
        let (_, id) = command.rsplit_once("\"id\":").ok_or("a command without a number")?;
        let id = id.trim_end_matches('}');
        writeln!(to, r#"{{"return":{},"id":{id}}}"#, reply(&command))?;
    }
    Ok(())
}

/// What another `receive` has noted of the guest, which runs, and whose source nobody reaches.
fn record(state: &State, region: u64) -> Outcome {
    let (bytes, session) = (PAGES * PAGE_SIZE, "0123456789abcdef");
    let export = format!("ram.0.{session}");
    let text = format!(
        r#"{{"layout": 2, "session": "{session}{session}", "guest": "guest0", "phase": "running", "qmp": "{}", "name": "guest0",
            "memory": [{{"id": "ram", "bytes": {bytes}, "export": "{export}"}}],
            "regions": ["{NAME}"], "region_ids": [{region}], "qemu": null,
            "vmemd": ["--source", "127.0.0.1:1", "--resume", "--only", "--json", "--retry", "0.2", "--region", "{export}={NAME}"],
            "run": true, "settings": null, "reason": null}}"#,
        state.qmp().display()
    );
    fs::create_dir_all(state.0.join("in.guest0"))?;
    Ok(fs::write(state.0.join("in.guest0/record"), text)?)
}

fn missing_pages_of_a_lost_source_are_given_up_if_that_is_wanted() -> Outcome {
    let state = State::new()?;
    let builder = RegionBuilder::new((PAGES * PAGE_SIZE) as u64).name(NAME);
    let Setting { region, map } = Setting::create(builder.poison_unreadable())?;
    let served = Setting { region, map };
    served.region.ready()?;
    served.fill([0, 3])?;
    let guest = served.area()?;
    record(&state, served.region.info()?.id)?;
    let Setting { region, map } = served;
    // The daemon that fetched them has died.
    drop(region);
    let (listener, stop) = (UnixListener::bind(state.qmp())?, Arc::new(AtomicBool::new(false)));
    let stopped = Arc::clone(&stop);
    let qemu = thread::spawn(move || answer_all(&listener, &stopped));
    let receive = state.receive()?.args(["--resume", "--on-lost", "sigbus"]).spawn()?;
    let ended = receive.wait_with_output()?;
    stop.store(true, Ordering::SeqCst);
    drop(UnixStream::connect(state.qmp())?);
    qemu.join().map_err(|_| "QEMU has panicked")??;
    let errors = String::from_utf8_lossy(&ended.stderr);
    ensure!(
        ended.status.code() == Some(4) && errors.contains("2 pages are missing"),
        "{}: {errors}",
        ended.status
    );
    equal!(
        fs::read_to_string(state.0.join("in.guest0/missing"))?,
        format!("{NAME} 1 2\n")
    );
    // The guest goes on, but for who touches such a page.
    check_page(&guest, 3, 3)?;
    drop(guest);
    let setting = Setting {
        region: Control::open()?.attach(NAME)?.into(),
        map,
    };
    equal!(setting.region.info()?.unreadable, 2);
    equal!(bus_code(&setting)?, broken());
    Ok(())
}
