// SPDX-License-Identifier: GPL-2.0-or-later
//! Removes the checkpoints that a policy does not keep.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::lease;
use crate::names::GuestName;
use crate::removal::{Kept, Outcome};
use crate::retention::{Decision, Item, PROTECTED, Policy, READ};
use crate::store::Store;

impl Store {
    /// What becomes of the checkpoints of a guest by this policy; the newest first. They are removed, unless this is a dry run. What only
    /// they refer to, the garbage collection takes later.
    ///
    /// # Errors
    ///
    /// [`Error::Policy`] if the policy has no rule; and those of the store: then some may have been removed already.
    pub fn prune(&self, guest: &GuestName, policy: &Policy, dry_run: bool) -> Result<Vec<Decision>, Error> {
        let read = lease::read(&self.base)?.read;
        let listing = self.base.listing(guest)?;
        let mut items = Vec::with_capacity(listing.manifests.len());
        for (sequence, name) in &listing.manifests {
            let manifest = match self.base.read_manifest(name) {
                // It was removed, or rewritten, since it was listed: somebody else's business.
                Err(error) if error.is_not_found() => continue,
                manifest => manifest?,
            };
            items.push(Item {
                sequence: *sequence,
                created: manifest.created,
                tags: manifest.tags,
                protected: listing.protected.contains(sequence),
                read: read.contains_key(&name.checkpoint),
            });
        }
        let mut decisions = policy.decide(&items)?;
        if !dry_run {
            let removed = decisions.iter().filter(|decision| !decision.is_kept());
            let removed: Vec<u64> = removed.map(|decision| decision.sequence).collect();
            let outcomes: BTreeMap<u64, Outcome> = self.remove_all(guest, &removed, Kept::ByAll)?.into_iter().collect();
            // What has changed since they were listed.
            for decision in &mut decisions {
                match outcomes.get(&decision.sequence) {
                    Some(Outcome::Protected) => decision.reasons.push(PROTECTED.to_owned()),
                    Some(Outcome::Read(_)) => decision.reasons.push(READ.to_owned()),
                    Some(Outcome::Removed | Outcome::Gone) | None => {}
                }
            }
        }
        Ok(decisions)
    }
}
