// SPDX-License-Identifier: GPL-2.0-or-later
//! Child processes that have the parent's memory.

use std::io;

/// A child process. It is killed when this is dropped, if it still runs.
#[derive(Debug)]
pub struct Child {
    /// 0 once it was waited for.
    pid: libc::pid_t,
}

/// Makes a child that runs `run` and exits with what it returns. Nothing of the parent is dropped in the child.
///
/// The child has only the calling thread: `run` must not wait for another one, nor take a lock that another one may hold now. The
/// measurements call this while they have no other thread.
///
/// # Errors
///
/// What `fork(2)` gives.
pub fn fork(run: impl FnOnce() -> u8) -> io::Result<Child> {
    // SAFETY: the C library makes its own locks right in the child; of others, see above.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let status = run();
            // SAFETY: it ends the child, without what the parent has to do at its own end.
            unsafe { libc::_exit(status.into()) }
        }
        _ => Ok(Child { pid }),
    }
}

impl Child {
    /// Its process id.
    pub fn id(&self) -> i32 {
        self.pid
    }

    /// Waits for its end. Returns its exit status; `None` if a signal killed it.
    ///
    /// # Errors
    ///
    /// What `waitpid(2)` gives.
    pub fn wait(mut self) -> io::Result<Option<u8>> {
        let mut status = 0;
        // SAFETY: `status` is a place for the status.
        while unsafe { libc::waitpid(self.pid, &mut status, 0) } == -1 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        self.pid = 0;
        Ok(libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status) as u8))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.pid != 0 {
            // SAFETY: the process is this value's child, not yet waited for: the number is no other's.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            // SAFETY: as above; without a place for the status.
            unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
        }
    }
}
