// SPDX-License-Identifier: GPL-2.0-or-later
//! Sockets in directories of any length. The kernel takes 107 bytes for the path of a Unix socket; the directory is opened, and the socket
//! is bound or connected to below `/proc/self/fd`.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open, openat};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_passcred, socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::error::Error;

/// A directory, and a path of a file in it that is short as long as this is there.
struct Short {
    directory: OwnedFd,
    path: PathBuf,
}

impl Short {
    fn new(path: &Path) -> io::Result<Self> {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(parent, flags, Mode::empty())?;
        let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        Ok(Self { directory, path })
    }
}

/// How long another program may take to bind a socket in the same directory. It takes a few microseconds.
const BINDING: Duration = Duration::from_secs(2);

/// Listens at `path`. A socket at which nobody listens any more is replaced.
///
/// Of several programs that bind the same path at once, one succeeds.
///
/// # Errors
///
/// [`Error::InUse`] if another program listens there; [`Error::Bind`], also if there is something that is no socket.
pub fn bind(path: &Path) -> Result<UnixListener, Error> {
    let failed = |source| Error::Bind {
        path: path.to_owned(),
        source,
    };
    let short = Short::new(path).map_err(failed)?;
    // A socket that another program has bound and does not listen on yet looks as if nobody listened any more; and between a look at the
    // socket and its removal, another program can replace it.
    let _lock = lock_directory(&short).map_err(failed)?;
    let error = match UnixListener::bind(&short.path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
        bound => return bound.map_err(failed),
    };
    let is_socket = fs::symlink_metadata(&short.path).is_ok_and(|metadata| metadata.file_type().is_socket());
    match dial(&short.path) {
        _ if !is_socket => Err(failed(error)),
        Err(error) if error.is_nobody() => fs::remove_file(&short.path)
            .and_then(|()| UnixListener::bind(&short.path))
            .map_err(failed),
        // Its queue may be full, or it is another user's.
        _ => Err(Error::InUse(path.to_owned())),
    }
}

/// Locks the directory of a socket, until the descriptor is closed. `None` on a file system that cannot.
fn lock_directory(short: &Short) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = match openat(&short.directory, ".", flags, Mode::empty()) {
        Ok(directory) => directory,
        // Whoever cannot list the directory can still bind a socket there.
        Err(Errno::ACCESS) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let until = Instant::now() + BINDING;
    loop {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(directory)),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
            Err(Errno::WOULDBLOCK) => {
                let why = "another program keeps its directory locked (flock)";
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            // NFS, for example, locks no directory.
            Err(_) => return Ok(None),
        }
    }
}

/// Connects to `path`, and waits for nobody: the socket is not blocking. The kernel says of each message on it which process has sent it.
pub(crate) fn dial(path: &Path) -> Result<UnixStream, Error> {
    let connected = || -> io::Result<UnixStream> {
        let short = Short::new(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Before anything can come: what is sent earlier has no sender.
        set_socket_passcred(&socket, true)?;
        connect(&socket, &SocketAddrUnix::new(&short.path)?)?;
        Ok(UnixStream::from(socket))
    };
    connected().map_err(|source| Error::Connect {
        path: path.to_owned(),
        source,
    })
}

/// The listening socket that this process has inherited as its standard input.
///
/// # Errors
///
/// [`Error::NotListening`].
pub fn inherited() -> Result<UnixListener, Error> {
    listening(io::stdin().as_fd().try_clone_to_owned().map_err(Error::Io)?, "standard input")
}

fn listening(fd: OwnedFd, what: &str) -> Result<UnixListener, Error> {
    let is = socket_domain(&fd).is_ok_and(|domain| domain == AddressFamily::UNIX)
        && socket_type(&fd).is_ok_and(|kind| kind == SocketType::STREAM)
        && socket_acceptconn(&fd).unwrap_or(false);
    if is {
        Ok(UnixListener::from(fd))
    } else {
        Err(Error::NotListening(what.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn path_may_be_longer_than_the_kernel_takes() {
        let directory = tempfile::tempdir().expect("a directory");
        let long = directory.path().join("d".repeat(120)).join("e".repeat(120));
        fs::create_dir_all(&long).expect("a directory");
        let path = long.join("vmemd.sock");
        let listener = bind(&path).expect("a socket");
        dial(&path).expect("a connection");
        listener.accept().expect("a connection");
    }

    #[test]
    fn only_a_socket_at_which_nobody_listens_is_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = bind(&path).expect("a socket");
        let error = bind(&path).expect_err("it is in use");
        assert!(matches!(&error, Error::InUse(found) if *found == path), "{error}");
        dial(&path).expect("the first one is not harmed");
        drop(listener);
        assert!(dial(&path).expect_err("nobody").is_nobody());
        drop(bind(&path).expect("it is replaced"));
        fs::remove_file(&path).expect("a socket");
        assert!(dial(&path).expect_err("nothing").is_nobody());
        fs::write(&path, "a file").expect("a file");
        let error = bind(&path).expect_err("a file");
        assert!(matches!(error, Error::Bind { .. }), "{error}");
        assert_eq!(fs::read(&path).expect("it is kept"), b"a file");
    }

    #[test]
    fn one_of_many_that_bind_the_same_path_at_once_gets_it() {
        const BINDERS: usize = 8;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        for round in 0..50 {
            // As the last round has left it: with a socket at which nobody listens.
            let start = std::sync::Barrier::new(BINDERS);
            let bound: Vec<_> = thread::scope(|scope| {
                let bind = || {
                    start.wait();
                    bind(&path)
                };
                let threads: Vec<_> = (0..BINDERS).map(|_| scope.spawn(bind)).collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
            });
            let (listeners, errors): (Vec<_>, Vec<_>) = bound.into_iter().partition(Result::is_ok);
            assert_eq!(listeners.len(), 1, "round {round}");
            assert!(errors.iter().all(|error| matches!(error, Err(Error::InUse(_)))), "{errors:?}");
            dial(&path).expect("it has the path");
            listeners[0].as_ref().expect("a socket").accept().expect("the connection");
        }
    }

    #[test]
    fn directory_that_stays_locked_is_an_error_that_says_so() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let lock = lock_directory(&Short::new(&path).expect("a path")).expect("a lock");
        let error = bind(&path).expect_err("it is locked");
        assert!(
            matches!(&error, Error::Bind { source, .. } if source.to_string().contains("locked")),
            "{error:?}"
        );
        drop(lock);
        bind(&path).expect("a socket");
    }

    #[test]
    fn only_a_socket_that_listens_is_inherited() {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = bind(&directory.path().join("socket")).expect("a socket");
        listening(listener.into(), "it").expect("it listens");
        let (stream, _other) = UnixStream::pair().expect("sockets");
        let null = File::open("/dev/null").expect("a device");
        for other in [OwnedFd::from(stream), null.into()] {
            let error = listening(other, "descriptor 7").expect_err("it does not");
            assert!(error.to_string().contains("descriptor 7"), "{error}");
        }
    }
}
