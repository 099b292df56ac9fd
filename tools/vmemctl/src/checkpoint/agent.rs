// SPDX-License-Identifier: GPL-2.0
//! The options of the guest agent, and the process that thaws file systems if `checkpoint create` is killed.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use vmem_checkpoint::Error;
use vmem_checkpoint::freeze::{self, Freeze, deputize};
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
        let program = std::env::current_exe().map_err(vmem_cli::Error::call("cannot find this program"))?;
        let mut deputy = vec![program.into_os_string()];
        deputy.extend(["checkpoint", "thaw", "--agent"].map(Into::into));
        deputy.push(socket.into());
        Ok(Some(freeze::Options {
            socket: socket.clone(),
            freeze: match self.freeze {
                When::Auto => Freeze::Auto,
                When::Always => Freeze::Always,
                When::Never => Freeze::Never,
            },
            limit: self.socket.agent_timeout,
            deputy,
        }))
    }
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
