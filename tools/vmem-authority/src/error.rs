// SPDX-License-Identifier: GPL-2.0-or-later
//! Errors of an authority.

use std::io;
use std::path::PathBuf;

/// The authority cannot be made or read, or does not issue a certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What was to be made is there already. Nothing was changed.
    #[error("{} exists", .0.display())]
    Exists(PathBuf),
    /// A file or directory cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        source: io::Error,
    },
    /// A file or directory cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why it cannot be written.
        source: io::Error,
    },
    /// A file does not hold what it is to hold.
    #[error("cannot use {}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The certificate of a host is not of this authority.
    #[error("{} was not issued by this authority", .0.display())]
    Foreign(PathBuf),
    /// The authority's certificate is not valid any more.
    #[error("the authority's certificate has expired on {0}: make another authority, and give its ca.pem to all hosts")]
    Expired(String),
    /// A certificate cannot have such a name.
    #[error("{0:?} is neither the name of a host nor an address")]
    Name(String),
    /// The files of a host are known by its name.
    #[error("{0:?} cannot be the host's name here: give a name first, and addresses after it")]
    Host(String),
    /// The name of an authority is empty or too long.
    #[error("{0:?} is not a name of 1 to 64 characters")]
    AuthorityName(String),
    /// A certificate has names that are neither of hosts nor addresses, and a new one would be without them.
    #[error("{} has names of other kinds than hosts and addresses, which a renewed one would lack", .0.display())]
    OtherNames(PathBuf),
    /// A certificate was to have no names.
    #[error("a certificate without names is of no use")]
    NoNames,
    /// A period of validity is too long or empty.
    #[error("{0} days is not between 1 and 36500")]
    Days(u32),
    /// The system has no random numbers.
    #[error("no random numbers")]
    Random(#[source] io::Error),
    /// The certificate cannot be made.
    #[error("cannot make the certificate")]
    Make(#[from] rcgen::Error),
}
