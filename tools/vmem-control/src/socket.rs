// SPDX-License-Identifier: GPL-2.0
//! Sockets in directories of any length. The kernel takes 107 bytes for the path of a Unix socket; the directory is opened, and the socket
//! is bound or connected to below `/proc/self/fd`.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::net::sockopt::{set_socket_passcred, socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::error::Error;

/// A directory, and a path of a file in it that is short as long as this is there.
struct Short {
    _directory: OwnedFd,
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
        Ok(Self {
            _directory: directory,
            path,
        })
    }
}

/// Listens at `path`. A socket at which nobody listens any more is replaced.
///
/// # Errors
///
/// [`Error::Bind`]; with [`io::ErrorKind::AddrInUse`] if somebody listens there, or it is no socket.
pub fn bind(path: &Path) -> Result<UnixListener, Error> {
    let failed = |source| Error::Bind {
        path: path.to_owned(),
        source,
    };
    let short = Short::new(path).map_err(failed)?;
    let bound = match UnixListener::bind(&short.path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_refused(&short.path) => {
            fs::remove_file(&short.path).and_then(|()| UnixListener::bind(&short.path))
        }
        bound => bound,
    };
    bound.map_err(failed)
}

/// Whether there is a socket at which nobody listens.
fn is_refused(path: &Path) -> bool {
    dial(path).is_err_and(|error| error.is_nobody())
        && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
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
        let is_in_use = || matches!(bind(&path), Err(Error::Bind { source, .. }) if source.kind() == io::ErrorKind::AddrInUse);
        let listener = bind(&path).expect("a socket");
        assert!(is_in_use());
        drop(listener);
        assert!(dial(&path).expect_err("nobody").is_nobody());
        drop(bind(&path).expect("it is replaced"));
        fs::remove_file(&path).expect("a socket");
        assert!(dial(&path).expect_err("nothing").is_nobody());
        fs::write(&path, "a file").expect("a file");
        assert!(is_in_use());
        assert_eq!(fs::read(&path).expect("it is kept"), b"a file");
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
