// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemd serve`: the source's side.

mod ending;
mod requests;
mod tracked;

use std::io::{self, BufRead};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vmem_cli::{bytes, chain};
use vmem_control::{Duty, Event as ControlEvent};
use vmem_precopy::{Mode, Options};
use vmem_service::{Kept, KeptError, Service};
use vmem_source::endpoint::is_loopback;
use vmem_source::memory::Memory;
use vmem_source::serve::{Event, Limits, Rounds, Server};
use vmem_tls::Identity;

use crate::EXIT_LOCAL;
use crate::cli::Serve;
use crate::control::{Control, Socket};
use crate::files;
use crate::metrics::{Listener, MetricsError, Unbound, listen_for_source};
use crate::orders;
use crate::privileges::{self, Files, Needs, PrivilegeError, User};
use requests::Requests;
use tracked::TrackError;
use vmem_cli::output::out;
use vmem_wait::{MessageLimit, StopEvent};

/// Why memory is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeFailure {
    #[error("cannot export")]
    Memory(#[source] vmem_source::Error),
    #[error("cannot export so much: {exports} exports take more open files than the limit of {limit} (ulimit -Hn, LimitNOFILE=)")]
    Files {
        exports: usize,
        limit: u64,
        #[source]
        source: vmem_source::Error,
    },
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    #[error(transparent)]
    Track(#[from] TrackError),
    #[error("cannot serve")]
    Start(#[from] vmem_source::Error),
    #[error(
        "{0} is not a loopback address: whoever reaches it can read the exported memory, and it is sent in clear text; \
         --tls protects it, --insecure says that this is meant"
    )]
    Insecure(SocketAddr),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error("no identity")]
    Tls(#[from] vmem_tls::Error),
    #[error("no control socket")]
    Control(#[from] vmem_control::Error),
    #[error(transparent)]
    Kept(#[from] KeptError),
    #[error("cannot go on")]
    Io(#[from] io::Error),
}

impl ServeFailure {
    /// Of so many exports, one cannot be opened.
    fn of_memory(source: vmem_source::Error, exports: usize) -> Self {
        match (&source, files::limit()) {
            (vmem_source::Error::File { source: error, .. }, Some(limit)) if files::are_too_many(error) => {
                Self::Files { exports, limit, source }
            }
            _ => Self::Memory(source),
        }
    }
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(args: &Serve) -> Result<(), ServeFailure> {
    let service = Service::of_this_process();
    for name in Kept::let_go(&service)? {
        tracing::warn!("systemd has kept the descriptor {name} for a vmemd that fills regions: it is let go of");
    }
    let load = |directory: &PathBuf| Identity::load_allowing(directory, &args.allow_names);
    let identity = args.tls.as_ref().map(load).transpose()?;
    if identity.is_none() && !args.insecure && !is_loopback(&args.listen) {
        return Err(ServeFailure::Insecure(args.listen));
    }
    // The log begins before the first page is read.
    let rounds = args
        .rounds
        .map(|mode| tracked::track(args, options(args, mode)))
        .transpose()?;
    let memories = args
        .exports
        .iter()
        .map(|spec| match &args.free {
            Some(records) => Memory::open_releasable(spec, records),
            None => Memory::open(spec),
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| ServeFailure::of_memory(error, args.exports.len()))?;
    let limits = Limits {
        connections: args.connections.into(),
        timeout: args.timeout,
    };
    let mut warnings = identity.as_ref().map_or(Vec::new(), |identity| identity.warnings().to_vec());
    warnings.extend(files::warning(args.connections.into(), args.exports.len()));
    let socket = Socket::open(args.control.as_ref(), args.session.as_ref(), Duty::Serve)?;
    let mut server = Server::bind(args.listen, memories, limits, identity, |event| log(&event))?;
    if args.hold_release {
        server = server.hold_release();
    }
    let bandwidth = Some(args.bandwidth).filter(|bandwidth| *bandwidth > 0);
    server.limiter().set(bandwidth);
    if let Some(rounds) = &rounds {
        rounds.set_bandwidth_limit(bandwidth);
        server = server.with_rounds(Arc::clone(rounds) as Arc<dyn Rounds>);
    }
    let metrics = args.metrics.map(|address| Listener::bind(address, Unbound::Retries));
    let metrics = metrics.transpose()?;
    // All that takes root is open. There is no other thread yet.
    let needs = if args.free.is_some() {
        Needs::Marks
    } else {
        Needs::Descriptors
    };
    let user = args.user.map_or(User::NOBODY, User::new);
    let files = Files::default().and_certificates(args.tls.as_ref());
    warnings.extend(privileges::drop_to(user, needs, &files)?.map(str::to_owned));
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let liveness = service.liveness();
    service.watch(&liveness)?;
    server = server.with_liveness(liveness);
    let stop = Arc::new(StopEvent::new()?);
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let server = Arc::new(server);
    if let Some(listener) = metrics {
        listen_for_source(listener, server.totals());
    }
    let control = socket
        .map(|socket| {
            let requests = Requests::new(args, &server, &stop, rounds.as_ref());
            let clients = requests.clients();
            let control = socket.serve(requests)?;
            // Nobody has set it before.
            let _ = clients.set(control.publisher());
            Ok::<_, vmem_control::Error>(control)
        })
        .transpose()?;
    for export in server.exports() {
        out(&format!("{}: {}", export.name, bytes(export.size())));
    }
    let address = server.local_addr()?;
    out(&format!("listening on {address}"));
    service.ready();
    let stopper = Arc::clone(&stop);
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || signals.forever().for_each(|_| stopper.set()))?;
    if let Some(control) = &control {
        control.publisher().publish(ControlEvent::Listening { address });
        if let Some(rounds) = &rounds {
            tracked::report(rounds, control.publisher())?;
        }
    } else if args.hold_release {
        let server = Arc::clone(&server);
        thread::Builder::new()
            .name("orders".to_owned())
            .spawn(move || listen(io::stdin().lock(), || server.allow_release()))?;
    }
    let result = server.run(stop.as_fd()).map_err(ServeFailure::from);
    if let Some(control) = control {
        finish(control, server, result.as_ref().err());
    }
    result
}

/// How long the threads of connections may take to end once their connections are closed. Whoever has said `stop` sends signals after 2
/// seconds.
const RELEASE: Duration = Duration::from_secs(1);

fn options(args: &Serve, mode: Mode) -> Options {
    let mut limits = args.limits;
    if let Some(milliseconds) = args.max_downtime {
        limits.downtime = Duration::from_millis(milliseconds.into());
    }
    Options {
        mode,
        limits,
        ..Options::default()
    }
}

/// Lets go of everything, and tells the clients of the control socket.
fn finish(control: Control, server: Arc<Server>, failure: Option<&ServeFailure>) {
    control.publisher().publish(ControlEvent::End {
        exit_code: failure.map_or(0, |_| EXIT_LOCAL),
        error: failure.map(|failure| chain(failure)),
        figures: None,
    });
    let released = server.released();
    drop(server);
    // A thread that waits for a page of a region, or gives memory back, keeps the memory: possibly until the process has ended.
    control.finish(released.wait(RELEASE));
}

/// Takes orders. Whoever goes away without the word has not said it.
fn listen(lines: impl BufRead, release: impl Fn()) {
    let obey = |order: &str| {
        let known = order == "release";
        if known {
            release();
        }
        known
    };
    orders::listen(lines, "the order is release", obey, |order, error| match error {
        Some(error) => tracing::warn!("no such order: {order}: {error}"),
        None => tracing::info!("order: {order}"),
    });
}

fn log(event: &Event<'_>) {
    // What anybody can cause who can connect.
    static STRANGERS: MessageLimit = MessageLimit::new();
    let line = match event {
        Event::Connected { peer, lane } => return tracing::info!("{peer}: connected ({lane:?})"),
        Event::Ended {
            peer,
            served,
            error,
            established,
        } => {
            let end = error.map_or("goodbye".to_owned(), |error| chain(error));
            if !established {
                format!("{peer}: {end}")
            } else {
                let (data, zero, unreadable) = (served.data, served.zero, served.unreadable);
                let released = match served.released {
                    0 => String::new(),
                    pages => format!("; gave {pages} pages back"),
                };
                return tracing::info!("{peer}: {end}; sent {data} data, {zero} zero, {unreadable} unreadable pages{released}");
            }
        }
        Event::ReleaseFailed { name, error } => return tracing::warn!("cannot give pages of {name} back: {}", chain(error)),
        Event::Evicted { peer } => format!("{peer}: closed: too many connections are in the handshake"),
        Event::AcceptFailed { error } => format!("cannot accept a connection: {}{}", chain(error), files::hint(error)),
        _ => return,
    };
    if let Some(line) = STRANGERS.pass(&line) {
        tracing::info!("{line}");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpStream};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use vmem_control::{Client, Error};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// Asks a server to stop whose connection needs so long to end. Returns the answer, and whether the connection had ended before it.
    fn stop_while_a_connection_ends(needs: Duration) -> (Result<(), Error>, bool) {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, memory) = (directory.path().join("socket"), directory.path().join("ram"));
        std::fs::write(&memory, [7; 4096]).expect("a file");
        let memory = Memory::open(&format!("ram={}", memory.display())).expect("memory");
        let has_ended = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&has_ended);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = Server::bind(address, vec![memory], Limits::default(), None, move |event| {
            // In the thread of the connection, which has the memory.
            if let Event::Ended { .. } = event {
                thread::sleep(needs);
                ended.store(true, Ordering::SeqCst);
            }
        });
        let (server, stop) = (
            Arc::new(server.expect("a port")),
            Arc::new(StopEvent::new().expect("an eventfd")),
        );
        let socket = Socket::open(Some(&path), None, Duty::Serve)
            .expect("a socket")
            .expect("a path");
        let requests = Requests {
            free: requests::Free::Never,
            server: Arc::downgrade(&server),
            limiter: server.limiter(),
            rounds: None,
            ending: Arc::new(ending::Ending::new(&stop)),
            changing: Arc::default(),
            stop: Arc::clone(&stop),
            clients: Arc::default(),
        };
        let control = socket.serve(requests).expect("a thread");
        let mut peer = TcpStream::connect(server.local_addr().expect("an address")).expect("a connection");
        peer.write_all(b"v").expect("room");
        let asks = thread::spawn(move || {
            let mut client = Client::connect(&path, LONG).expect("a client");
            // The connection has its thread by now.
            thread::sleep(Duration::from_millis(100));
            let answer = client.stop(LONG);
            (answer, has_ended.load(Ordering::SeqCst))
        });
        server.run(stop.as_fd()).expect("it serves");
        finish(control, server, None);
        asks.join().expect("no panic")
    }

    #[test]
    fn stop_is_answered_when_the_last_connection_has_let_go_of_the_memory() {
        let (answer, has_ended) = stop_while_a_connection_ends(Duration::from_millis(300));
        answer.expect("it is answered");
        assert!(has_ended, "it is answered too early");
    }

    #[test]
    fn stop_is_not_answered_if_a_connection_does_not_let_go_in_time() {
        let began = Instant::now();
        let (answer, has_ended) = stop_while_a_connection_ends(RELEASE + Duration::from_secs(4));
        assert!(matches!(answer, Err(Error::Closed)) && !has_ended, "{answer:?}");
        assert!(
            began.elapsed() < RELEASE + Duration::from_secs(3),
            "the end of vmemd is not delayed"
        );
    }

    #[test]
    fn only_the_word_releases() {
        for (said, times) in [("", 0), ("releas\nrelease!\nstart\n", 0), ("no\n release \n", 1)] {
            let released = Cell::new(0);
            listen(said.as_bytes(), || released.set(released.get() + 1));
            assert_eq!(released.get(), times, "{said:?}");
        }
    }
}
