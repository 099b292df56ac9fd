// SPDX-License-Identifier: GPL-2.0
//! How to connect to an export.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use socket2::{SockAddr, Socket, Type};
use vmem::{Name, PageRange};
use vmem_nbd::client::{Priority, Session};
use vmem_source::endpoint::{Resolver, is_loopback};
use vmem_source::export::MAX_PAGES;
use vmem_source::{Export, Lane};

use crate::error::{Error, to_source_error};
use crate::source::ExportSource;
use crate::uri::{Place, Uri};

/// An export, and what is needed to connect to it, any number of times.
#[derive(Debug)]
pub struct Endpoint {
    uri: Uri,
    /// Whether the server may be on another host.
    insecure: bool,
    timeout: Duration,
    resolver: Resolver,
    /// The latest connection, which all lanes use if the server does not allow several ones.
    latest: Mutex<Weak<Session>>,
}

impl Endpoint {
    /// The export at `uri`. `timeout` is the time limit of connecting, including the lookup of the host; of the handshake; and of each answer.
    /// Connections are in clear text: a server on another host is connected to only if `insecure` allows it.
    #[must_use]
    pub fn new(uri: Uri, insecure: bool, timeout: Duration) -> Self {
        Self {
            uri,
            insecure,
            timeout,
            resolver: Resolver::new(),
            latest: Mutex::default(),
        }
    }

    /// Connects for a lane, or gives it a share of the connection that there is.
    ///
    /// # Errors
    ///
    /// [`Resolve`](vmem_source::Error::Resolve), [`ClearText`](vmem_source::Error::ClearText), [`Connect`](vmem_source::Error::Connect);
    /// [`Nbd`](vmem_source::Error::Nbd) if the server refuses or violates the protocol, or no region has the size of the export.
    pub fn connect(&self, lane: Lane) -> Result<ExportSource, vmem_source::Error> {
        let session = self.session(lane)?;
        let description = session.description();
        let pages = PageRange::of_len(description.size).filter(|pages| pages.count() <= MAX_PAGES);
        let pages = pages.ok_or_else(|| vmem_source::Error::Nbd(Error::Size(description.size).into()))?;
        let export = Export {
            name: name_of(&self.uri.export)?,
            pages,
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
        let session = Session::open(self.socket()?, &self.uri.export, self.timeout, move || {
            lane.set_thread_priority()
        })
        .map_err(to_source_error)?;
        *latest = Arc::downgrade(&session);
        Ok(session)
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
                if let Some(remote) = found.iter().find(|address| !self.insecure && !is_loopback(address)) {
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
        let error = |insecure| {
            let endpoint = Endpoint::new(uri.clone(), insecure, limit);
            endpoint.connect(Lane::Urgent).map(drop).expect_err("nobody is there")
        };
        assert!(matches!(error(false), vmem_source::Error::ClearText(_)));
        assert!(!matches!(error(true), vmem_source::Error::ClearText(_)));
    }

    #[test]
    fn server_that_is_not_there_is_named_and_may_come() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let uri: Uri = format!("nbd+unix:///x?socket={}", path.display()).parse().expect("a URI");
        let error = Endpoint::new(uri, false, Duration::from_secs(5)).connect(Lane::Urgent);
        let error = error.map(drop).expect_err("nobody is there");
        assert!(
            error.is_transient() && error.to_string().contains(path.to_str().expect("text")),
            "{error}"
        );
    }
}
