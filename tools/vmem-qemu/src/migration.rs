// SPDX-License-Identifier: GPL-2.0-or-later
//! QEMU's migration: its state, and its settings.

use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::connection::{COMMAND_LIMIT, Qmp};
use crate::error::Error;

/// The state of a migration: "none", "active", "completed", "failed", ..., and the reason if it failed.
///
/// # Errors
///
/// Those of [`Qmp::execute`].
pub fn status(qmp: &mut Qmp) -> Result<(String, Option<String>), Error> {
    let reply = qmp.execute("query-migrate", json!({}))?;
    let status = reply.get("status").and_then(Value::as_str).unwrap_or("none").to_owned();
    let reason = reply.get("error-desc").and_then(Value::as_str).map(str::to_owned);
    Ok((status, reason))
}

/// Cancels the migration, if there is one, and waits until it is over. QEMU then continues a guest that the migration has stopped, and leaves
/// one paused that was.
///
/// # Errors
///
/// Those of [`Qmp::execute`]; [`Error::NotCancelled`].
pub fn cancel(qmp: &mut Qmp) -> Result<(), Error> {
    // The command fails if there is no migration.
    let _ = qmp.execute("migrate_cancel", json!({}));
    let deadline = Instant::now() + COMMAND_LIMIT;
    loop {
        let (migration, _) = status(qmp)?;
        if matches!(migration.as_str(), "none" | "completed" | "failed" | "cancelled") {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::NotCancelled(migration));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The settings that a migration over vmem changes in QEMU, to be restored after it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Capabilities that were off.
    off: Vec<String>,
    /// The earlier bandwidth limit in bytes a second.
    bandwidth: Option<u64>,
}

impl Settings {
    /// Reads the present settings, for a migration that needs these capabilities.
    ///
    /// # Errors
    ///
    /// Those of [`Qmp::execute`].
    pub fn of(qmp: &mut Qmp, capabilities: &[&str]) -> Result<Self, Error> {
        let now = qmp.execute("query-migrate-capabilities", json!({}))?;
        let is_on = |name: &str| {
            let mut on = now.as_array().into_iter().flatten().filter(|one| one["state"] == json!(true));
            on.any(|one| one["capability"] == json!(name))
        };
        let off = capabilities.iter().filter(|name| !is_on(name));
        let parameters = qmp.execute("query-migrate-parameters", json!({}))?;
        Ok(Self {
            off: off.map(|name| (*name).to_owned()).collect(),
            bandwidth: parameters.get("max-bandwidth").and_then(Value::as_u64),
        })
    }

    /// Switches the capabilities on, and removes the bandwidth limit.
    ///
    /// # Errors
    ///
    /// Those of [`Qmp::execute`].
    pub fn change(&self, qmp: &mut Qmp) -> Result<(), Error> {
        // QEMU sends only the devices' memory, which is small. A bandwidth limit would lengthen a move, because the guest stops only once
        // that memory is at the destination.
        const UNLIMITED: u64 = 1 << 40;
        set(qmp, &self.off, true)?;
        qmp.execute("migrate-set-parameters", json!({"max-bandwidth": UNLIMITED}))?;
        Ok(())
    }

    /// Restores the settings, each of them also if another one cannot be restored. Another client may use QEMU's migration next, and with these
    /// capabilities its stream would lack the memory: they come first.
    ///
    /// # Errors
    ///
    /// Those of [`Qmp::execute`]; the first one.
    pub fn restore(&self, qmp: &mut Qmp) -> Result<(), Error> {
        let capabilities = set(qmp, &self.off, false);
        let bandwidth = self.bandwidth.map_or(Ok(()), |bytes| {
            qmp.execute("migrate-set-parameters", json!({"max-bandwidth": bytes}))
                .map(drop)
        });
        capabilities.and(bandwidth)
    }
}

fn set(qmp: &mut Qmp, capabilities: &[String], state: bool) -> Result<(), Error> {
    let list: Vec<Value> = capabilities
        .iter()
        .map(|name| json!({"capability": name, "state": state}))
        .collect();
    qmp.execute("migrate-set-capabilities", json!({"capabilities": list}))?;
    Ok(())
}
