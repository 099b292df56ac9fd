// SPDX-License-Identifier: GPL-2.0-or-later
//! The disks of a guest at the instant: the files that are not written to any more, because QEMU writes to overlays over them since.
//!
//! The overlays are made when QEMU has stopped the guest and written its devices. QEMU's block nodes are inactive then, as at the end of each
//! migration, and QEMU makes the overlays inactive, too; it activates them before it continues the guest.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use vmem_qemu::disks::{Overlay, add_overlays, writable};
use vmem_qemu::{Qmp, disks};
use vmem_store::Manifest;

use crate::error::Error;

/// The label that has the disks, as JSON: an array of [`Disk`].
pub const DISKS: &str = "disks";

/// Files of a disk, one over the other, from which on the operator is told, and with which no checkpoint is made any more. Each overlay takes
/// a descriptor of QEMU, which has 1024 unless told otherwise, and makes each overlay after it slower.
const MANY: u64 = 32;
const TOO_MANY: u64 = 100;

/// A disk at the instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Disk {
    /// Its name, which stays when it gets an overlay.
    pub name: String,
    /// The node of QEMU that had its contents.
    pub node: String,
    /// The file that has its contents, and is not written to any more.
    pub file: PathBuf,
    /// The format of the file.
    pub format: String,
    /// The length of the file in bytes.
    pub bytes: u64,
    /// When the file was written last: nanoseconds since 1970.
    pub modified_ns: i64,
    /// The overlay that the guest has used since.
    pub overlay: PathBuf,
}

impl Disk {
    /// The disks of a checkpoint.
    ///
    /// # Errors
    ///
    /// The label is not what [`DISKS`] says.
    pub fn all_of(manifest: &Manifest) -> Result<Vec<Self>, Error> {
        let Some(label) = manifest.labels.get(DISKS) else {
            return Ok(Vec::new());
        };
        let read = serde_json::from_str(label);
        Ok(read.map_err(vmem_cli::Error::call(format!(
            "cannot read the disks of {}",
            manifest.checkpoint
        )))?)
    }

    /// How a person makes an overlay for a guest that is restored.
    #[must_use]
    pub fn hint(&self) -> String {
        format!(
            "disk {} at the instant is {}: the restored guest needs an overlay over it, and must not write to it: \
             qemu-img create -f qcow2 -F {} -b {} OVERLAY (restore --disks makes one)",
            self.name,
            self.file.display(),
            self.format,
            self.file.display()
        )
    }

    /// Checks that the file is as it was at the instant.
    ///
    /// # Errors
    ///
    /// It was written since, or is not there.
    pub fn check(&self) -> Result<(), Error> {
        let file = self.file.display();
        let now = stamp(&self.file).map_err(vmem_cli::Error::call(format!("disk {}: cannot find {file}", self.name)))?;
        if now == (self.bytes, self.modified_ns) {
            return Ok(());
        }
        Err(Error::other(format!(
            "disk {}: {file} was written since the checkpoint (by block-commit, for example), and is not the disk at its instant any more",
            self.name
        )))
    }
}

/// Checks that a disk has room for one more overlay.
fn check_length(disk: &disks::Disk) -> Result<(), Error> {
    let files = disk.below + 1;
    if files >= TOO_MANY {
        return Err(Error::other(format!(
            "disk {}: it consists of {files} files, one over the other, and gets no more overlays: merge those that no checkpoint refers to \
             (vmemctl checkpoint merge-overlays)",
            disk.name
        )));
    }
    if files >= MANY {
        tracing::warn!(
            "disk {}: it consists of {files} files, one over the other; at {TOO_MANY}, no more checkpoints are made (vmemctl checkpoint \
             merge-overlays merges those that no checkpoint refers to)",
            disk.name
        );
    }
    Ok(())
}

/// The length, and when it was written last.
fn stamp(file: &Path) -> io::Result<(u64, i64)> {
    let found = fs::metadata(file)?;
    let seconds = found.mtime().saturating_mul(1_000_000_000);
    Ok((found.len(), seconds.saturating_add(found.mtime_nsec())))
}

/// Overlays that are about to be made.
#[derive(Debug)]
pub(crate) struct Plan(Vec<(disks::Disk, PathBuf, String)>);

