// SPDX-License-Identifier: GPL-2.0-or-later
//! Waits for a store that is away while checkpoints are made, until a signal.

use vmem_cli::Signals;
use vmem_migrate::report;
use vmem_store::objects::{Outage, Waiting};

use super::line::CheckpointLine;
use super::note;

/// Says that the store is away, and waits until there is a signal.
pub(super) struct Patience {
    pub(super) signals: Signals,
    pub(super) json: bool,
}

impl Waiting for Patience {
    fn notice(&self, outage: Outage<'_>) {
        match outage {
            Outage::Begins(error) if self.json => {
                report::print(&CheckpointLine::StoreAway {
                    error: error.to_string(),
                });
            }
            Outage::Begins(error) => note(false, &format!("the store is away: {error}")),
            Outage::Ends(after) if self.json => {
                report::print(&CheckpointLine::StoreBack {
                    seconds: after.as_secs_f64(),
                });
            }
            Outage::Ends(after) => note(false, &format!("the store is back after {:.1} s", after.as_secs_f64())),
        }
    }

    fn is_over(&self) -> bool {
        self.signals.check().is_err()
    }
}
