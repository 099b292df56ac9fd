// SPDX-License-Identifier: GPL-2.0-or-later
//! The address of a source, and how to connect to it.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vmem_tls::Identity;

use crate::compression::Compression;
use crate::error::Error;
use crate::export::Lane;
use crate::peer::session::Session;
use crate::peer::{Peer, StagingPeer, Use};

/// How connections to a source are protected.
#[derive(Clone, Debug)]
pub enum Security {
    /// Clear text, only to loopback addresses (this host, or a tunnel that begins here).
    Loopback,
    /// Clear text to any address.
    Insecure,
    /// TLS with certificates on both sides.
    Tls(Identity),
}

/// A source on the network: its address, and what is needed to connect to it, any number of times.
#[derive(Debug)]
pub struct Endpoint {
    address: String,
    security: Security,
    timeout: Duration,
    /// Of the stream lane, and of the urgent one.
    compression: Compression,
    urgent_compression: Compression,
    /// Those that no thread uses: each thread takes its own, because the threads of connections must not wait for each other.
    resolvers: Mutex<Vec<Resolver>>,
}

/// How many connections join at the same time: fewer than a source has in the handshake, since it closes the oldest ones of the address with most of them.
const JOINED_AT_ONCE: u8 = 4;

impl Endpoint {
    /// The source at `address` (`HOST:PORT`). `timeout` is the time limit of connecting, including the lookup, and of each answer.
    #[must_use]
    pub fn new(address: &str, security: Security, timeout: Duration) -> Self {
        Self {
            address: address.to_owned(),
            security,
            timeout,
            compression: Compression::None,
            urgent_compression: Compression::None,
            resolvers: Mutex::default(),
        }
    }

    /// Asks the source to compress page contents: those of the stream, and those of the urgent lane. A source that cannot does not.
    #[must_use]
    pub fn compress(self, stream: Compression, urgent: Compression) -> Self {
        Self {
            compression: stream,
            urgent_compression: urgent,
            ..self
        }
    }

    /// Looks the host up, connects to it, and reads the list of exports. The name is looked up once, so that the address that is checked is
    /// the one that is connected to.
    ///
    /// # Errors
    ///
    /// [`Error::Resolve`], [`Error::ClearText`], [`Error::Connect`], and all others of a connection.
    pub fn connect(&self, lane: Lane) -> Result<Peer, Error> {
        self.connect_for(Use::Fetch(lane))
    }

    /// Connects to a source whose program still runs, to stage its pages. The connection is that of the stream afterwards.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect), and [`Error::NoRounds`]. While another connection stages pages: [`Error::Refused`], which is
    /// transient.
    pub fn connect_staging(&self) -> Result<StagingPeer, Error> {
        self.connect_for(Use::Stage).and_then(StagingPeer::new)
    }

    /// As [`connect_staging`](Self::connect_staging), with up to `streams` connections that take part in the same rounds. There are fewer if the
    /// source accepts fewer, one at least. The first of them gets the list of the remaining pages.
    ///
    /// # Errors
    ///
    /// As for [`connect_staging`](Self::connect_staging). If the source is lost while another connection joins, its rounds are lost.
    pub fn connect_rounds(&self, streams: usize) -> Result<Vec<StagingPeer>, Error> {
        if streams < 2 {
            return Ok(vec![self.connect_staging()?]);
        }
        let first = StagingPeer::new(self.connect_for(Use::StageSeveral)?)?;
        let session = first.session().cloned();
        let mut peers = vec![first];
        if let Some(session) = session {
            // `session.connections` is at most `MAX_CONNECTIONS`.
            let last = streams.min(session.connections) as u8;
            // The second one shows whether the source takes more. The others join several at a time: each takes some round trips.
            if last > 1 {
                peers.extend(self.join(&session, 1)?);
            }
            if peers.len() > 1 {
                peers.extend(self.join_all(&session, 2..last)?);
            }
        }
        Ok(peers)
    }

    /// The connections with these numbers, but for those that the source does not take.
    fn join_all(&self, session: &Session, numbers: Range<u8>) -> Result<Vec<StagingPeer>, Error> {
        let mut peers = Vec::new();
        for first in numbers.clone().step_by(JOINED_AT_ONCE.into()) {
            let group = first..first.saturating_add(JOINED_AT_ONCE).min(numbers.end);
            peers.extend(self.join_at_once(session, group)?);
        }
        Ok(peers)
    }

    fn join_at_once(&self, session: &Session, numbers: Range<u8>) -> Result<Vec<StagingPeer>, Error> {
        thread::scope(|scope| {
            let join = |number| {
                let thread = thread::Builder::new().name("join".to_owned());
                thread.spawn_scoped(scope, move || self.join(session, number))
            };
            let threads = numbers.map(join).collect::<Result<Vec<_>, _>>().map_err(Error::Io)?;
            let joined = threads.into_iter().map(|thread| match thread.join() {
                Ok(joined) => joined,
                Err(panic) => resume_unwind(panic),
            });
            joined.filter_map(Result::transpose).collect()
        })
    }