impl Plan {
    /// Names an overlay in `directory` for each disk that the guest can write to.
    ///
    /// # Errors
    ///
    /// QEMU's answers; a disk that is no file with an absolute path.
    pub(crate) fn of(qmp: &mut Qmp, directory: &Path, guest: &str) -> Result<Self, Error> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let directory = fs::canonicalize(directory).map_err(vmem_cli::Error::call(format!(
            "cannot find the directory {}",
            directory.display()
        )))?;
        let (mut plan, mut names) = (Vec::new(), BTreeSet::new());
        for (number, disk) in writable(qmp)?.into_iter().enumerate() {
            check_length(&disk)?;
            // An overlay names its base relative to its own directory.
            if !Path::new(&disk.file).is_absolute() {
                return Err(Error::other(format!(
                    "disk {}: its file is {:?} for QEMU; give QEMU files with absolute paths, to which overlays can refer",
                    disk.name, disk.file
                )));
            }
            // QEMU deletes the file of a disk with snapshot=on: nobody could use it again.
            stamp(Path::new(&disk.file)).map_err(vmem_cli::Error::call(format!(
                "disk {}: cannot find {}",
                disk.name, disk.file
            )))?;
            if !names.insert(disk.name.clone()) {
                return Err(Error::other(format!("two disks have the name {}", disk.name)));
            }
            let file = directory.join(format!("{guest}-{time}-{number}.qcow2"));
            // QEMU's names of nodes have 31 bytes at most.
            plan.push((disk, file, format!("vmem-{time}-{number}")));
        }
        Ok(Self(plan))
    }

    /// Makes them.
    ///
    /// # Errors
    ///
    /// QEMU refuses, and nothing has changed; or it is not known whether it has made them.
    pub(crate) fn make(&self, qmp: &mut Qmp) -> Result<(), Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        let planned = self.0.iter();
        let overlays: Vec<_> = planned
            .map(|(disk, file, node)| Overlay {
                base: &disk.node,
                file,
                node,
            })
            .collect();
        match add_overlays(qmp, &overlays) {
            Err(error @ vmem_qemu::Error::Refused { .. }) => {
                // They are empty, and no other checkpoint has these names.
                overlays.iter().for_each(|overlay| drop(fs::remove_file(overlay.file)));
                Err(error.into())
            }
            Err(error) => Err(Error::OverlaysUnknown(error)),
            Ok(()) => Ok(()),
        }
    }

    /// The files of the overlays.
    pub(crate) fn files(&self) -> Vec<String> {
        self.0.iter().map(|(_, file, _)| file.display().to_string()).collect()
    }

    /// The disks, after QEMU has continued the guest.
    ///
    /// # Errors
    ///
    /// A file of a disk is not there for this process.
    pub(crate) fn disks(&self) -> Result<Vec<Disk>, Error> {
        let disk = |(disk, overlay, _): &(disks::Disk, PathBuf, String)| {
            let file = PathBuf::from(&disk.file);
            let (bytes, modified_ns) = stamp(&file).map_err(vmem_cli::Error::call(format!(
                "disk {}: cannot find {}",
                disk.name, disk.file
            )))?;
            Ok(Disk {
                name: disk.name.clone(),
                node: disk.node.clone(),
                file,
                format: disk.format.clone(),
                bytes,
                modified_ns,
                overlay: overlay.clone(),
            })
        };
        self.0.iter().map(disk).collect()
    }
}

/// Says that the guest goes on with these overlays.
pub(crate) fn with_overlays(overlays: Vec<String>, source: Error) -> Error {
    if overlays.is_empty() {
        return source;
    }
    Error::Overlays {
        overlays,
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_of_too_many_files_gets_no_overlay() {
        let disk = |below| disks::Disk {
            name: "disk0".to_owned(),
            node: "n".to_owned(),
            file: "/a".to_owned(),
            format: "qcow2".to_owned(),
            below,
        };
        [0, 31, 98]
            .into_iter()
            .for_each(|below| check_length(&disk(below)).expect("room"));
        let error = check_length(&disk(99)).expect_err("no room").to_string();
        assert!(error.contains("100 files") && error.contains("merge-overlays"), "{error}");
    }

    #[test]
    fn file_that_was_written_since_is_not_the_disk() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("disk");
        fs::write(&file, b"contents").expect("a file");
        let (bytes, modified_ns) = stamp(&file).expect("a file");
        let disk = Disk {
            name: "disk0".to_owned(),
            node: "n".to_owned(),
            file: file.clone(),
            format: "raw".to_owned(),
            bytes,
            modified_ns,
            overlay: PathBuf::new(),
        };
        disk.check().expect("as it was");
        let earlier = Disk {
            modified_ns: modified_ns - 1,
            ..disk.clone()
        };
        let error = earlier.check().expect_err("written since").to_string();
        assert!(error.contains("was written since"), "{error}");
        fs::remove_file(&file).expect("a file");
        assert!(disk.check().is_err());
    }
}
