// SPDX-License-Identifier: GPL-2.0-or-later
//! Waiting for a source.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmem_source::Readiness;
use vmem_wait::StopEvent;

use crate::error::Error;
use crate::shared::POLL_TIMEOUT;

/// Waits until a source may have something, at most for [`POLL_TIMEOUT`]. True if the thread must stop instead.
pub(crate) fn wait(stop: &StopEvent, source: Readiness<'_>) -> Result<bool, Error> {
    let Readiness::When(fd) = source else {
        return Ok(stop.is_set());
    };
    let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let timeout = Timespec::try_from(POLL_TIMEOUT).ok();
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(!fds[0].revents().is_empty()),
        Err(error) => Err(Error::local("wait for pages")(error.into())),
    }
}
