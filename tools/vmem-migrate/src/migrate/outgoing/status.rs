// SPDX-License-Identifier: GPL-2.0-or-later
//! Where the move stands, for other commands.

use vmem_cli::chain;
use vmem_control::{Migration, MigrationPhase};

use super::OutgoingMigration;
use crate::source::State;

impl OutgoingMigration {
    fn phase(&self) -> MigrationPhase {
        match self.owner.state() {
            State::Offering => MigrationPhase::Preparing,
            State::Copying => MigrationPhase::Rounds,
            State::Sending | State::Saving | State::Stopped | State::Committing => MigrationPhase::Switching,
            State::Committed | State::Undecided => MigrationPhase::Committed,
            State::Away | State::Unfinished => MigrationPhase::Postcopy,
            State::Reclaiming | State::Resuming | State::AtSource | State::Stranded => MigrationPhase::Returning,
            State::Parting | State::Moved => MigrationPhase::Ended,
        }
    }

    /// Publishes where the move stands, if it is time, and keeps a limit of the bandwidth that was set meanwhile.
    pub(super) fn publish_status(&mut self) {
        if let Some(bandwidth) = self.control.take_bandwidth() {
            self.keep_bandwidth(bandwidth);
        }
        let phase = self.phase();
        if !self.control.is_due(phase) {
            return;
        }
        let committed = matches!(
            phase,
            MigrationPhase::Committed | MigrationPhase::Postcopy | MigrationPhase::Ended
        );
        let standing = self.standing().cloned();
        let arrived = self.report.arrived();
        let left = match &standing {
            Some(rounds) => Some(rounds.left_bytes),
            None => arrived.map(|arrived| arrived.size.saturating_sub(arrived.present)),
        };
        let bytes = standing.as_ref().map_or(0, |rounds| rounds.bytes);
        let bytes = arrived.map_or(bytes, |arrived| {
            bytes.saturating_add(arrived.present).saturating_add(arrived.staged)
        });
        let migration = Migration {
            guest: self.record.guest.clone(),
            to: self.record.to.clone(),
            phase,
            committed,
            mode: self.mode().to_owned(),
            memory_bytes: arrived
                .map(|arrived| arrived.size)
                .or(standing.as_ref().map(|rounds| rounds.memory_bytes)),
            left_bytes: left,
            bytes_per_second: arrived.and_then(|arrived| arrived.rate).filter(|_| standing.is_none()),
            rounds: standing,
            downtime_ms: self
                .report
                .downtime()
                .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            ..Migration::default()
        };
        self.control.publish(migration, bytes);
    }

    /// A vmemd that is started later, also by `recover`, keeps to the limit, too.
    fn keep_bandwidth(&mut self, bandwidth: u64) {
        self.export.limit_bandwidth(bandwidth);
        if !self.export.arguments().is_empty() {
            self.record.vmemd = self.export.arguments().to_vec();
            if let Err(error) = self.state_dir.write(&self.record) {
                self.report.note(&format!(
                    "'vmemctl recover' would not know the limit of the bandwidth: {}",
                    chain(&error)
                ));
            }
        }
    }
}
