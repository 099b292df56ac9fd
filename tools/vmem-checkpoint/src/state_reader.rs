// SPDX-License-Identifier: GPL-2.0-or-later
//! Reads the stream of a guest's device state from QEMU.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmem_qemu::DeviceState;

/// How far the stream is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Progress {
    /// More follows.
    Going,
    /// QEMU has written everything, and writes to the guest's memory no more.
    Complete,
    /// QEMU has closed the stream before.
    Ended,
    /// There is more than is accepted.
    TooLong,
}

struct Stream {
    state: DeviceState,
    progress: Progress,
}

#[derive(Default)]
struct Shared {
    stream: Mutex<Stream>,
    changed: Condvar,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            state: DeviceState::default(),
            progress: Progress::Going,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Stream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that reads the stream, and keeps it.
///
/// QEMU writes the stream into a socket whose other end this process has, and then waits for an answer that is never sent: that the state
/// was loaded. While it waits, the guest stands still. If the socket closes, when this value is dropped or this process dies in whatever
/// way, the migration fails for QEMU, and QEMU itself continues a guest that it has stopped for it.
pub(crate) struct StateReader {
    socket: UnixStream,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl StateReader {
    /// Reads up to `limit` bytes from `socket`.
    pub(crate) fn start(socket: UnixStream, limit: usize) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let (from, to) = (socket.try_clone()?, Arc::clone(&shared));
        let thread = thread::Builder::new()
            .name("device-state".to_owned())
            .spawn(move || read(from, &to, limit))?;
        Ok(Self {
            socket,
            shared,
            thread: Some(thread),
        })
    }

    /// How far the stream is. Waits up to `limit` for its end.
    pub(crate) fn wait(&self, limit: Duration) -> Progress {
        let is_going = |stream: &mut Stream| stream.progress == Progress::Going;
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), limit, is_going);
        let (stream, _) = waited.unwrap_or_else(PoisonError::into_inner);
        stream.progress
    }

    /// Closes the stream, and returns all that QEMU has written into it. `None` if that is not a whole state, or more than that: what looked
    /// like its end was not.
    pub(crate) fn finish(mut self) -> Option<Vec<u8>> {
        // What QEMU has written already is read first.
        let _ = self.socket.shutdown(Shutdown::Both);
        self.thread.take()?.join().ok()?;
        let mut stream = self.shared.lock();
        (stream.progress == Progress::Complete).then(|| std::mem::take(&mut stream.state).into_bytes())
    }
}

impl Drop for StateReader {
    fn drop(&mut self) {
        // QEMU may have closed its end already. The thread ends, too.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

fn read(mut from: UnixStream, to: &Shared, limit: usize) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.unwrap_or(0),
        };
        let bytes = buffer.get(..read).unwrap_or_default();
        let mut stream = to.lock();
        stream.progress = if bytes.is_empty() {
            // After the whole state, the end means nothing.
            if stream.progress == Progress::Complete {
                Progress::Complete
            } else {
                Progress::Ended
            }
        } else if stream.state.bytes().len().saturating_add(bytes.len()) > limit {
            Progress::TooLong
        } else {
            stream.state.push(bytes);
            if stream.state.is_complete() {
                Progress::Complete
            } else {
                Progress::Going
            }
        };
        let is_over = bytes.is_empty() || stream.progress == Progress::TooLong;
        drop(stream);
        to.changed.notify_all();
        if is_over {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vmem_qemu::recorded::END;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn reader(limit: usize) -> (UnixStream, StateReader) {
        let (qemu, ours) = UnixStream::pair().expect("sockets");
        (qemu, StateReader::start(ours, limit).expect("a thread"))
    }

    #[test]
    fn state_is_complete_with_its_last_byte_and_stays_so_when_qemu_closes() {
        let (mut qemu, reader) = reader(1 << 20);
        let (last, all) = END.split_last().expect("bytes");
        qemu.write_all(all).expect("room");
        assert_eq!(reader.wait(Duration::from_millis(100)), Progress::Going);
        qemu.write_all(&[*last]).expect("room");
        assert_eq!(reader.wait(LONG), Progress::Complete);
        drop(qemu);
        thread::sleep(Duration::from_millis(50));
        assert_eq!(reader.wait(Duration::ZERO), Progress::Complete);
        assert_eq!(reader.finish().expect("all"), END);
    }

    #[test]
    fn bytes_after_what_looked_like_the_end_are_not_a_whole_state() {
        let (mut qemu, reader) = reader(1 << 20);
        qemu.write_all(END).expect("room");
        assert_eq!(reader.wait(LONG), Progress::Complete);
        qemu.write_all(b"more").expect("room");
        assert_eq!(reader.finish(), None);
    }

    #[test]
    fn stream_that_ends_early_or_is_too_long_is_told_apart() {
        let (mut qemu, ended) = reader(1 << 20);
        qemu.write_all(&END[..100]).expect("room");
        drop(qemu);
        assert_eq!(ended.wait(LONG), Progress::Ended);
        let (mut qemu, long) = reader(100);
        // The reader may close its end before all is written.
        let _ = qemu.write_all(END);
        assert_eq!(long.wait(LONG), Progress::TooLong);
    }

    #[test]
    fn dropped_reader_closes_the_stream() {
        let (mut qemu, reader) = reader(1 << 20);
        drop(reader);
        assert_eq!(qemu.read(&mut [0; 8]).expect("the end"), 0);
    }
}
