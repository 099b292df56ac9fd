// SPDX-License-Identifier: GPL-2.0-or-later
//! The disks of a guest, and overlays over all of them at one instant.

use std::path::Path;

use serde_json::{Value, json};

use crate::connection::Qmp;
use crate::error::Error;

/// A disk that the guest can write to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disk {
    /// A name that stays when the disk gets an overlay: that of its `-drive`, or of its device; the path of its device if that has none.
    pub name: String,
    /// The node of QEMU that has its contents.
    pub node: String,
    /// The file of that node, as QEMU names it.
    pub file: String,
    /// The format of the file, such as `qcow2`.
    pub format: String,
    /// How many files lie below that file: overlays, and the one without a backing file.
    pub below: u64,
}

/// The disks that the guest can write to.
///
/// # Errors
///
/// Those of [`Qmp::execute`]; [`Error::Reply`].
pub fn writable(qmp: &mut Qmp) -> Result<Vec<Disk>, Error> {
    const COMMAND: &str = "query-block";
    let answer = qmp.execute(COMMAND, json!({}))?;
    let mut found = Vec::new();
    for block in answer.as_array().into_iter().flatten() {
        let Some(inserted) = block.get("inserted").filter(|one| one["ro"] != json!(true)) else {
            continue;
        };
        let text = |value: &Value, field: &'static str| {
            let text = value.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
            text.map(str::to_owned).ok_or(Error::Reply { command: COMMAND, field })
        };
        let name = text(block, "device").or_else(|_| text(block, "qdev").map(|path| device(&path).to_owned()))?;
        found.push(Disk {
            name,
            node: text(inserted, "node-name")?,
            file: text(inserted, "file")?,
            format: text(inserted, "drv")?,
            below: inserted["backing_file_depth"].as_u64().unwrap_or(0),
        });
    }
    Ok(found)
}

/// The ID in the path of a device, or the path if it has none.
fn device(path: &str) -> &str {
    let id = path.strip_prefix("/machine/peripheral/");
    id.map_or(path, |id| id.split('/').next().unwrap_or(id))
}

/// What a disk gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Overlay<'a> {
    /// The node that becomes its base, which is not written to any more.
    pub base: &'a str,
    /// The new file, in the format qcow2, which QEMU makes.
    pub file: &'a Path,
    /// The name of its node.
    pub node: &'a str,
}

/// Makes overlays over several disks, all of them or none (QMP `transaction`).
///
/// # Errors
///
/// After [`Error::Refused`], none has one, and files may have been made. After others, they may have.
pub fn add_overlays(qmp: &mut Qmp, overlays: &[Overlay<'_>]) -> Result<(), Error> {
    let action = |overlay: &Overlay<'_>| {
        json!({"type": "blockdev-snapshot-sync", "data": {
            "node-name": overlay.base,
            "snapshot-file": overlay.file,
            "snapshot-node-name": overlay.node,
            "format": "qcow2",
            "mode": "absolute-paths",
        }})
    };
    let actions: Vec<Value> = overlays.iter().map(action).collect();
    qmp.execute("transaction", json!({"actions": actions})).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::tests::{LIMIT, qemu};

    #[test]
    fn writable_disks_have_names_that_stay() {
        // From QEMU 10.0.13, shortened.
        let (socket, _thread) = qemu(&[concat!(
            r##"{"return": [{"device": "da", "qdev": "/machine/peripheral-anon/device[1]/virtio-backend", "##,
            r##""inserted": {"file": "/a.img", "drv": "raw", "node-name": "#block276", "ro": false}}, "##,
            r##"{"device": "", "qdev": "/machine/peripheral/vb/virtio-backend", "##,
            r##""inserted": {"file": "/b.img", "drv": "qcow2", "node-name": "nb", "ro": false, "backing_file_depth": 7}}, "##,
            r##"{"device": "", "qdev": "/machine/peripheral-anon/device[2]", "##,
            r##""inserted": {"file": "/c.img", "drv": "qcow2", "node-name": "nc", "ro": false}}, "##,
            r##"{"device": "cd", "qdev": "cd"}, "##,
            r##"{"device": "ro", "inserted": {"file": "/d.img", "drv": "raw", "node-name": "nd", "ro": true}}]}"##,
        )]);
        let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
        let disks = writable(&mut qmp).expect("disks");
        let names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
        assert_eq!(names, ["da", "vb", "/machine/peripheral-anon/device[2]"]);
        let nb = Disk {
            name: "vb".to_owned(),
            node: "nb".to_owned(),
            file: "/b.img".to_owned(),
            format: "qcow2".to_owned(),
            below: 7,
        };
        assert_eq!(disks[1], nb);
    }

    #[test]
    fn overlays_are_one_transaction() {
        let (socket, thread) = qemu(&[r#"{"return": {}}"#]);
        let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
        let overlay = |base, file, node| Overlay {
            base,
            file: Path::new(file),
            node,
        };
        add_overlays(&mut qmp, &[overlay("na", "/o/a", "oa"), overlay("nb", "/o/b", "ob")]).expect("overlays");
        drop(qmp);
        let commands = thread.join().expect("no panic");
        let actions = &commands[1]["arguments"]["actions"];
        assert_eq!(commands[1]["execute"], json!("transaction"));
        assert_eq!(actions.as_array().map(Vec::len), Some(2));
        assert_eq!(
            (
                &actions[1]["type"],
                &actions[1]["data"]["node-name"],
                &actions[1]["data"]["snapshot-file"]
            ),
            (&json!("blockdev-snapshot-sync"), &json!("nb"), &json!("/o/b"))
        );
    }
}
