// SPDX-License-Identifier: GPL-2.0
//! The options that name a store and its key.

use clap::Args;
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
}
