// SPDX-License-Identifier: GPL-2.0-or-later
//! How to connect to an export.

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use socket2::{SockAddr, Socket, Type};
use vmem::{Name, PageRange};
use vmem_nbd::client::{Priority, Session};
use vmem_source::endpoint::{Resolver, Security, is_loopback};
use vmem_source::export::MAX_PAGES;
use vmem_source::{Export, Lane};
use vmem_tls::CloseReason;

use crate::error::{Error, to_source_error};
use crate::source::ExportSource;
use crate::uri::{Place, Uri};

/// An export, and what is needed to connect to it, any number of times.
#[derive(Debug)]
pub struct Endpoint {
    uri: Uri,
    security: Security,
    timeout: Duration,
    resolver: Resolver,
    /// The latest connection, which all lanes use if the server does not allow several ones.
    latest: Mutex<Weak<Session>>,
}

impl Endpoint {
    /// The export at `uri`. `timeout` is the time limit of connecting, including the lookup of the host; of the handshake; and of each answer.
    /// With [`Security::Tls`], the server must protect the connection, and have a certificate for its host, or for `localhost` at a socket, unless the URI
    /// has another name. Otherwise connections are in clear text.
    #[must_use]
    pub fn new(uri: Uri, security: Security, timeout: Duration) -> Self {
        Self {
            uri,
            security,
            timeout,
            resolver: Resolver::new(),
            latest: Mutex::default(),
        }
    }

    /// Connects for a lane, or gives it a share of the connection that there is.
    ///
    /// # Errors
    ///
    /// [`Resolve`](vmem_source::Error::Resolve), [`ClearText`](vmem_source::Error::ClearText), [`Connect`](vmem_source::Error::Connect),
    /// [`Tls`](vmem_source::Error::Tls);
    /// [`Nbd`](vmem_source::Error::Nbd) if the server refuses or violates the protocol, or no region has the size of the export.
    pub fn connect(&self, lane: Lane) -> Result<ExportSource, vmem_source::Error> {
        let session = self.session(lane)?;
        let description = session.description();
        let pages = PageRange::of_len(description.size).filter(|pages| pages.count() <= MAX_PAGES);
        let pages = pages.ok_or_else(|| vmem_source::Error::Nbd(Error::Size(description.size).into()))?;
        let export = Export {
            name: name_of(&self.uri.export)?,
            pages,
            padding: Export::padding_of(description.size),
            // Nothing else tells one memory from another: the protocol has no identity of an export.
            identity: description.size.into(),
        };
        let priority = match lane {
            Lane::Urgent => Priority::Urgent,
            Lane::Stream => Priority::Background,
        };
        let client = session.client(priority).map_err(to_source_error)?;
        Ok(ExportSource::new(client, export))
    }

