// SPDX-License-Identifier: GPL-2.0-or-later
//! What happens to a guest whose missing pages will never arrive.

use vmem::Control;
use vmem_qemu::COMMAND_LIMIT;

use super::missing;
use super::pause::{News, Pauser};
use crate::error::{Cause, Error};
use crate::options::OnLost;
use crate::record::StateDir;

/// The file whose existence records that the source came back with other memory.
const OTHER_MEMORY: &str = "other-memory";

/// Whether the source has come back with other memory. The missing pages are then lost.
pub(super) fn is_lost(state_dir: &StateDir) -> bool {
    state_dir.path(OTHER_MEMORY).exists()
}

/// A guest that has lost memory.
pub(super) struct Loss<'a> {
    pub(super) regions: &'a [String],
    pub(super) state_dir: &'a StateDir,
    pub(super) pauser: &'a Pauser,
    pub(super) control: &'a Control,
    pub(super) on_lost: OnLost,
}

impl Loss<'_> {
    /// The source no longer has the guest's memory. A vmemd that starts later would not know that and would mix two memories, so a file
    /// records that no vmemd may start.
    pub(super) fn of_other_memory(&self, why: &str) -> Error {
        if let Err(error) = std::fs::write(self.state_dir.path(OTHER_MEMORY), "") {
            return Error::Lost(Cause::call(why)(error));
        }
        if self.on_lost == OnLost::Sigbus {
            return self.of_source(why);
        }
        self.pauser.source_lost();
        let paused = loop {
            match self.pauser.news_within(2 * COMMAND_LIMIT) {
                Some(News::Note(text)) => break text,
                Some(News::Restored) => {}
                Some(News::Gone | News::Finished) => break "QEMU has ended".to_owned(),
                None => break "QEMU does not answer".to_owned(),
            }
        };
        let missing = missing::list(self.regions, self.state_dir);
        Error::Lost(Cause::other(format!("{why}; {missing}; {paused}")))
    }

    /// The source is lost, and the missing pages are marked unreadable.
    pub(super) fn of_source(&self, why: &str) -> Error {
        let missing = missing::list(self.regions, self.state_dir);
        if let Err(failure) = missing::poison(self.regions, self.control) {
            return failure;
        }
        Error::Lost(Cause::other(format!("{why}; {missing}; a touch of them is SIGBUS now")))
    }

    /// The source cannot read some pages.
    pub(super) fn of_pages(&self) -> Error {
        Error::Lost(Cause::other(missing::list(self.regions, self.state_dir)))
    }
}
