// SPDX-License-Identifier: GPL-2.0-or-later
//! Traffic: datagrams to everybody on the LAN, so that the network device is busy, and those of others are read.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// From one datagram to the next.
const INTERVAL: Duration = Duration::from_millis(1);
/// Bytes of a datagram.
const BYTES: usize = 1400;
/// The first byte of a guest's own datagrams, which come back to it.
const OWN: u8 = b'g';

/// Traffic; it ends when this is dropped.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
}

impl Traffic {
    /// Sends to this address, and reads what comes to the same port.
    pub(crate) fn start(to: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, to.port()))?;
        socket.set_broadcast(true)?;
        socket.set_nonblocking(true)?;
        let traffic = Self {
            stop: Arc::default(),
            received: Arc::default(),
        };
        let (stop, received) = (Arc::clone(&traffic.stop), Arc::clone(&traffic.received));
        thread::spawn(move || {
            let mut datagram = [0; BYTES];
            while !stop.load(Ordering::SeqCst) {
                while socket.recv(&mut datagram).is_ok() {
                    received.fetch_add(u64::from(datagram[0] != OWN), Ordering::SeqCst);
                }
                datagram[0] = OWN;
                // A full queue of the device makes no difference to the next one.
                let _ = socket.send_to(&datagram, to);
                thread::sleep(INTERVAL);
            }
        });
        Ok(traffic)
    }

    /// Datagrams of others that have come.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::SeqCst)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
