// SPDX-License-Identifier: GPL-2.0-or-later
//! Traffic between a guest and the LAN, in both directions and without a pause: the guest's network device always has something to do, also
//! while the guest itself does not run.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::guest::Guest;
use crate::patience::wait_until;

/// From one datagram to the next.
const INTERVAL: Duration = Duration::from_millis(1);
/// Bytes of a datagram.
const BYTES: usize = 1400;
/// Everybody on the LAN: nobody need find out first where the guest is.
const EVERYBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 255);
/// The port that discards what comes.
const PORT: u16 = 9;

/// Traffic with a guest; this side's ends when it is dropped.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Traffic {
    /// Starts it on both sides, and waits until it flows.
    pub(crate) fn start(guest: &Guest) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("the port of the traffic")?;
        socket.set_broadcast(true)?;
        socket.set_nonblocking(true)?;
        let (stop, received): (Arc<AtomicBool>, Arc<AtomicU64>) = Default::default();
        let from = guest.service()?;
        let thread = thread::spawn({
            let (stop, received) = (Arc::clone(&stop), Arc::clone(&received));
            move || exchange(&socket, from, &stop, &received)
        });
        let traffic = Self {
            stop,
            received,
            thread: Some(thread),
        };
        guest.start_traffic(SocketAddr::from((EVERYBODY, PORT)))?;
        traffic.wait_for_more()?;
        Ok(traffic)
    }

    /// Waits until more has come from the guest.
    pub(crate) fn wait_for_more(&self) -> Result<()> {
        let before = self.received.load(Ordering::SeqCst);
        wait_until("datagrams come from the guest", || {
            Ok(self.received.load(Ordering::SeqCst) > before)
        })
    }

    /// Ends it. That it did not go both ways is an error.
    pub(crate) fn end(self, guest: &Guest) -> Result<()> {
        self.wait_for_more()?;
        ensure!(guest.end_traffic()? > 0, "no datagram has come to the guest");
        Ok(())
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Sends to everybody, and counts what comes from the guest: what is sent to everybody comes back, too.
fn exchange(socket: &UdpSocket, guest: SocketAddr, stop: &AtomicBool, received: &AtomicU64) {
    let mut datagram = [0; BYTES];
    let mut receive = || -> io::Result<SocketAddr> { Ok(socket.recv_from(&mut datagram)?.1) };
    while !stop.load(Ordering::SeqCst) {
        while let Ok(sender) = receive() {
            received.fetch_add(u64::from(sender.ip() == guest.ip()), Ordering::SeqCst);
        }
        // A full queue makes no difference to the next one.
        let _ = socket.send_to(&[0; BYTES], (EVERYBODY, PORT));
        thread::sleep(INTERVAL);
    }
}