    /// A connection that takes part in the rounds. `None` if the source has as many as it accepts.
    fn join(&self, session: &Session, number: u8) -> Result<Option<StagingPeer>, Error> {
        match self.connect_for(Use::Join) {
            Ok(peer) => StagingPeer::join(peer, session, number),
            Err(error) if error.is_transient() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn connect_for(&self, use_for: Use) -> Result<Peer, Error> {
        let deadline = Instant::now() + self.timeout;
        let resolver = self.resolvers().pop().unwrap_or_default();
        let candidates = resolver.addresses(&self.address, self.timeout);
        // With the lookup that it has not ended, if it has timed out: there are never more than there are threads.
        self.resolvers().push(resolver);
        let candidates = candidates.map_err(|source| Error::Resolve {
            address: self.address.clone(),
            source,
        })?;
        let identity = match &self.security {
            Security::Tls(identity) => Some(identity),
            Security::Insecure => None,
            Security::Loopback => match candidates.iter().find(|candidate| !is_loopback(candidate)) {
                Some(candidate) => return Err(Error::ClearText(*candidate)),
                None => None,
            },
        };
        let compression = match use_for.lane() {
            Lane::Urgent => self.urgent_compression,
            Lane::Stream => self.compression,
        };
        Peer::connect_to(
            &candidates,
            &self.address,
            use_for,
            deadline,
            self.timeout,
            identity,
            compression,
        )
    }

    fn resolvers(&self) -> MutexGuard<'_, Vec<Resolver>> {
        self.resolvers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether data sent to this address stays on this host.
#[must_use]
pub fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Looks up names of hosts with a time limit, which the resolver of the system does not have.
#[derive(Debug)]
pub struct Resolver {
    /// A name whose lookup timed out, and the channel of its result. The next lookup of the name waits for the same result: there is one
    /// thread at a time, however often the name is looked up.
    pending: Mutex<Option<(String, Answer)>>,
}

type Answer = Receiver<io::Result<Vec<SocketAddr>>>;

impl Default for Resolver {
    fn default() -> Self {
        Self::new()
    }
}

impl Resolver {
    /// A resolver without a pending lookup.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            pending: Mutex::new(None),
        }
    }

    /// The addresses of `HOST:PORT`, at least one; a numeric host is not looked up.
    ///
    /// # Errors
    ///
    /// The name has no address, or the lookup takes longer than `limit`.
    pub fn addresses(&self, address: &str, limit: Duration) -> io::Result<Vec<SocketAddr>> {
        self.addresses_by(address, limit, |address| Ok(address.to_socket_addrs()?.collect()))
    }

    fn addresses_by(
        &self,
        address: &str,
        limit: Duration,
        resolve: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>> + Send + 'static,
    ) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = address.parse() {
            return Ok(vec![address]);
        }
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match pending.take() {
            Some((name, answer)) if name == address => answer,
            _ => {
                let (sender, answer) = sync_channel(1);
                let address = address.to_owned();
                let thread = thread::Builder::new().name("resolver".to_owned());
                // The receiver is gone if the lookup timed out and another name was looked up since.
                thread.spawn(move || drop(sender.send(resolve(&address))))?;
                answer
            }
        };
        match answer.recv_timeout(limit) {
            Ok(found) => found.and_then(|found| match found.is_empty() {
                true => Err(io::Error::other("the name has no address")),
                false => Ok(found),
            }),
            Err(RecvTimeoutError::Timeout) => {
                *pending = Some((address.to_owned(), answer));
                let text = format!("the system's resolver gave no answer within {} s", limit.as_secs_f32());
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the system's resolver has failed")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn clear_text_beyond_loopback_needs_insecure() {
        // An address of documentation (RFC 5737): nothing is there, and nothing is sent.
        let connect = |security| {
            Endpoint::new("192.0.2.1:9", security, LIMIT)
                .connect(Lane::Stream)
                .map(|_| ())
        };
        let refused = connect(Security::Loopback).expect_err("clear text");
        assert!(matches!(refused, Error::ClearText(_)) && !refused.is_transient(), "{refused}");
        assert!(!matches!(connect(Security::Insecure), Err(Error::ClearText(_))));
        for (address, loopback) in [
            ("127.0.0.1:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("[::ffff:192.0.2.1]:1", false),
        ] {
            assert_eq!(is_loopback(&address.parse().expect("an address")), loopback, "{address}");
        }
    }

    #[test]
    fn lookup_that_timed_out_is_continued_by_the_next_call() {
        let (lookup, calls) = (Resolver::default(), Arc::new(AtomicUsize::new(0)));
        let found: SocketAddr = ([127, 0, 0, 1], 7).into();
        let (go_on, gate) = sync_channel(1);
        let gate = Arc::new(Mutex::new(gate));
        let ask = || {
            let (calls, gate) = (Arc::clone(&calls), Arc::clone(&gate));
            lookup.addresses_by("slow.test:7", LIMIT, move |_| {
                calls.fetch_add(1, Ordering::Relaxed);
                gate.lock().expect("no panic").recv().expect("leave to go on");
                Ok(vec![found])
            })
        };
        for _ in 0..3 {
            assert_eq!(ask().expect_err("it hangs").kind(), io::ErrorKind::TimedOut);
        }
        go_on.send(()).expect("a resolver that hangs");
        let answer = (0..1000).find_map(|_| ask().ok());
        assert_eq!(answer, Some(vec![found]));
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn result_of_a_late_lookup_is_not_used_for_another_name() {
        let lookup = Resolver::new();
        let found = |number| vec![SocketAddr::from(([127, 0, 0, 1], number))];
        let (_go_on, gate) = sync_channel::<()>(1);
        let slow = lookup.addresses_by("slow.test:7", LIMIT, move |_| {
            let _ = gate.recv();
            Ok(vec![([127, 0, 0, 1], 7).into()])
        });
        assert_eq!(slow.expect_err("it hangs").kind(), io::ErrorKind::TimedOut);
        let other = lookup.addresses_by("other.test:8", LONG, move |_| Ok(found(8)));
        assert_eq!(other.expect("its own"), found(8));
    }

    #[test]
    fn refused_connection_names_the_address() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        drop(listener);
        let endpoint = Endpoint::new(&address, Security::Loopback, LIMIT);
        let error = endpoint.connect(Lane::Urgent).map(|_| ()).expect_err("nobody is there");
        assert!(error.to_string().contains(&address), "{error}");
    }
}
