// SPDX-License-Identifier: GPL-2.0-or-later
//! What runs in a guest that is moved: the first process of a Linux that has nothing else.
//!
//! It has a ticker, which finds the longest time in which the guest did not run (`ticker`); memory of which each word is known, and
//! a worker that writes all over it (`worker`, `page`); another process that may be lost (`victim`); traffic that keeps its network
//! device busy (`traffic`); a disk that writes into its memory (`disk`); a file on a file system that can be frozen (`log_file`); and a TCP service to talk to (`service`). It is asked over TCP what it has seen.
#![forbid(unsafe_code)]

mod clock;
mod disk;
mod log_file;
mod page;
mod random;
mod report;
mod service;
mod ticker;
mod traffic;
mod victim;
mod worker;

use std::sync::Arc;

use crate::report::Ready;
use crate::ticker::Ticker;
use crate::worker::Worker;

/// MiB of the worker's memory, if the kernel's command line says nothing.
const DEFAULT_MIB: usize = 64;

fn main() -> std::io::Result<()> {
    if std::env::args().nth(1).as_deref() == Some(victim::ARGUMENT) {
        return victim::run();
    }
    let mib = std::env::var("GUEST_MIB").ok().and_then(|mib| mib.parse().ok());
    let worker = Arc::new(Worker::start(mib.unwrap_or(DEFAULT_MIB)));
    let ticker = Arc::new(Ticker::start(worker.work_done()));
    let service = service::listen(worker.clone(), ticker.clone())?;
    println!("{}", report::line(&Ready::new(&worker, &ticker)));
    service.run()
}
