// SPDX-License-Identifier: GPL-2.0-or-later
//! The control socket: who gives orders to this vmemd, and hears what it says.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmem_control::{About, Duty, Error, Publisher, Server, Service, socket};

/// Standard input is a socket that listens already.
const INHERITED: &str = "-";

/// How long whoever has handed a socket over may take to connect to it.
const FIRST_CLIENT: Duration = Duration::from_secs(60);

/// How long clients may take to take the last that they are sent.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A control socket on which nobody is heard yet.
pub(crate) struct Socket {
    listener: UnixListener,
    about: About,
}

impl Socket {
    /// That of `--control` and `--session`. To be called as the user who may give orders.
    pub(crate) fn open(path: Option<&PathBuf>, session: Option<&String>, duty: Duty) -> Result<Option<Self>, Error> {
        let Some(path) = path else { return Ok(None) };
        let mut about = About::new(session.cloned().unwrap_or_default(), duty)?;
        let listener = if path == Path::new(INHERITED) {
            about.first_client = Some(FIRST_CLIENT);
            socket::inherited()?
        } else {
            socket::bind(path)?
        };
        Ok(Some(Self { listener, about }))
    }

    /// Hears clients from now on.
    pub(crate) fn serve(self, service: impl Service) -> Result<Control, Error> {
        Server::start(self.listener, self.about, service).map(Control)
    }
}

/// A control socket on which clients are heard.
pub(crate) struct Control(Server);

impl Control {
    /// What tells the clients what happens.
    pub(crate) fn publisher(&self) -> Publisher {
        self.0.publisher()
    }

    /// vmemd ends; whether it has let go of everything.
    pub(crate) fn finish(self, has_let_go: bool) {
        self.0.finish(has_let_go, LAST_WORDS);
    }
}
