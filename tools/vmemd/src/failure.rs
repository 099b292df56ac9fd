// SPDX-License-Identifier: GPL-2.0-or-later
//! Why the daemon ends without having done everything, and the exit code that says so.

use std::io;

use vmem_engine::Error;

/// Why a run ended early. vmemd(8) documents the exit codes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The source cannot be used, or not any more.
    #[error("no source")]
    Source(#[source] vmem_source::Error),
    /// The engine cannot continue.
    #[error(transparent)]
    Engine(Error),
    /// The memory that the source exports has another size than the region of its name.
    #[error("region {name} exists with {region} bytes, but the source exports {export}")]
    OtherSize {
        /// Name of the region.
        name: String,
        /// Size of the region in bytes.
        region: u64,
        /// Size of the export in bytes.
        export: u64,
    },
    /// The source exports more than this machine could keep track of.
    #[error(
        "the source exports {pages} pages: to keep track of them takes up to {need} MiB, more than half of the {available} MiB that there are"
    )]
    TooMuch {
        /// Pages of all exports that are taken.
        pages: u64,
        /// Memory for that.
        need: u64,
        /// Memory that there is.
        available: u64,
    },
    /// `--region` names an export that the source does not have.
    #[error("--region {0}=...: the source has no such export")]
    NoSuchExport(String),
    /// systemd has passed a descriptor that is not what its name says.
    #[error("systemd has kept a descriptor as {label:?}, with which vmemd cannot go on: {why}")]
    Foreign {
        /// The name under which it was kept.
        label: String,
        /// What is the matter with it.
        why: String,
    },
    /// The descriptors that systemd has passed cannot be taken.
    #[error(transparent)]
    Kept(#[from] vmem_service::KeptError),
    /// `--metrics` does not work.
    #[error(transparent)]
    Metrics(#[from] crate::metrics::MetricsError),
    /// The files of `--tls` are not what they should be.
    #[error("no identity")]
    Tls(#[from] vmem_tls::Error),
    /// What is not needed cannot be given up.
    #[error(transparent)]
    Privileges(#[from] crate::privileges::PrivilegeError),
    /// `--control` does not work.
    #[error("no control socket")]
    Control(#[from] vmem_control::Error),
    /// A region exists, and it was not said that it may be served.
    #[error(
        "region {0} exists already: --attach goes on with it, if it has no daemon; --region {0}=NAME gives this one another name"
    )]
    Exists(String),
    /// Pages of a region that are present would not be staged.
    #[error("region {0} has pages already: --stage takes rounds into regions without any")]
    HasPages(String),
    /// A call on the control device or a region failed.
    #[error("{what}")]
    Kernel {
        /// What was tried, and of which region.
        what: String,
        /// Why it failed.
        #[source]
        source: vmem::Error,
    },
    /// An image of `--seed-image` cannot be read.
    #[error("cannot use the seed image {}", path.display())]
    SeedImage {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `--source` was given more than once.
    #[error("there is one --source, unless all are of the form file:NAME=PATH")]
    Sources,
    /// `--tls` was given with an NBD server that is not to be used over TLS.
    #[error("--tls with an NBD server: nbd:// and nbd+unix:// are clear text, use nbds:// or nbds+unix://")]
    NbdInClearText,
    /// An NBD server over TLS, without certificates.
    #[error("nbds:// needs certificates: --tls DIR, or the parameter tls-certificates=DIR of the URI")]
    NoCertificates,
    /// Something of this process failed.
    #[error("{what}")]
    Local {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Pages are left that the source cannot read.
    #[error("{0} pages cannot be read at the source; a touch of them is SIGBUS")]
    Unreadable(u64),
    /// Regions are not as the source is.
    #[error("{pages} pages differ from the source's; the first of them, by region: {first}")]
    Different {
        /// How many.
        pages: u64,
        /// Names of regions and numbers of pages.
        first: String,
    },
    /// A signal asked to end.
    #[error("stopped; regions that somebody has mapped or open wait for the next daemon")]
    Stopped,
}

impl Failure {
    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Local { .. }
            | Self::Sources
            | Self::Foreign { .. }
            | Self::Kept(_)
            | Self::NbdInClearText
            | Self::NoCertificates
            | Self::NoSuchExport(_)
            | Self::SeedImage { .. }
            | Self::Tls(_)
            | Self::Metrics(_)
            | Self::Control(_)
            | Self::Privileges(_)
            | Self::Engine(Error::Local { .. }) => 1,
            Self::Source(error) | Self::Engine(Error::Source(error)) => match error {
                vmem_source::Error::ClearText(_) => 1,
                error if error.is_lost() => 2,
                _ => 3,
            },
            Self::Engine(Error::NoRemainder(_)) => 2,
            Self::Unreadable(_) => 4,
            Self::Kernel { .. }
            | Self::Exists(_)
            | Self::HasPages(_)
            | Self::OtherSize { .. }
            | Self::TooMuch { .. }
            | Self::Engine(Error::Region { .. }) => 5,
            Self::Stopped | Self::Engine(Error::Halted) => 6,
            Self::Engine(Error::MemoryChanged(_)) => 7,
            Self::Different { .. } => 8,
        }
    }

    /// Whether a vmemd that is started again goes on where this one has ended: after a signal, which may be for a restart, and when the source is away.
    pub(crate) fn is_passing(&self) -> bool {
        [2, 6].contains(&self.code())
    }

    /// Wraps what `what` failed with.
    pub(crate) fn kernel(what: impl Into<String>) -> impl FnOnce(vmem::Error) -> Self {
        let what = what.into();
        |source| Self::Kernel { what, source }
    }

    /// Wraps what `what` failed with.
    pub(crate) fn local(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Local { what, source }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Halted => Self::Stopped,
            error => Self::Engine(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_engine_fails_with_has_the_code_that_vmemd_8_gives_it() {
        let code = |error: Error| Failure::from(error).code();
        let (action, source) = ("", io::Error::other(""));
        assert_eq!(code(Error::Local { action, source }), 1);
        assert_eq!(code(Error::Source(vmem_source::Error::Closed { mid_frame: false })), 2);
        let (region, source) = (String::new(), vmem::Error::Plain);
        let action = "";
        assert_eq!(code(Error::Region { action, region, source }), 5);
        assert_eq!(code(Error::Halted), 6);
        let name = vmem::Name::new("ram").expect("a name");
        assert_eq!(code(Error::MemoryChanged(name)), 7, "never to be tried again");
    }
}
