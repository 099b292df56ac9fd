// SPDX-License-Identifier: GPL-2.0-or-later
//! The guest's file systems around the instant of one checkpoint.

use std::cell::RefCell;

use vmem_store::GuestName;

use crate::error::Error;
use crate::freeze::{Freezing, Frozen, Options};

/// Freezes the guest's file systems as late as can be, and thaws them as soon as the guest runs: also by its drop, whatever happens.
pub(crate) struct Freezer<'a> {
    agent: Option<&'a Options>,
    guest: &'a GuestName,
    frozen: RefCell<Option<Frozen>>,
    pub(crate) freezing: RefCell<Freezing>,
}

impl<'a> Freezer<'a> {
    pub(crate) fn new(agent: Option<&'a Options>, guest: &'a GuestName) -> Self {
        Self {
            agent,
            guest,
            frozen: RefCell::new(None),
            freezing: RefCell::default(),
        }
    }

    pub(crate) fn freeze(&self, runs: bool) -> Result<(), Error> {
        let Some(agent) = self.agent else { return Ok(()) };
        match Frozen::begin(agent, runs)? {
            Ok(begun) => {
                self.freezing.borrow_mut().frozen = begun.count();
                *self.frozen.borrow_mut() = Some(begun);
            }
            Err(why) => self.freezing.borrow_mut().why_not = Some(why),
        }
        Ok(())
    }

    pub(crate) fn thaw(&self) {
        let thawed = self.frozen.borrow_mut().as_mut().map(Frozen::thaw);
        match thawed {
            None => {}
            Some(Ok(time)) => self.freezing.borrow_mut().time = Some(time),
            Some(Err(error)) => tracing::error!("guest {}: {}", self.guest, vmem_cli::chain(&error)),
        }
    }
}
