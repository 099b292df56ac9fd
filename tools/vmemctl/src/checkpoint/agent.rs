// SPDX-License-Identifier: GPL-2.0-or-later
//! The options of the guest agent, and the processes that thaw file systems, or continue the guest, if `checkpoint create` is killed.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use vmem_checkpoint::Error;
use vmem_checkpoint::freeze::{self, Freeze, deputize};
use vmem_checkpoint::standstill;
use vmem_cli::seconds;

/// The socket of the guest agent.
#[derive(Debug, Args)]
pub(crate) struct AgentSocket {
    /// QEMU's socket for the guest agent (qemu-ga)
    #[arg(long, value_name = "SOCKET")]
    pub(crate) agent: Option<PathBuf>,
    /// How long the guest agent may take for an answer
    #[arg(long, value_name = "SECONDS", requires = "agent", default_value = "10", value_parser = seconds)]
    pub(crate) agent_timeout: Duration,
}

/// How file systems are frozen.
#[derive(Debug, Args)]
pub(crate) struct FreezeOptions {
    #[command(flatten)]
    pub(crate) socket: AgentSocket,
    /// Freeze the guest's file systems at the instant
    #[arg(long, value_name = "WHEN", requires = "agent", default_value = "auto")]
    pub(crate) freeze: When,
}

/// When file systems are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    /// If a guest agent answers
    Auto,
    /// Or there is no checkpoint
    Always,
    /// Do not
    Never,
}

impl FreezeOptions {
    pub(crate) fn options(&self) -> Result<Option<freeze::Options>, Error> {
        let Some(socket) = &self.socket.agent else { return Ok(None) };
        Ok(Some(freeze::Options {
            socket: socket.clone(),
            freeze: match self.freeze {
                When::Auto => Freeze::Auto,
                When::Always => Freeze::Always,
                When::Never => Freeze::Never,
            },
            limit: self.socket.agent_timeout,
            deputy: deputy("thaw", "--agent", socket)?,
        }))
    }
}

/// The command of a deputy, which has this option.
pub(super) fn deputy(command: &str, option: &str, socket: &Path) -> Result<Vec<OsString>, Error> {
    let program = std::env::current_exe().map_err(vmem_cli::Error::call("cannot find this program"))?;
    let words = ["checkpoint", command, option].map(OsString::from);
    Ok([&[program.into_os_string()][..], &words, &[socket.into()]].concat())
}

/// Waits at standard input for the death of `checkpoint create`, and continues the guest.
#[derive(Debug, Args)]
pub(crate) struct Continue {
    #[arg(long)]
    pub(crate) qmp: PathBuf,
}

pub(super) fn go_on(args: &Continue) -> Result<(), Error> {
    standstill::deputize(&mut io::stdin().lock(), &args.qmp)
}

/// Waits at standard input for the death of `checkpoint create`, and thaws.
#[derive(Debug, Args)]
pub(crate) struct Thaw {
    #[arg(long)]
    pub(crate) agent: PathBuf,
}

pub(super) fn thaw(args: &Thaw) -> Result<(), Error> {
    const LIMIT: Duration = Duration::from_secs(10);
    deputize(&mut io::stdin().lock(), &args.agent, LIMIT)
}
