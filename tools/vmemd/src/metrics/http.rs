// SPDX-License-Identifier: GPL-2.0-or-later
//! As much of HTTP as it takes to give one page of text to whoever asks for it.
//!
//! The port is open to everybody who reaches it, and the process behind it has programs that wait for pages. So nobody gets more of it than
//! one request of a few bytes, for a few seconds, one after the other.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// The longest request. What a browser sends with its is a fraction of this.
const LONGEST: usize = 8 << 10;
/// How long it takes at most, from the first byte to the last of the answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Answers one request after the other: `page` gives what is at `path`, of this kind.
pub(super) fn serve(listener: &TcpListener, path: &str, kind: &str, page: impl Fn() -> String) {
    loop {
        // Who hangs up before the answer has no use for it.
        let _ = match listener.accept() {
            Ok((socket, _)) => answer(&socket, path, kind, &page),
            // No descriptors or no memory: this gets better, or not, by itself.
            Err(_) => {
                thread::sleep(Duration::from_millis(100));
                Ok(())
            }
        };
    }
}

fn answer(mut socket: &TcpStream, path: &str, kind: &str, page: impl Fn() -> String) -> io::Result<()> {
    let until = Instant::now() + LIMIT;
    let line = request(socket, until)?;
    let mut words = line.split(' ');
    let target = (
        words.next(),
        words.next().map(|target| target.split('?').next().unwrap_or_default()),
    );
    let (status, kind, body) = match target {
        (Some("GET"), Some(target)) if target == path => ("200 OK", kind, page()),
        (Some("GET"), Some(_)) => ("404 Not Found", "text/plain", format!("{path}\n")),
        _ => ("400 Bad Request", "text/plain", "GET\n".to_owned()),
    };
    let length = body.len();
    let answer =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    let mut rest = answer.as_bytes();
    while !rest.is_empty() {
        socket.set_write_timeout(Some(left(until)?))?;
        let count = socket.write(rest)?;
        rest = rest.get(count..).unwrap_or_default();
    }
    socket.shutdown(Shutdown::Write)
}

/// Reads a request up to the empty line, and returns its first line.
fn request(mut socket: &TcpStream, until: Instant) -> io::Result<String> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        socket.set_read_timeout(Some(left(until)?))?;
        let count = socket.read(&mut piece)?;
        if count == 0 || head.len() + count > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.extend(piece.iter().take(count));
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    Ok(String::from_utf8_lossy(line).into_owned())
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        Err(io::ErrorKind::TimedOut.into())
    } else {
        Ok(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes back for these bytes.
    fn ask(bytes: &[u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut socket = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
        thread::spawn(move || serve(&listener, "/page", "text/plain", || "words".to_owned()));
        // It may have heard enough before the end.
        let _ = socket.write_all(bytes);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[test]
    fn the_page_is_given_and_nothing_else() {
        let page = ask(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(
            page.starts_with("HTTP/1.1 200 OK\r\n") && page.ends_with("\r\n\r\nwords"),
            "{page}"
        );
        assert!(ask(b"GET /page?x=y HTTP/1.0\r\n\r\n").contains(" 200 "));
        assert!(ask(b"GET / HTTP/1.1\r\n\r\n").contains(" 404 "));
        assert!(ask(b"POST /page HTTP/1.1\r\n\r\n").contains(" 400 "));
        assert!(ask(b"\r\n\r\n").contains(" 400 "));
    }

    #[test]
    fn who_goes_on_and_on_is_left() {
        let since = Instant::now();
        assert_eq!(ask(&vec![0; 64 << 20]), "");
        assert_eq!(ask(&b"GET /page HTTP/1.1\r\nX: y\r\n".repeat(1000)), "");
        assert!(since.elapsed() < LIMIT, "it is left at once");
        assert_eq!(ask(b"GET /pa"), "");
        assert!(since.elapsed() < LIMIT * 3);
    }
}
