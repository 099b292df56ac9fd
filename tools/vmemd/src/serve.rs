// SPDX-License-Identifier: GPL-2.0
//! `vmemd serve`: the source's side.

use std::io::{self, BufRead};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vmem::PAGE_SIZE;
use vmem_cli::chain;
use vmem_source::memory::{Memory, MemoryError};
use vmem_source::serve::{Event, Limits, Server, StartError};
use vmem_tls::{Identity, TlsError};

use crate::cli::Serve;
use crate::metrics::{MetricsError, listen_for_source};
use crate::report::{bytes, err, out};
use crate::stop::Stop;

/// Why memory is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeFailure {
    #[error("cannot export")]
    Memory(#[from] MemoryError),
    #[error("cannot serve")]
    Start(#[from] StartError),
    #[error(
        "{0} is not a loopback address: whoever reaches it can read the exported memory, and it is sent in clear text; \
         --tls protects it, --insecure says that this is meant"
    )]
    Insecure(SocketAddr),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error("no identity")]
    Tls(#[from] TlsError),
    #[error("cannot go on")]
    Io(#[from] io::Error),
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(args: &Serve) -> Result<(), ServeFailure> {
    let identity = args.tls.as_deref().map(Identity::load).transpose()?;
    if identity.is_none() && !args.insecure && !args.listen.ip().is_loopback() {
        return Err(ServeFailure::Insecure(args.listen));
    }
    let memories = args
        .exports
        .iter()
        .map(|spec| match &args.free {
            Some(records) => Memory::open_releasable(spec, records),
            None => Memory::open(spec),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let limits = Limits {
        connections: args.connections.into(),
        timeout: args.timeout,
    };
    let stop = Arc::new(Stop::new()?);
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let mut server = Server::bind(args.listen, memories, limits, identity, |event| log(&event))?;
    if args.hold_release {
        server = server.hold_release();
    }
    let server = Arc::new(server);
    if let Some(address) = args.metrics {
        listen_for_source(address, server.totals())?;
    }
    for export in server.exports() {
        out(&format!("{}: {}", export.name, bytes(export.pages * PAGE_SIZE as u64)));
    }
    out(&format!("listening on {}", server.local_addr()?));
    let stopper = Arc::clone(&stop);
    thread::spawn(move || signals.forever().for_each(|_| stopper.set()));
    if args.hold_release {
        let server = Arc::clone(&server);
        thread::spawn(move || listen(io::stdin().lock(), || server.allow_release()));
    }
    Ok(server.run(stop.as_fd())?)
}

/// Takes orders, a word on a line. Whoever goes away without the word has not said it.
fn listen(lines: impl BufRead, release: impl Fn()) {
    for line in lines.lines().map_while(Result::ok) {
        match line.trim() {
            "release" => release(),
            other => err(&format!("no such order: {}", other.escape_debug())),
        }
    }
}

fn log(event: &Event<'_>) {
    match event {
        Event::Connected { peer, lane } => err(&format!("{peer}: connected ({lane:?})")),
        Event::Ended { peer, served, error } => {
            let end = error.map_or("goodbye".to_owned(), |error| chain(error));
            let (data, zero, unreadable) = (served.data, served.zero, served.unreadable);
            let released = match served.released {
                0 => String::new(),
                pages => format!("; gave {pages} pages back"),
            };
            err(&format!(
                "{peer}: {end}; sent {data} data, {zero} zero, {unreadable} unreadable pages{released}"
            ));
        }
        Event::Refused { peer } => err(&format!("{peer}: refused, there are too many connections")),
        Event::Kept { name, error } => err(&format!("cannot give pages of {name} back: {}", chain(error))),
        Event::Failed { error } => err(&format!("cannot accept a connection: {}", chain(error))),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn only_the_word_releases() {
        for (said, times) in [("", 0), ("releas\nrelease!\nstart\n", 0), ("no\n release \n", 1)] {
            let released = Cell::new(0);
            listen(said.as_bytes(), || released.set(released.get() + 1));
            assert_eq!(released.get(), times, "{said:?}");
        }
    }
}
