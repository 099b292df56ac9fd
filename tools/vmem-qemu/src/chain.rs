// SPDX-License-Identifier: GPL-2.0-or-later
//! The files that a disk consists of: overlays, each with the file below it as its backing file; and jobs that merge some of them.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::connection::{COMMAND_LIMIT, Qmp};
use crate::error::Error;

/// How often a job is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How long a look at a job waits for QEMU, which another client may have.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

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

/// Files of a disk that are to be one.
#[derive(Clone, Copy, Debug)]
pub struct Merge<'a> {
    /// The name of the job.
    pub id: &'a str,
    /// The node of the file that gets the contents.
    pub node: &'a str,
    /// The node that becomes its backing file. Those between the two are not needed any more.
    pub base: &'a str,
}

impl Merge<'_> {
    const COMMAND: &'static str = "block-stream";

    /// Merges (QMP `block-stream`). Other files are not written to. Ends early if `stop` says so: then nothing has changed but the contents of
    /// the file of `node`, which are the same for who reads the disk. `progress` hears how many bytes of how many are copied.
    ///
    /// QEMU serves one client at a time, so each poll of the job has a connection of its own, by `connect` with a time limit, and others are served in between.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`]: QEMU refuses the job, or the job has failed, or another client has dismissed it. Those of [`Qmp::execute`] but
    /// [`Error::TimedOut`], with which the next poll tries again: the job may go on then.
    pub fn run(
        &self,
        connect: &mut dyn FnMut(Duration) -> Result<Qmp, Error>,
        stop: &dyn Fn() -> bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Error> {
        connect(COMMAND_LIMIT)?.execute(
            Self::COMMAND,
            json!({"job-id": self.id, "device": self.node, "base-node": self.base, "auto-dismiss": false}),
        )?;
        loop {
            match self.poll(connect, stop(), progress) {
                // Another client has the connection, or QEMU is busy.
                Ok(None) | Err(Error::TimedOut { .. }) => thread::sleep(POLL_INTERVAL),
                Ok(Some(())) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Looks at the job once. `None` if it goes on.
    fn poll(
        &self,
        connect: &mut dyn FnMut(Duration) -> Result<Qmp, Error>,
        is_stopped: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Option<()>, Error> {
        let refused = |reason: &str| Error::Refused {
            command: Self::COMMAND.to_owned(),
            reason: reason.to_owned(),
        };
        let mut qmp = connect(LOOK_LIMIT)?;
        let jobs = qmp.execute("query-jobs", json!({}))?;
        let job = jobs.as_array().into_iter().flatten().find(|job| job["id"] == json!(self.id));
        let job = job.ok_or_else(|| refused("another client has dismissed the job, and what came of it is not known"))?;
        if job["status"] == json!("concluded") {
            // What came of it is known; only its name would be left.
            let _ = qmp.execute("job-dismiss", json!({"id": self.id}));
            return job["error"].as_str().map_or(Ok(Some(())), |reason| Err(refused(reason)));
        }
        if let (Some(done), Some(all)) = (job["current-progress"].as_u64(), job["total-progress"].as_u64()) {
            progress(done, all);
        }
        if is_stopped {
            match qmp.execute("job-cancel", json!({"id": self.id})) {
                // It is about to end.
                Err(Error::Refused { .. }) => {}
                cancelled => drop(cancelled?),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::channel;
    use std::time::Instant;

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

    /// A QEMU that listens at a socket and serves one client after the other. It answers each command by `answer`.
    fn listening(answer: impl Fn(&Value) -> &'static str + Send + 'static) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("qmp");
        let listener = UnixListener::bind(&path).expect("a socket");
        thread::spawn(move || {
            for mut client in listener.incoming().map_while(Result::ok) {
                // The client may have given up before.
                let _ = writeln!(client, r#"{{"QMP": {{"version": {{}}, "capabilities": []}}}}"#);
                for line in BufReader::new(client.try_clone().expect("a socket"))
                    .lines()
                    .map_while(Result::ok)
                {
                    let command: Value = serde_json::from_str(&line).expect("JSON");
                    let answer = match command["execute"] == json!("qmp_capabilities") {
                        true => r#"{"return": {}}"#,
                        false => answer(&command),
                    };
                    // The client may be gone.
                    let _ = writeln!(client, "{answer}");
                }
            }
        });
        (directory, path)
    }

    const MERGE: Merge<'_> = Merge {
        id: "j",
        node: "n5",
        base: "n1",
    };

    #[test]
    fn other_client_is_served_while_a_job_goes_on() {
        let is_served = Arc::new(AtomicBool::new(false));
        let served = Arc::clone(&is_served);
        let (_directory, path) = listening(move |command| match command["execute"].as_str() {
            Some("query-status") => {
                served.store(true, Ordering::SeqCst);
                r#"{"return": {"status": "running"}}"#
            }
            Some("query-jobs") if served.load(Ordering::SeqCst) => r#"{"return": [{"id": "j", "status": "concluded"}]}"#,
            Some("query-jobs") => r#"{"return": [{"id": "j", "status": "running", "current-progress": 3, "total-progress": 9}]}"#,
            _ => r#"{"return": {}}"#,
        });
        let connect = |limit| Qmp::connect(&path, limit);
        let (has_begun, until) = (AtomicBool::new(false), Instant::now() + 2 * LIMIT);
        thread::scope(|scope| {
            let other = scope.spawn(|| {
                while !has_begun.load(Ordering::SeqCst) && Instant::now() < until {
                    thread::sleep(Duration::from_millis(1));
                }
                connect(LIMIT).and_then(|mut qmp| qmp.execute("query-status", json!({})))
            });
            let stop = || is_served.load(Ordering::SeqCst);
            let mut looked = |_, _| has_begun.store(true, Ordering::SeqCst);
            let mut connect = |_| match Instant::now() < until {
                true => connect(LIMIT),
                false => Err(Error::Closed),
            };
            let merged = MERGE.run(&mut connect, &stop, &mut looked);
            merged.expect("the end of the job");
            other.join().expect("no panic").expect("a status");
        });
    }

    #[test]
    fn qemu_that_another_client_has_is_asked_again() {
        let (_directory, path) = listening(|command| match command["execute"].as_str() {
            Some("query-jobs") => r#"{"return": [{"id": "j", "status": "concluded"}]}"#,
            _ => r#"{"return": {}}"#,
        });
        let (mut calls, mut other) = (0, None);
        let mut connect = |_| {
            calls += 1;
            match calls {
                2 => other = Some(Qmp::connect(&path, LIMIT)?),
                4 => drop(other.take()),
                _ => {}
            }
            // Only those that fail may be given up soon: QEMU is a thread of a busy machine.
            let limit = if matches!(calls, 2 | 3) {
                Duration::from_millis(50)
            } else {
                LIMIT
            };
            Qmp::connect(&path, limit)
        };
        MERGE
            .run(&mut connect, &|| false, &mut |_, _| ())
            .expect("the end of the job");
        assert_eq!(calls, 4);
    }

    #[test]
    fn job_that_fails_or_is_gone_is_an_error() {
        for (jobs, why) in [
            (
                r#"{"return": [{"id": "j", "status": "concluded", "error": "No space left on device"}]}"#,
                "No space left",
            ),
            (r#"{"return": []}"#, "another client has dismissed the job"),
        ] {
            let (sender, commands) = channel();
            let (_directory, path) = listening(move |command| {
                sender.send(command.clone()).expect("a test");
                match command["execute"] == json!("query-jobs") {
                    true => jobs,
                    false => r#"{"return": {}}"#,
                }
            });
            let failed = MERGE.run(&mut |_| Qmp::connect(&path, LIMIT), &|| false, &mut |_, _| ());
            let text = failed.expect_err("a failure").to_string();
            assert!(text.contains(why), "{text}");
            let commands: Vec<Value> = commands.try_iter().collect();
            assert_eq!(commands[0]["arguments"]["device"], json!("n5"));
            assert_eq!(commands[0]["arguments"]["base-node"], json!("n1"));
            assert_eq!(
                commands.iter().any(|command| command["execute"] == json!("job-dismiss")),
                jobs.contains("concluded")
            );
        }
    }

    #[test]
    fn job_is_cancelled_on_demand() {
        let (sender, commands) = channel();
        let (_directory, path) = listening(move |command| {
            sender.send(command["execute"].clone()).expect("a test");
            match command["execute"].as_str() {
                Some("query-jobs") => {
                    r#"{"return": [{"id": "j", "status": "running", "current-progress": 3, "total-progress": 9}]}"#
                }
                _ => r#"{"return": {}}"#,
            }
        });
        let (asked, mut seen) = (Cell::new(0), Vec::new());
        let stop = || {
            asked.set(asked.get() + 1);
            asked.get() > 1
        };
        let mut left = 4;
        let mut connect = |_| {
            left -= 1;
            // The fake job never ends.
            match left {
                0 => Err(Error::Closed),
                _ => Qmp::connect(&path, LIMIT),
            }
        };
        let ended = MERGE.run(&mut connect, &stop, &mut |done, all| seen.push((done, all)));
        assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
        assert_eq!(seen, [(3, 9), (3, 9)]);
        let commands: Vec<Value> = commands.try_iter().collect();
        assert_eq!(
            commands,
            ["block-stream", "query-jobs", "query-jobs", "job-cancel"].map(|name| json!(name))
        );
    }
}
