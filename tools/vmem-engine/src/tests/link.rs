// SPDX-License-Identifier: GPL-2.0-or-later
//! A network between daemon and source that does what networks do.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// What happens to the bytes that the source sends on one connection, from the first one on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Weather {
    /// They arrive.
    Fair,
    /// After so many, the connection breaks.
    Cut(u64),
    /// One bit of the byte at this place is another.
    Damage(u64),
    /// They arrive, but each piece of so many only when a gate is open.
    Gate(u64),
}

/// A proxy that gives each connection its own weather.
pub(super) struct Link {
    pub(super) address: SocketAddr,
    pub(super) gate: Arc<Gate>,
    closed: Arc<AtomicBool>,
}

/// Lets a number of pieces through.
#[derive(Default)]
pub(super) struct Gate {
    left: Mutex<u64>,
    changed: Condvar,
    pub(super) passed: AtomicU64,
}

impl Gate {
    /// Lets `pieces` more through.
    pub(super) fn open(&self, pieces: u64) {
        let mut left = self.left.lock().expect("no panic");
        *left = left.saturating_add(pieces);
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut left = self
            .changed
            .wait_while(self.left.lock().expect("no panic"), |left| *left == 0)
            .expect("no panic");
        *left -= 1;
        self.passed.fetch_add(1, Ordering::Relaxed);
    }
}

impl Link {
    /// A network to `source` that lets the stream pass a gate in pieces of 64 KiB, and all else at once.
    pub(super) fn gated_stream(source: SocketAddr) -> Self {
        Self::new(source, |_, lane| match lane {
            super::STREAM => Weather::Gate(1 << 16),
            _ => Weather::Fair,
        })
    }

    /// A network to `source`. `weather` is asked for each connection: its number, from 0, and the lane byte of its greeting.
    pub(super) fn new(source: SocketAddr, weather: impl Fn(u64, u8) -> Weather + Send + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("its address");
        let gate = Arc::new(Gate::default());
        let closed = Arc::new(AtomicBool::new(false));
        let (its_gate, its_closed) = (Arc::clone(&gate), Arc::clone(&closed));
        thread::spawn(move || {
            for (number, near) in listener.incoming().enumerate() {
                let near = near.expect("a connection");
                if its_closed.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(mut far) = TcpStream::connect(source) else { continue };
                // The lane stands in byte 10 of the greeting.
                let mut greeting = [0; 24];
                if (&near).read_exact(&mut greeting).is_err() || far.write_all(&greeting).is_err() {
                    continue;
                }
                let weather = weather(number as u64, greeting[10]);
                let (near_out, far_out) = (near.try_clone().expect("a socket"), far.try_clone().expect("a socket"));
                let gate = Arc::clone(&its_gate);
                thread::spawn(move || carry(near, far_out, Weather::Fair, &Gate::default()));
                thread::spawn(move || carry(far, near_out, weather, &gate));
            }
        });
        Self { address, gate, closed }
    }

    /// Takes no more connections, and whoever tries is cut off.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, weather: Weather, gate: &Gate) {
    let mut at = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let room = match weather {
            Weather::Gate(piece) => piece as usize,
            Weather::Cut(end) => (end - at).min(1 << 16) as usize,
            _ => buffer.len(),
        };
        let Ok(length @ 1..) = from.read(&mut buffer[..room]) else {
            break;
        };
        let piece = &mut buffer[..length];
        match weather {
            Weather::Damage(place) if (at..at + length as u64).contains(&place) => piece[(place - at) as usize] ^= 0x10,
            Weather::Gate(_) => gate.pass(),
            _ => {}
        }
        at += length as u64;
        if to.write_all(piece).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
