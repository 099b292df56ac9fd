// SPDX-License-Identifier: GPL-2.0-or-later
//! The options that name a store and its key.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use vmem_store::objects::Waiting;
use vmem_store::{Error, Store};
use vmem_store_source::{KeyOptions, Location};

/// A store.
#[derive(Debug, Args)]
pub(crate) struct InStore {
    /// The store: a directory, or s3://BUCKET/PREFIX
    #[arg(long, value_name = "STORE")]
    pub(crate) store: Location,
    #[command(flatten)]
    pub(crate) key: KeyOptions,
}

impl InStore {
    /// Opens the store.
    pub(crate) fn open(&self) -> Result<Store, Error> {
        self.store.open(self.key.read()?)
    }

    /// Opens the store; from then on, it may be away for so long.
    pub(crate) fn open_patiently(&self, patience: Duration, waiting: Arc<dyn Waiting>) -> Result<Store, Error> {
        self.store.open_patiently(self.key.read()?, patience, waiting)
    }
}
