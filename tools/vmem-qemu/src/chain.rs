// SPDX-License-Identifier: GPL-2.0
//! The files that a disk consists of: overlays, each with the file below it as its backing file; and jobs that merge some of them.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::connection::Qmp;
use crate::error::Error;

/// How often a job is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// A file of a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layer {
    /// The file, as QEMU names it.
    pub file: String,
    /// The node that has it. `None` if several have.
    pub node: Option<String>,
}

/// A disk that the guest can write to, with its files: the first is written to, and each has the next one as its backing file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// The name of the disk: that of its `-drive`, or of its device.
    pub disk: String,
    /// The files.
    pub layers: Vec<Layer>,
}

/// The disks that the guest can write to.
///
/// # Errors
///
/// Those of [`Qmp::execute`].
pub fn chains(qmp: &mut Qmp) -> Result<Vec<Chain>, Error> {
    let named = qmp.execute("query-named-block-nodes", json!({"flat": true}))?;
    let mut nodes: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let text = |value: &Value, field: &str| value[field].as_str().map(str::to_owned);
    for node in named.as_array().into_iter().flatten() {
        if let (Some(file), Some(format), Some(name)) = (text(node, "file"), text(node, "drv"), text(node, "node-name")) {
            nodes.entry((file, format)).or_default().push(name);
        }
    }
    let answer = qmp.execute("query-block", json!({}))?;
    let mut chains = Vec::new();
    for block in answer.as_array().into_iter().flatten() {
        let inserted = &block["inserted"];
        if inserted.is_null() || inserted["ro"] == json!(true) {
            continue;
        }
        let name = text(block, "device").filter(|name| !name.is_empty());
        let mut layers = Vec::new();
        let mut image = &inserted["image"];
        while let (Some(file), Some(format)) = (text(image, "filename"), text(image, "format")) {
            let node = nodes.get(&(file.clone(), format)).and_then(|found| match found.as_slice() {
                [node] => Some(node.clone()),
                _ => None,
            });
            layers.push(Layer { file, node });
            image = &image["backing-image"];
        }
        chains.push(Chain {
            disk: name.or_else(|| text(block, "qdev")).unwrap_or_default(),
            layers,
        });
    }
    Ok(chains)
}

/// With a job of this name: merges into the file of `node` those that lie between it and `base`, which becomes its backing file (QMP `block-stream`). Other files are
/// not written to. Ends early if `stop` says so: then nothing has changed but the contents of that file, which are the same for who reads
/// the disk. `progress` hears how many bytes of how many are copied.
///
/// # Errors
///
/// [`Error::Refused`]: QEMU refuses the job, or the job has failed. Those of [`Qmp::execute`]: the job may go on then.
pub fn merge(
    qmp: &mut Qmp,
    id: &str,
    node: &str,
    base: &str,
    stop: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), Error> {
    const COMMAND: &str = "block-stream";
    qmp.execute(
        COMMAND,
        json!({"job-id": id, "device": node, "base-node": base, "auto-dismiss": false}),
    )?;
    let mut is_stopped = false;
    loop {
        let jobs = qmp.execute("query-jobs", json!({}))?;
        let job = jobs.as_array().into_iter().flatten().find(|job| job["id"] == json!(id));
        let Some(job) = job else {
            return Ok(());
        };
        if job["status"] == json!("concluded") {
            let reason = job["error"].as_str().map(str::to_owned);
            qmp.execute("job-dismiss", json!({"id": id}))?;
            return match reason {
                None => Ok(()),
                Some(reason) => Err(Error::Refused {
                    command: COMMAND.to_owned(),
                    reason,
                }),
            };
        }
        if let (Some(done), Some(all)) = (job["current-progress"].as_u64(), job["total-progress"].as_u64()) {
            progress(done, all);
        }
        if stop() && !is_stopped {
            is_stopped = true;
            qmp.execute("job-cancel", json!({"id": id}))?;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::tests::{LIMIT, qemu};

    #[test]
    fn chain_goes_from_the_file_that_is_written_to_down_to_the_last() {
        // From QEMU 10.0.13, shortened.
        let (socket, _thread) = qemu(&[
            concat!(
                r##"{"return": [{"node-name": "n2", "drv": "qcow2", "file": "/g-2.qcow2"}, "##,
                r##"{"node-name": "#block9", "drv": "file", "file": "/g-2.qcow2"}, "##,
                r##"{"node-name": "n1", "drv": "qcow2", "file": "/g-1.qcow2"}, "##,
                r##"{"node-name": "a", "drv": "raw", "file": "/base.raw"}, "##,
                r##"{"node-name": "b", "drv": "raw", "file": "/base.raw"}]}"##
            ),
            concat!(
                r##"{"return": [{"device": "d0", "inserted": {"ro": false, "image": {"filename": "/g-2.qcow2", "format": "qcow2", "##,
                r##""backing-image": {"filename": "/g-1.qcow2", "format": "qcow2", "##,
                r##""backing-image": {"filename": "/base.raw", "format": "raw"}}}}}, "##,
                r##"{"device": "cd"}, {"device": "ro", "inserted": {"ro": true, "image": {"filename": "/x", "format": "raw"}}}]}"##
            ),
        ]);
        let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
        let chains = chains(&mut qmp).expect("chains");
        assert_eq!(chains.len(), 1);
        let layers: Vec<_> = chains[0]
            .layers
            .iter()
            .map(|layer| (layer.file.as_str(), layer.node.as_deref()))
            .collect();
        assert_eq!(
            layers,
            [("/g-2.qcow2", Some("n2")), ("/g-1.qcow2", Some("n1")), ("/base.raw", None)]
        );
    }

    #[test]
    fn job_that_fails_is_an_error_and_is_dismissed() {
        let (socket, thread) = qemu(&[
            r#"{"return": {}}"#,
            r#"{"return": [{"id": "j", "status": "running", "current-progress": 3, "total-progress": 9}]}"#,
            r#"{"return": [{"id": "j", "status": "concluded", "error": "No space left on device"}]}"#,
            r#"{"return": {}}"#,
        ]);
        let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
        let mut seen = Vec::new();
        let failed = merge(&mut qmp, "j", "n5", "n1", &|| false, &mut |done, all| seen.push((done, all)));
        let text = failed.expect_err("a failure").to_string();
        assert!(text.contains("No space left"), "{text}");
        assert_eq!(seen, [(3, 9)]);
        drop(qmp);
        let commands = thread.join().expect("no panic");
        assert_eq!(commands[1]["arguments"]["device"], json!("n5"));
        assert_eq!(commands[1]["arguments"]["base-node"], json!("n1"));
        assert_eq!(
            commands.last().map(|last| last["execute"].clone()),
            Some(json!("job-dismiss"))
        );
    }
}
