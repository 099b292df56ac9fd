// SPDX-License-Identifier: GPL-2.0-or-later
//! Descriptors that systemd has kept for this service.

use std::env;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::process;

use crate::service::Service;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// Whom the descriptors are for.
const PROCESS: &str = "LISTEN_PID";

/// A descriptor that systemd has passed to this process.
#[derive(Debug)]
pub struct Kept {
    /// The name under which it was kept.
    pub name: String,
    /// The descriptor.
    pub fd: OwnedFd,
}

/// The descriptors from systemd cannot be taken.
#[derive(Debug, thiserror::Error)]
#[error("cannot take the descriptors that systemd has passed (LISTEN_FDS, LISTEN_FDNAMES)")]
pub struct KeptError(#[from] io::Error);

impl Kept {
    /// Takes the descriptors that systemd has passed to this process. To be called once, and first of all.
    ///
    /// # Errors
    ///
    /// The environment is not what `sd_listen_fds(3)` says, or has descriptors that are not open.
    pub fn take() -> Result<Vec<Self>, KeptError> {
        // What a service was passed is in the environment of its children, too.
        if env::var(PROCESS).ok() != Some(process::id().to_string()) {
            return Ok(Vec::new());
        }
        let take = |(number, name)| take(number).map(|fd| Self { name, fd });
        let passed = sd_notify::listen_fds_with_names()?;
        passed.map(take).collect::<io::Result<_>>().map_err(KeptError)
    }

    /// For a service that keeps nothing: closes what systemd has passed to this process, as to one with other arguments, and has systemd close it. To be
    /// called once, and first of all. Returns the names.
    ///
    /// # Errors
    ///
    /// As of [`take`](Self::take).
    pub fn let_go(service: &Service) -> Result<Vec<String>, KeptError> {
        let names: Vec<String> = Self::take()?.into_iter().map(|kept| kept.name).collect();
        if !names.is_empty() {
            service.forget(names.iter().map(String::as_str));
        }
        Ok(names)
    }
}

/// The descriptor of this number, of which nobody knows yet. Its owner is a duplicate, as another process would get it; the number itself is closed.
fn take(number: RawFd) -> io::Result<OwnedFd> {
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    let fd = pidfd_getfd(&this, number, PidfdGetfdFlags::empty())?;
    nix::unistd::close(number)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::{AsRawFd, IntoRawFd};

    use crate::socket::{as_service, in_service};

    use super::*;

    #[test]
    fn descriptor_that_is_taken_is_open_once() {
        let file = tempfile::tempfile().expect("a file");
        let is_same = |fd: RawFd, file: &File| {
            let path = |fd: RawFd| fs::read_link(format!("/proc/self/fd/{fd}")).ok();
            path(fd).is_some() && path(fd) == path(file.as_raw_fd())
        };
        let number = file.try_clone().expect("a duplicate").into_raw_fd();
        let taken = take(number).expect("it is open");
        assert!(is_same(taken.as_raw_fd(), &file));
        let flags = rustix::io::fcntl_getfd(&taken).expect("flags");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "no child gets it");
        drop(taken);
        // Another test may have got its number meanwhile, but not this file.
        assert!(!is_same(number, &file), "it is still open");
        take(RawFd::MAX).expect_err("it is not open");
    }

    #[test]
    fn what_is_passed_to_another_process_is_not_taken() {
        if in_service() {
            return assert_eq!(Kept::take().expect("an environment").len(), 0);
        }
        let name = "kept::tests::what_is_passed_to_another_process_is_not_taken";
        as_service(name, &[]);
        as_service(name, &[(PROCESS, "1"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "a:b")]);
    }

    #[test]
    fn what_is_passed_to_a_service_that_keeps_nothing_is_let_go_of() {
        if in_service() {
            assert_eq!(Kept::let_go(&Service::of_this_process()).expect("it is open"), ["a@1"]);
            // Its number may be another one's by now.
            return assert_ne!(fs::read_link("/proc/self/fd/3").ok(), Some("/dev/zero".into()));
        }
        let name = "kept::tests::what_is_passed_to_a_service_that_keeps_nothing_is_let_go_of";
        let passed = [(PROCESS, "own process"), ("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "a@1")];
        let said = as_service(name, &passed);
        let texts: Vec<_> = said.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(texts, ["FDSTOREREMOVE=1\nFDNAME=a@1\n", "BARRIER=1\n"]);
    }

    #[test]
    fn environment_that_names_descriptors_which_are_not_open_is_refused() {
        if in_service() {
            return drop(Kept::take().expect_err("they are not open"));
        }
        let name = "kept::tests::environment_that_names_descriptors_which_are_not_open_is_refused";
        as_service(name, &[(PROCESS, "own process"), ("LISTEN_FDS", "200")]);
    }
}
