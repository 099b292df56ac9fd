// SPDX-License-Identifier: GPL-2.0
//! The source's ends of the two streams: pages, and the guest's state.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use socket2::Socket;
use vmem_qmp::Qmp;

use crate::channel::Channel;
use crate::cli::Migrate;
use crate::daemon::{Daemon, Says};
use crate::failure::Trouble;
use crate::guest::Memory;
use crate::migrate::served::Served;
use crate::name::{clean, session_mark};
use crate::network::Security;
use crate::record::Place;
use crate::relay::{End, relay};

/// How long vmemd may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// What QEMU calls the socket for the guest's state.
pub(crate) const STREAM: &str = "vmemctl-state";

/// What the export of a backend is called: a name that a region can have, and that no export of another move has. Whoever reaches
/// another guest's vmemd at this address finds no export of this name there.
pub(crate) fn export_name(memory: &Memory, number: usize, session: &str) -> String {
    let mark = session_mark(session).unwrap_or_default();
    // Region names have 31 bytes at most.
    format!("{}.{number}.{mark}", clean(&memory.id, 10))
}

/// A running `vmemd serve` of a guest's memory.
pub(crate) struct Export {
    daemon: Option<Daemon>,
    arguments: Vec<String>,
    served: Vec<Served>,
    address: SocketAddr,
    place: Place,
    /// What the destination gives back may be given back.
    released: bool,
}

impl Export {
    /// Starts to serve `memory` on `address`.
    pub(crate) fn start(
        memory: &[Memory],
        served: Vec<Served>,
        session: &str,
        address: SocketAddr,
        place: &Place,
        args: &Migrate,
        security: &Security,
    ) -> Result<Self, Trouble> {
        let mut options = security.serve_arguments();
        if let Some(address) = args.metrics {
            options.extend(["--metrics".to_owned(), address.to_string()]);
        }
        if args.free_source {
            let records = place.path("released");
            std::fs::create_dir_all(&records).map_err(Trouble::io(records.display().to_string()))?;
            options.extend([
                "--free".to_owned(),
                records.display().to_string(),
                "--hold-release".to_owned(),
            ]);
        }
        let specs = memory
            .iter()
            .zip(&served)
            .enumerate()
            .map(|(number, (memory, file))| format!("{}={}", export_name(memory, number, session), file.path.display()));
        options.extend(specs);
        Self::run(address, &options, served, place)
    }

    /// Serves again what another one served, at the same place.
    pub(crate) fn again(arguments: &[String], served: Vec<Served>, place: &Place) -> Result<Self, Trouble> {
        let address = arguments.get(2).and_then(|address| address.parse().ok());
        let address = address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        Self::run(address, arguments.get(3..).unwrap_or_default(), served, place)
    }

    fn run(address: SocketAddr, options: &[String], served: Vec<Served>, place: &Place) -> Result<Self, Trouble> {
        let arguments = |address: SocketAddr| {
            let mut all = vec!["serve".to_owned(), "--listen".to_owned(), address.to_string()];
            all.extend(options.iter().cloned());
            all
        };
        check(&served)?;
        let mut daemon = Daemon::start(&arguments(address), place)?;
        let address = daemon.wait_for(PATIENCE, |line| line.strip_prefix("listening on ")?.parse().ok());
        // It has opened them meanwhile.
        let address = match address
            .map_err(Trouble::from)
            .and_then(|address| check(&served).map(|()| address))
        {
            Ok(address) => address,
            Err(trouble) => {
                daemon.stop();
                return Err(trouble);
            }
        };
        Ok(Self {
            daemon: Some(daemon),
            arguments: arguments(address),
            served,
            address,
            place: place.clone(),
            released: false,
        })
    }

    /// None, for tests.
    #[cfg(test)]
    pub(crate) fn none(place: &Place) -> Self {
        Self {
            daemon: None,
            arguments: Vec::new(),
            served: Vec::new(),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            place: place.clone(),
            released: false,
        }
    }

    /// Whether what is given back there may be given back here.
    #[cfg(test)]
    pub(crate) fn is_released(&self) -> bool {
        self.released
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// What starts it again at the same place.
    pub(crate) fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// The guest runs at the destination: what that one has may be given back here.
    pub(crate) fn release(&mut self) {
        self.released = true;
        if let Some(daemon) = &mut self.daemon {
            daemon.order("release");
        }
    }

    /// If it has died, starts it again; says so.
    pub(crate) fn revive(&mut self) -> Result<Option<String>, Trouble> {
        let Some(daemon) = &mut self.daemon else { return Ok(None) };
        let mut news = None;
        while let Some(says) = daemon.hear(Duration::ZERO) {
            if let Says::Ended(status) = says {
                news = Some(daemon.ended(status).to_string());
                break;
            }
        }
        if news.is_some() {
            self.leave();
            let released = self.released;
            *self = Self::again(&self.arguments, self.served.clone(), &self.place)?;
            if released {
                self.release();
            }
        }
        Ok(news)
    }

    /// Ends it: nobody needs its pages any more.
    pub(crate) fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.stop();
        }
    }

    /// It shall serve on without anybody who looks after it.
    pub(crate) fn leave(&mut self) {
        self.daemon = None;
    }
}

fn check(served: &[Served]) -> Result<(), Trouble> {
    served.iter().try_for_each(Served::check)
}

impl Drop for Export {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where this host is, as the other end of `channel` sees it, and any port.
pub(crate) fn own_address(channel: &Channel) -> Result<SocketAddr, Trouble> {
    let (own, _) = channel
        .ends()
        .ok_or_else(|| Trouble::other("the destination is not on a network"))?;
    Ok(SocketAddr::new(own, 0))
}

/// The way of the guest's state: QEMU gets one end of a socket, and what it sends there goes to the destination. `network` is a connection
/// for the state. It can be used once.
pub(crate) fn give_stream(qmp: &mut Qmp, network: Channel) -> Result<String, Trouble> {
    let failed = || Trouble::io("no way for the guest's state");
    let (theirs, ours) = UnixStream::pair().map_err(failed())?;
    qmp.give(STREAM, &theirs)?;
    let (network, early) = network.into_parts();
    // If it cannot be relayed, both ends are closed, and QEMU says so.
    relay(End::Source, Socket::from(ours), network, early).map_err(failed())?;
    Ok(format!("fd:{STREAM}"))
}