    /// One lane at a time: two that have lost the connection that they share make one. Its threads have the priority of the lane that makes it, which is the
    /// urgent one at the beginning.
    fn session(&self, lane: Lane) -> Result<Arc<Session>, vmem_source::Error> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = latest
            .upgrade()
            .filter(|session| !session.description().can_multi_conn && session.is_open());
        if let Some(session) = shared {
            return Ok(session);
        }
        let session = self.open(self.socket()?, move || lane.set_thread_priority())?;
        *latest = Arc::downgrade(&session);
        Ok(session)
    }

    fn open(&self, socket: Socket, begin: impl Fn() + Clone + Send + 'static) -> Result<Arc<Session>, vmem_source::Error> {
        let Security::Tls(identity) = &self.security else {
            return Session::open(socket, &self.uri.export, self.timeout, None, begin).map_err(to_source_error);
        };
        let (failed, reason) = (RefCell::new(None), RefCell::new(CloseReason::default()));
        let protect = |socket: Socket, limit: Duration| match identity.connect(socket, &self.certified(), limit) {
            Ok((socket, closed)) => {
                reason.replace(closed);
                Ok(socket)
            }
            Err(error) => {
                let text = error.to_string();
                failed.replace(Some(error));
                Err(text)
            }
        };
        let opened = Session::open(socket, &self.uri.export, self.timeout, Some(&protect), begin);
        opened.map_err(|error| {
            // The server's verdict on the certificate of this side may come after the handshake of TLS.
            let tls = failed.take().or_else(|| reason.borrow().take());
            tls.map_or_else(|| to_source_error(error), vmem_source::Error::Tls)
        })
    }

    /// Whom the certificate of the server must be for, with a port.
    fn certified(&self) -> String {
        let named = self.uri.tls.as_ref().and_then(|tls| tls.hostname.as_ref());
        match (named, &self.uri.place) {
            (Some(name), _) if name.contains(':') => format!("[{name}]:0"),
            (Some(name), _) => format!("{name}:0"),
            (None, Place::Tcp(host)) => host.clone(),
            (None, Place::Unix(_)) => "localhost:0".to_owned(),
        }
    }

    fn socket(&self) -> Result<Socket, vmem_source::Error> {
        let deadline = Instant::now() + self.timeout;
        let (host, candidates) = match &self.uri.place {
            Place::Unix(path) => {
                let address = path.display().to_string();
                let failed = |source| vmem_source::Error::Connect { address, source };
                (path.display().to_string(), vec![SockAddr::unix(path).map_err(failed)?])
            }
            Place::Tcp(host) => {
                let found = self.resolver.addresses(host, self.timeout);
                let found = found.map_err(|source| vmem_source::Error::Resolve {
                    address: host.clone(),
                    source,
                })?;
                let is_loopback_only = matches!(self.security, Security::Loopback);
                if let Some(remote) = found.iter().find(|address| is_loopback_only && !is_loopback(address)) {
                    return Err(vmem_source::Error::ClearText(*remote));
                }
                (host.clone(), found.into_iter().map(SockAddr::from).collect())
            }
        };
        let mut error = io::Error::other("the name has no address");
        for (tried, candidate) in candidates.iter().enumerate() {
            // A candidate that does not answer leaves time for the others.
            let share = deadline.saturating_duration_since(Instant::now()) / (candidates.len() - tried) as u32;
            match connect(candidate, share.max(Duration::from_millis(1))) {
                Ok(socket) => return Ok(socket),
                Err(failed) => error = failed,
            }
        }
        Err(vmem_source::Error::Connect {
            address: host,
            source: error,
        })
    }
}

fn connect(address: &SockAddr, limit: Duration) -> io::Result<Socket> {
    let socket = Socket::new(address.domain(), Type::STREAM, None)?;
    socket.connect_timeout(address, limit)?;
    Ok(socket)
}

/// The name of the region that an export fills, unless the user gives another.
fn name_of(export: &str) -> Result<Name, vmem::Error> {
    // What a region's name cannot have is replaced, or left out at the end: the user can rename the region, and any export can be used.
    let allowed = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '-'
        }
    };
    let name: String = export.trim_start_matches(['/', '.']).chars().map(allowed).take(31).collect();
    Name::new(&name).or_else(|_| Name::new("nbd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_export_has_a_name_for_its_region() {
        let named = |export: &str| name_of(export).expect("a name").to_string();
        assert_eq!(named("ram"), "ram");
        assert_eq!(named(""), "nbd");
        assert_eq!(named("/.disk 1/ü"), "disk-1--");
        assert_eq!(named("control"), "nbd");
        assert_eq!(named(&"x".repeat(99)), "x".repeat(31));
    }

    #[test]
    fn server_on_another_host_needs_leave() {
        // An address of documentation (RFC 5737): nothing is there, and nothing is sent.
        let uri: Uri = "nbd://192.0.2.1/x".parse().expect("a URI");
        let limit = Duration::from_millis(50);
        let error = |security| {
            let endpoint = Endpoint::new(uri.clone(), security, limit);
            endpoint.connect(Lane::Urgent).map(drop).expect_err("nobody is there")
        };
        assert!(matches!(error(Security::Loopback), vmem_source::Error::ClearText(_)));
        assert!(!matches!(error(Security::Insecure), vmem_source::Error::ClearText(_)));
    }

    #[test]
    fn server_that_is_not_there_is_named_and_may_come() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let uri: Uri = format!("nbd+unix:///x?socket={}", path.display()).parse().expect("a URI");
        let error = Endpoint::new(uri, Security::Loopback, Duration::from_secs(5)).connect(Lane::Urgent);
        let error = error.map(drop).expect_err("nobody is there");
        assert!(
            error.is_transient() && error.to_string().contains(path.to_str().expect("text")),
            "{error}"
        );
    }
}
