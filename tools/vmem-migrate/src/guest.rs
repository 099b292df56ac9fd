// SPDX-License-Identifier: GPL-2.0
//! A guest as its QEMU describes it.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vmem_qmp::Qmp;

use crate::key::Key;
use crate::process::Process;

/// How long QEMU may take for a command.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A guest that cannot be moved, and why.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    #[error(transparent)]
    Qmp(#[from] vmem_qmp::Error),
    #[error(
        "the guest has {total} bytes of memory, of which {shared} are in files that a second process can map; all must be: \
         -object memory-backend-file,...,share=on and -machine memory-backend=... (or -numa node,memdev=...)"
    )]
    NotShared { total: u64, shared: u64 },
    #[error("the guest is {status}; it can be moved when it is running or paused")]
    Status { status: String },
    /// The obstacles, and how to remove them.
    #[error("QEMU cannot migrate the guest in this way: {0}")]
    Obstacle(String),
    #[error("QEMU's reply to {command} has no {field}")]
    Reply { command: &'static str, field: &'static str },
}

/// Memory of a guest that other processes can map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Memory {
    /// Name of the backend.
    pub(crate) id: String,
    /// Size in bytes.
    pub(crate) bytes: u64,
    /// The path at which it can be opened.
    pub(crate) path: PathBuf,
}

fn text(value: &Value, command: &'static str, field: &'static str) -> Result<String, GuestError> {
    let found = value.get(field).and_then(Value::as_str).map(str::to_owned);
    found.ok_or(GuestError::Reply { command, field })
}

/// The guest's name, or "guest".
pub(crate) fn name(qmp: &mut Qmp) -> Result<String, GuestError> {
    Ok(own_name(qmp)?.unwrap_or_else(|| "guest".to_owned()))
}

/// The name that the user has given to the guest.
fn own_name(qmp: &mut Qmp) -> Result<Option<String>, GuestError> {
    let reply = qmp.execute("query-name", json!({}))?;
    let name = reply.get("name").and_then(Value::as_str);
    Ok(name.filter(|name| !name.is_empty()).map(str::to_owned))
}

/// What identifies the guest on this host: its UUID, or its name, or else the process of its QEMU.
pub(crate) fn key(qmp: &mut Qmp) -> Result<Key, GuestError> {
    /// QEMU's answer for a guest without a UUID.
    const NONE: &str = "00000000-0000-0000-0000-000000000000";
    let reply = qmp.execute("query-uuid", json!({}))?;
    let uuid = reply.get("UUID").and_then(Value::as_str).filter(|uuid| *uuid != NONE);
    let name = own_name(qmp)?;
    let process = qmp.peer_pid()?;
    Ok(Key::new(uuid, name.as_deref(), || {
        let start = Process::open(process).and_then(|process| process.identity());
        // Without its identity, a later command could not tell whether the process is the same one, so it does not find the guest by this
        // key.
        start.map_or_else(|_| format!("qemu={process}"), |identity| format!("qemu={identity}"))
    }))
}

/// The run state: "running", "paused", "inmigrate", ...
pub(crate) fn status(qmp: &mut Qmp) -> Result<String, GuestError> {
    text(&qmp.execute("query-status", json!({}))?, "query-status", "status")
}

/// The state of a migration: "none", "active", "completed", "failed", ..., and the reason if it failed.
pub(crate) fn migration(qmp: &mut Qmp) -> Result<(String, Option<String>), GuestError> {
    let reply = qmp.execute("query-migrate", json!({}))?;
    let status = reply.get("status").and_then(Value::as_str).unwrap_or("none").to_owned();
    let reason = reply.get("error-desc").and_then(Value::as_str).map(str::to_owned);
    Ok((status, reason))
}

/// The settings that a move changes in QEMU, so that it can restore them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Capabilities that were off.
    off: Vec<String>,
    /// The earlier bandwidth limit in bytes a second.
    bandwidth: Option<u64>,
}

impl Settings {
    /// Reads the present settings, for a migration that needs these capabilities.
    pub(crate) fn of(qmp: &mut Qmp, capabilities: &[&str]) -> Result<Self, GuestError> {
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
    pub(crate) fn change(&self, qmp: &mut Qmp) -> Result<(), GuestError> {
        // QEMU sends only the devices' memory, which is small. A bandwidth limit would lengthen the move, because the guest stops only once
        // that memory is at the destination.
        const UNLIMITED: u64 = 1 << 40;
        set(qmp, &self.off, true)?;
        qmp.execute("migrate-set-parameters", json!({"max-bandwidth": UNLIMITED}))?;
        Ok(())
    }

    /// Restores the settings. Another client may use QEMU's migration next, and with the settings of the move its stream would lack the
    /// memory.
    pub(crate) fn restore(&self, qmp: &mut Qmp) -> Result<(), GuestError> {
        if let Some(bytes) = self.bandwidth {
            qmp.execute("migrate-set-parameters", json!({"max-bandwidth": bytes}))?;
        }
        set(qmp, &self.off, false)
    }
}

fn set(qmp: &mut Qmp, capabilities: &[String], state: bool) -> Result<(), GuestError> {
    let list: Vec<Value> = capabilities
        .iter()
        .map(|name| json!({"capability": name, "state": state}))
        .collect();
    qmp.execute("migrate-set-capabilities", json!({"capabilities": list}))?;
    Ok(())
}

/// All memory of the guest. It is an error if another process cannot map all of it.
pub(crate) fn memory(qmp: &mut Qmp) -> Result<Vec<Memory>, GuestError> {
    let objects = qmp.execute("qom-list", json!({"path": "/objects"}))?;
    let mut found = Vec::new();
    for object in objects.as_array().into_iter().flatten() {
        let (id, kind) = (text(object, "qom-list", "name")?, text(object, "qom-list", "type")?);
        // QEMU leaves memory out of its stream only if the memory is a file with a name. It would send all memory of a memfd.
        if kind != "child<memory-backend-file>" {
            continue;
        }
        let mut get = |property: &str| qmp.execute("qom-get", json!({"path": format!("/objects/{id}"), "property": property}));
        if get("share")? != json!(true) {
            continue;
        }
        let bytes = get("size")?.as_u64().ok_or(GuestError::Reply {
            command: "qom-get",
            field: "size",
        })?;
        let path = PathBuf::from(get("mem-path")?.as_str().unwrap_or_default());
        found.push(Memory { id, bytes, path });
    }
    let summary = qmp.execute("query-memory-size-summary", json!({}))?;
    let part = |field| summary.get(field).and_then(Value::as_u64).unwrap_or(0);
    let total = part("base-memory") + part("plugged-memory");
    let shared = found.iter().map(|memory| memory.bytes).sum();
    if shared == total && total > 0 {
        Ok(found)
    } else {
        Err(GuestError::NotShared { total, shared })
    }
}
