// SPDX-License-Identifier: GPL-2.0-or-later
//! The published JSON Schemas, to which what the programs print of real regions, guests and stores is held.

use std::sync::OnceLock;

use jsonschema::{Validator, validator_for};
use serde_json::{Value, from_str};

use crate::failure::{Outcome, ensure};

/// A schema of `Documentation/schema`.
pub(crate) struct Schema {
    text: &'static str,
    validator: OnceLock<Validator>,
}

macro_rules! schema {
    ($name:literal) => {
        Schema {
            text: include_str!(concat!("../../../../Documentation/schema/", $name, ".schema.json")),
            validator: OnceLock::new(),
        }
    };
}

/// What `vmemd` prints.
pub(crate) static VMEMD: Schema = schema!("vmemd");
/// What `vmemctl checkpoint` prints.
pub(crate) static CHECKPOINT: Schema = schema!("vmemctl-checkpoint");
/// What `vmemctl dirty-rate` prints.
pub(crate) static DIRTY_RATE: Schema = schema!("vmemctl-dirty-rate");
/// What `vmemctl region` prints.
pub(crate) static REGION: Schema = schema!("vmemctl-region");

impl Schema {
    /// Fails unless all whole lines of JSON in this output are as the schema says. Lines for people are passed over.
    pub(crate) fn check(&self, output: &str) -> Outcome {
        for line in output.lines().filter(|line| line.starts_with('{') && line.ends_with('}')) {
            let value: Value = from_str(line)?;
            ensure!(self.validator()?.is_valid(&value), "the schema does not allow {line}");
        }
        Ok(())
    }

    fn validator(&self) -> Outcome<&Validator> {
        if self.validator.get().is_none() {
            let _ = self.validator.set(validator_for(&from_str(self.text)?)?);
        }
        Ok(self.validator.get().ok_or("no validator")?)
    }
}
