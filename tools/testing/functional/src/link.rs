// SPDX-License-Identifier: GPL-2.0-or-later
//! A network between source and destination that can be slow, stand still and be cut.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use crate::failure::Outcome;
use crate::world::wait_until;

/// When nothing has passed for so long, nothing more will unless somebody does something.
const QUIET: Duration = Duration::from_millis(500);

const UNLIMITED: u64 = u64::MAX;

/// A relay of TCP connections.
pub(crate) struct Link {
    pub(crate) address: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    to: String,
    /// Bytes per second to the destination.
    rate: AtomicU64,
    /// Bytes that may still pass to the destination.
    budget: AtomicU64,
    /// Bytes that have passed to the destination.
    passed: AtomicU64,
    cut: AtomicBool,
    /// What clients are told instead of being connected.
    refusal: Mutex<Option<&'static [u8]>>,
    /// How many clients were told it.
    turned_away: AtomicU64,
    sockets: Mutex<Vec<TcpStream>>,
}

impl Link {
    /// A link to the source at this address, with so many bytes per second to the destination.
    pub(crate) fn new(to: &str, rate: u64) -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let shared = Arc::new(Shared {
            to: to.to_owned(),
            rate: AtomicU64::new(rate),
            budget: AtomicU64::new(UNLIMITED),
            passed: AtomicU64::new(0),
            cut: AtomicBool::new(false),
            refusal: Mutex::default(),
            turned_away: AtomicU64::new(0),
            sockets: Mutex::default(),
        });
        let relay = Arc::clone(&shared);
        let thread = thread::spawn(move || relay.run(&listener));
        Ok(Self {
            address,
            shared,
            thread: Some(thread),
        })
    }

    /// Bytes that have passed to the destination.
    pub(crate) fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::SeqCst)
    }

    /// From now on it is so fast.
    pub(crate) fn set_rate(&self, rate: u64) {
        self.shared.rate.store(rate, Ordering::SeqCst);
    }

    /// Lets so many bytes pass to the destination, and then no more.
    pub(crate) fn allow(&self, bytes: u64) {
        self.shared.budget.store(bytes, Ordering::SeqCst);
    }

    /// Lets all bytes pass.
    pub(crate) fn allow_all(&self) {
        self.allow(UNLIMITED);
    }

    /// Waits until so many bytes have passed to the destination.
    pub(crate) fn wait_passed(&self, bytes: u64) -> Outcome {
        wait_until("bytes have passed", || Ok(self.shared.passed.load(Ordering::SeqCst) >= bytes))
    }

    /// Waits until nothing has passed to the destination for a while.
    pub(crate) fn wait_quiet(&self) -> Outcome {
        let passed = || self.shared.passed.load(Ordering::SeqCst);
        let (mut before, mut since) = (passed(), Instant::now());
        wait_until("nothing passes", || {
            let now = passed();
            if now != before {
                (before, since) = (now, Instant::now());
            }
            Ok(since.elapsed() > QUIET)
        })
    }

    /// Closes all connections, and takes no more.
    pub(crate) fn cut(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
        self.shared.close_all();
    }

    /// Closes all connections, and tells each client that comes this, once it has asked something; nothing, and at once, if this is empty.
    pub(crate) fn turn_away(&self, refusal: &'static [u8]) {
        *self.shared.refusal() = Some(refusal);
        self.shared.close_all();
    }

    /// How many clients were turned away.
    pub(crate) fn turned_away(&self) -> u64 {
        self.shared.turned_away.load(Ordering::SeqCst)
    }

    /// Connects clients again.
    pub(crate) fn let_in(&self) {
        *self.shared.refusal() = None;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
        // It takes no more.
        let _ = TcpStream::connect(&self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn refusal(&self) -> MutexGuard<'_, Option<&'static [u8]>> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close_all(&self) {
        for socket in self.sockets.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// A client that asks nothing is let go after a while.
    fn refuse(&self, mut client: TcpStream, refusal: &[u8]) {
        self.turned_away.fetch_add(1, Ordering::SeqCst);
        if refusal.is_empty() || client.set_read_timeout(Some(QUIET)).is_err() {
            return;
        }
        let _ = client.read(&mut [0; 8 << 10]);
        let _ = client.write_all(refusal);
    }

    fn run(self: Arc<Self>, listener: &TcpListener) {
        let mut threads = Vec::new();
        for client in listener.incoming().flatten() {
            if self.cut.load(Ordering::SeqCst) {
                break;
            }
            let refusal = *self.refusal();
            if let Some(refusal) = refusal {
                self.refuse(client, refusal);
                continue;
            }
            // A source that has gone refuses connections.
            if let Ok(server) = TcpStream::connect(&self.to) {
                threads.extend(self.relay(client, server).into_iter().flatten());
            }
        }
        for thread in threads {
            let _ = thread.join();
        }
    }

    fn relay(self: &Arc<Self>, client: TcpStream, server: TcpStream) -> std::io::Result<[JoinHandle<()>; 2]> {
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.extend([client.try_clone()?, server.try_clone()?]);
        if self.cut.load(Ordering::SeqCst) || self.refusal().is_some() {
            let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
        }
        let (from_client, from_server) = (client.try_clone()?, server.try_clone()?);
        let (up, down) = (Arc::clone(self), Arc::clone(self));
        Ok([
            thread::spawn(move || up.copy(from_client, server, false)),
            thread::spawn(move || down.copy(from_server, client, true)),
        ])
    }

    /// Copies until one side ends, and ends the other one.
    fn copy(&self, mut from: TcpStream, mut to: TcpStream, limited: bool) {
        let mut bytes = vec![0; 8 << 10];
        while let Ok(count) = from.read(&mut bytes) {
            if count == 0 || !self.pass(&bytes[..count], &mut to, limited) {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }

    /// False if there is no way any more.
    fn pass(&self, mut bytes: &[u8], to: &mut TcpStream, limited: bool) -> bool {
        while !bytes.is_empty() {
            let mut count = bytes.len();
            if limited {
                let take = |budget: u64| match budget {
                    UNLIMITED => None,
                    budget => Some(budget.saturating_sub(count as u64)),
                };
                let budget = self.budget.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
                count = count.min(budget.map_or(usize::MAX, |budget| budget as usize));
                if count == 0 {
                    if self.cut.load(Ordering::SeqCst) {
                        return false;
                    }
                    sleep(Duration::from_millis(1));
                    continue;
                }
            }
            if to.write_all(&bytes[..count]).is_err() {
                return false;
            }
            bytes = &bytes[count..];
            if limited {
                self.passed.fetch_add(count as u64, Ordering::SeqCst);
                let rate = self.rate.load(Ordering::SeqCst);
                sleep(Duration::from_nanos((count as u64).saturating_mul(1_000_000_000) / rate));
            }
        }
        true
    }
}
