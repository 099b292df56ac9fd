// SPDX-License-Identifier: GPL-2.0
//! Where a source is on the network, and how it is connected to.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vmem_tls::Identity;

use crate::export::Lane;
use crate::peer::Peer;
use crate::source::SourceError;

/// How connections to a source are protected.
#[derive(Clone, Debug)]
pub enum Security {
    /// Not: they stay on this machine, or in a tunnel that begins there. Other addresses are refused.
    Loopback,
    /// Not: clear text is meant.
    Insecure,
    /// With certificates on both sides.
    Tls(Identity),
}

/// A source at the other end of a network, which can be connected to again and again.
#[derive(Debug)]
pub struct Endpoint {
    address: String,
    security: Security,
    timeout: Duration,
    /// Of each lane, whose threads must not wait for each other.
    urgent: Lookup,
    stream: Lookup,
}

impl Endpoint {
    /// The source at `address` (`HOST:PORT`). Neither finding and reaching it nor any answer takes longer than `timeout`.
    #[must_use]
    pub fn new(address: &str, security: Security, timeout: Duration) -> Self {
        Self {
            address: address.to_owned(),
            security,
            timeout,
            urgent: Lookup::default(),
            stream: Lookup::default(),
        }
    }

    /// Looks the host up, connects to it and asks what it exports. What is checked is what is connected to: the name is looked up once.
    ///
    /// # Errors
    ///
    /// The host has no address, or one that clear text must not go to; it cannot be reached, does not speak the protocol, or says no.
    pub fn connect(&self, lane: Lane) -> Result<Peer, SourceError> {
        let deadline = Instant::now() + self.timeout;
        let lookup = match lane {
            Lane::Urgent => &self.urgent,
            Lane::Stream => &self.stream,
        };
        let candidates = lookup
            .addresses(&self.address, self.timeout)
            .map_err(|source| SourceError::Io {
                what: format!("cannot find the address of {}", self.address),
                source,
            })?;
        let identity = match &self.security {
            Security::Tls(identity) => Some(identity),
            Security::Insecure => None,
            Security::Loopback => match candidates.iter().find(|candidate| !is_loopback(candidate)) {
                Some(candidate) => return Err(SourceError::ClearText(*candidate)),
                None => None,
            },
        };
        Peer::connect_to(&candidates, &self.address, lane, deadline, self.timeout, identity)
    }
}

/// Whether what is sent to this address stays on this machine.
#[must_use]
pub fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Looks names up with a time limit, which the system's resolver does not have.
#[derive(Debug)]
pub struct Lookup {
    /// A name, and the answer of a resolver that took too long for it. It is waited for again: there is one thread at a time, however
    /// often the name is tried.
    late: Mutex<Option<(String, Answer)>>,
}

type Answer = Receiver<io::Result<Vec<SocketAddr>>>;

impl Default for Lookup {
    fn default() -> Self {
        Self::new()
    }
}

impl Lookup {
    /// Nothing has been looked up.
    #[must_use]
    pub const fn new() -> Self {
        Self { late: Mutex::new(None) }
    }

    /// The addresses of `HOST:PORT`, at least one; a numeric host is not looked up.
    ///
    /// # Errors
    ///
    /// There is none, or the system's resolver does not say so within `limit`.
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
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match late.take() {
            Some((name, answer)) if name == address => answer,
            _ => {
                let (sender, answer) = sync_channel(1);
                let address = address.to_owned();
                let thread = thread::Builder::new().name("resolver".to_owned());
                // Who has given up does not take it.
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
                *late = Some((address.to_owned(), answer));
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
    fn clear_text_goes_to_loopback_only_unless_it_is_meant() {
        // An address of documentation (RFC 5737): nothing is there, and nothing is sent.
        let connect = |security| {
            Endpoint::new("192.0.2.1:9", security, LIMIT)
                .connect(Lane::Stream)
                .map(|_| ())
        };
        let refused = connect(Security::Loopback).expect_err("clear text");
        assert!(
            matches!(refused, SourceError::ClearText(_)) && !refused.is_transient(),
            "{refused}"
        );
        assert!(!matches!(connect(Security::Insecure), Err(SourceError::ClearText(_))));
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
    fn a_resolver_that_hangs_is_asked_once_and_waited_for_in_pieces() {
        let (lookup, calls) = (Lookup::default(), Arc::new(AtomicUsize::new(0)));
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
    fn late_answer_is_not_taken_for_that_of_another_name() {
        let lookup = Lookup::new();
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
    fn a_name_without_a_server_is_an_error_that_says_where() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        drop(listener);
        let endpoint = Endpoint::new(&address, Security::Loopback, LIMIT);
        let error = endpoint.connect(Lane::Urgent).map(|_| ()).expect_err("nobody is there");
        assert!(error.to_string().contains(&address), "{error}");
    }
}
