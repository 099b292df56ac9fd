// SPDX-License-Identifier: GPL-2.0-or-later
//! Which checkpoints of a guest are kept.

use std::time::Duration;

use clap::Args;
use vmem_cli::seconds;
use vmem_store::Policy;

/// What is to be kept, by the rules of restic: a checkpoint is kept if one of them wants it.
#[derive(Debug, Default, Args)]
pub(crate) struct Keep {
    /// Keep the newest N
    #[arg(long = "keep-last", value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) last: u32,
    /// Keep the newest of each of the newest N hours that have any
    #[arg(long = "keep-hourly", value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) hourly: u32,
    /// The same for days
    #[arg(long = "keep-daily", value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) daily: u32,
    /// The same for weeks
    #[arg(long = "keep-weekly", value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) weekly: u32,
    /// The same for months
    #[arg(long = "keep-monthly", value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) monthly: u32,
    /// The same for years
    #[arg(long = "keep-yearly", value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) yearly: u32,
    /// Keep those that are at most so much older than the newest
    #[arg(long = "keep-within", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) within: Option<Duration>,
    /// Keep those with this tag; may be repeated
    #[arg(long = "keep-tag", value_name = "TAG")]
    pub(crate) tags: Vec<String>,
}

impl Keep {
    /// The policy. `None` if nothing was given.
    pub(super) fn policy(&self) -> Option<Policy> {
        let policy = Policy {
            last: self.last,
            hourly: self.hourly,
            daily: self.daily,
            weekly: self.weekly,
            monthly: self.monthly,
            yearly: self.yearly,
            within: self.within,
            tags: self.tags.iter().cloned().collect(),
        };
        (policy != Policy::default()).then_some(policy)
    }
}
