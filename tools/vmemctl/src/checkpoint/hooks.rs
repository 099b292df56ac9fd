// SPDX-License-Identifier: GPL-2.0-or-later
//! The options of commands around a checkpoint.

use std::time::Duration;

use clap::Args;
use vmem_checkpoint::hooks::Hooks;
use vmem_cli::seconds;

/// Commands around a checkpoint.
#[derive(Debug, Args)]
pub(crate) struct HookOptions {
    /// The shell executes this before the instant; if it fails, there is no checkpoint
    #[arg(long, value_name = "COMMAND")]
    pub(crate) before: Option<String>,
    /// The shell executes this as soon as the guest runs again
    #[arg(long, value_name = "COMMAND")]
    pub(crate) resumed: Option<String>,
    /// The shell executes this when the checkpoint was made, or has failed
    #[arg(long, value_name = "COMMAND")]
    pub(crate) after: Option<String>,
    /// How long each of these commands may take
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub(crate) hook_timeout: Duration,
}

impl HookOptions {
    pub(crate) fn hooks(&self, store: &str) -> Hooks {
        Hooks {
            before: self.before.clone(),
            resumed: self.resumed.clone(),
            after: self.after.clone(),
            limit: self.hook_timeout,
            store: store.to_owned(),
        }
    }
}
