// SPDX-License-Identifier: GPL-2.0-or-later
//! The engine on memory of its own, a real server, and a network that misbehaves.

mod absence;
mod alive;
mod arrival;
mod holes;
mod link;
mod loss;
mod measure;
mod memory;
mod release;
mod seed;
mod source;
mod staging;
mod streams;
mod verify;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use vmem::PAGE_SIZE;
use vmem_source::endpoint::{Endpoint, Security};
use vmem_source::{Export, Lane, PageSource};

use crate::stats::get;
use crate::{Connect, Engine, Error, Event, Options, Permission, Release, Sink, Stats, Target};
use link::{Link, Weather};
use memory::{Memory, Page};
use source::{Source, source_file};

const STREAM: u8 = 2;

const OPTIONS: Options = Options {
    background: true,
    streams: 1,
    window: 1024,
    prefetch: 0,
    retry: Duration::from_secs(20),
    backed: false,
    seed: None,
    yields: false,
    liveness: None,
    patience: Duration::from_secs(20),
    touches: None,
};

fn to(address: SocketAddr) -> Connect {
    Arc::new(move |lane| {
        let endpoint = Endpoint::new(&address.to_string(), Security::Loopback, Duration::from_secs(5));
        endpoint.connect(lane).map(|peer| Box::new(peer) as Box<dyn PageSource>)
    })
}

/// An engine that fills `memories` from `connect`.
fn start(memories: &[Arc<Memory>], connect: Connect, options: Options) -> (Engine, Arc<Stats>) {
    start_releasing(memories, connect, options, Arc::new(Release::new(Permission::Never)))
}

fn start_releasing(memories: &[Arc<Memory>], connect: Connect, options: Options, release: Arc<Release>) -> (Engine, Arc<Stats>) {
    let first = connect(Lane::Urgent).expect("a source");
    let target = |(export, memory): (&Export, &Arc<Memory>)| Target {
        export: export.clone(),
        name: export.name.to_string(),
        sink: Arc::clone(memory) as Arc<dyn Sink>,
    };
    let targets = first.exports().iter().zip(memories).map(target).collect();
    let stats = Arc::new(Stats::new().expect("counters"));
    let (engine, _) = Engine::start(targets, first, None, connect, options, Arc::clone(&stats), release).expect("an engine");
    (engine, stats)
}

fn wait_until(condition: impl Fn() -> bool) {
    wait_until_mut(condition);
}

fn wait_until_mut(mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < until, "it does not come to this");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the engine has nothing more to do, or fails.
fn finish(engine: &mut Engine) -> Result<(), Error> {
    let until = Instant::now() + Duration::from_secs(60);
    while !engine.is_idle() {
        assert!(Instant::now() < until, "the engine does not come to an end");
        if let Some(Event::Ended(result)) = engine.next_event(Duration::from_millis(20)) {
            result?;
        }
    }
    Ok(())
}

/// Waits for a failure.
fn failure(engine: &mut Engine) -> Error {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        assert!(Instant::now() < until, "the engine does not fail");
        if let Some(Event::Ended(Err(failure))) = engine.next_event(Duration::from_millis(20)) {
            return failure;
        }
    }
}

/// Every page is the source's, or is not present. Returns how many are present.
fn check(memory: &Memory, file: &NamedTempFile) -> u64 {
    let (bytes, pages) = memory.contents();
    let wanted = std::fs::read(file.path()).expect("the source");
    let mut present = 0;
    for (pgoff, _) in pages.iter().enumerate().filter(|(_, page)| **page == Page::Present) {
        present += 1;
        let at = pgoff * PAGE_SIZE;
        assert!(
            bytes[at..at + PAGE_SIZE] == wanted[at..at + PAGE_SIZE],
            "page {pgoff} is wrong"
        );
    }
    present
}
