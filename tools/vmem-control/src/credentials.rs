// SPDX-License-Identifier: GPL-2.0-or-later
//! Who may be at the other end of a control connection.

use std::os::fd::AsFd;

use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;

use crate::error::Error;

const ROOT: u32 = 0;

/// The user of this process.
#[must_use]
pub fn own_user() -> u32 {
    geteuid().as_raw()
}

/// Refuses a process of user `uid` that is neither `owner` nor root.
///
/// # Errors
///
/// [`Error::Stranger`].
pub fn judge(uid: u32, owner: u32) -> Result<(), Error> {
    if uid == owner || uid == ROOT {
        Ok(())
    } else {
        Err(Error::Stranger { uid, owner })
    }
}

/// Judges who has made the other end of `socket`: has connected, or has listened (`SO_PEERCRED`).
///
/// # Errors
///
/// As [`judge`]; or the kernel does not say.
pub fn judge_peer(socket: impl AsFd, owner: u32) -> Result<(), Error> {
    let peer = socket_peercred(socket).map_err(|error| Error::Io(error.into()))?;
    judge(peer.uid.as_raw(), owner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn owner_and_root_are_let_in_and_others_are_refused() {
        assert!(judge(1000, 1000).is_ok());
        assert!(judge(0, 1000).is_ok());
        for (uid, owner) in [(1001, 1000), (65534, 0), (1000, 0), (u32::MAX, 65534)] {
            let refused = judge(uid, owner);
            assert!(
                matches!(refused, Err(Error::Stranger { .. })),
                "{uid} at {owner}: {refused:?}"
            );
        }
        let text = judge(1001, 1000).expect_err("another user").to_string();
        assert!(text.contains("1001") && text.contains("1000"), "{text}");
    }

    #[test]
    fn peer_is_judged_by_what_the_kernel_says() {
        let (ours, _theirs) = UnixStream::pair().expect("sockets");
        judge_peer(&ours, own_user()).expect("this process");
        if own_user() != ROOT {
            assert!(judge_peer(&ours, own_user() + 1).is_err());
        }
    }
}
