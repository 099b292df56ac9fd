// SPDX-License-Identifier: GPL-2.0-or-later
//! The messages as the vmemctl of commit f06860b understands them: its types, which are not changed any more.

use serde::Deserialize;
use serde_json::Value;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Purpose {
    Migrate,
    State,
    Recover,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(crate) struct Backend {
    pub(crate) id: String,
    pub(crate) bytes: u64,
    pub(crate) export: String,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(crate) enum FromSource {
    Hello {
        version: u32,
        session: String,
        purpose: Purpose,
    },
    Offer {
        guest: String,
        #[serde(default)]
        key: Option<String>,
        memory: Vec<Backend>,
        pages: String,
        release: bool,
    },
    Start,
    Commit {
        run: bool,
    },
    Abort {
        reason: String,
    },
    Heard,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(crate) enum FromDestination {
    Welcome,
    Refuse { reason: String },
    Ready,
    Running,
    Failed { reason: String },
    Gone { reason: String },
    Pages { line: Value },
    Complete { summary: Value },
    Incomplete { reason: String },
}
