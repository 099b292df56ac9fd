// SPDX-License-Identifier: GPL-2.0-or-later
//! The files of a checkpoint.

use std::time::{Duration, SystemTime};

use serde_json::json;
use vmem_store::{CheckpointName, Manifest};
use vmem_store_source::{MANIFEST_FILE, STATISTICS_FILE, backend_files};

/// What is in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    /// The backend with this number.
    Backend(usize),
    /// The manifest.
    Manifest,
    /// What the writer has counted, and which file is which backend.
    Statistics,
}

/// A file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) contents: Contents,
    pub(crate) bytes: u64,
}

/// A checkpoint, with the names and lengths of its files.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    manifest: Manifest,
    files: Vec<File>,
}

impl Checkpoint {
    pub(crate) fn new(manifest: Manifest) -> Self {
        let names = backend_files(&manifest).into_iter().enumerate();
        let mut files: Vec<_> = names
            .zip(&manifest.backends)
            .map(|((number, name), backend)| File {
                name,
                contents: Contents::Backend(number),
                bytes: backend.bytes,
            })
            .collect();
        for (name, contents) in [(MANIFEST_FILE, Contents::Manifest), (STATISTICS_FILE, Contents::Statistics)] {
            files.push(File {
                name: name.to_owned(),
                contents,
                bytes: text(&manifest, contents).map_or(0, |text| text.len() as u64),
            });
        }
        Self { manifest, files }
    }

    pub(crate) fn name(&self) -> &CheckpointName {
        &self.manifest.checkpoint
    }

    /// How often it was rewritten.
    pub(crate) fn revision(&self) -> u32 {
        self.manifest.revision
    }

    /// When it was made.
    pub(crate) fn created(&self) -> SystemTime {
        let since = Duration::from_millis(self.manifest.created);
        SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    pub(crate) fn files(&self) -> &[File] {
        &self.files
    }

    /// The number of a file among [`files`](Self::files).
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.files.iter().position(|file| file.name == name)
    }

    /// The name of a file with that of the checkpoint, for messages.
    pub(crate) fn label(&self, number: usize) -> String {
        let file = self.files.get(number).map_or("", |file| &file.name);
        format!("{}/{file}", self.name())
    }

    /// The contents of a file that is no backend.
    pub(crate) fn text(&self, contents: Contents) -> Option<Vec<u8>> {
        text(&self.manifest, contents)
    }
}

/// Made when it is wanted: the manifest of a large memory is long, and most are never read.
fn text(manifest: &Manifest, contents: Contents) -> Option<Vec<u8>> {
    let text = match contents {
        Contents::Backend(_) => return None,
        Contents::Manifest => serde_json::to_vec_pretty(manifest),
        Contents::Statistics => {
            let files = backend_files(manifest).into_iter().zip(&manifest.backends);
            let backends = files
                .map(|(file, backend)| json!({"file": file, "name": backend.name, "kind": backend.kind, "bytes": backend.bytes}));
            serde_json::to_vec_pretty(&json!({
                "checkpoint": manifest.checkpoint.to_string(),
                "revision": manifest.revision,
                "created_ms": manifest.created,
                "parent": manifest.parent.as_ref().map(|parent| parent.checkpoint.to_string()),
                "backends": backends.collect::<Vec<_>>(),
                "statistics": manifest.statistics,
            }))
        }
    };
    let mut text = text.unwrap_or_default();
    text.push(b'\n');
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{BLOB, PAGES, TestStore};
    use vmem_pages::PAGE_SIZE;

    #[test]
    fn files_have_the_lengths_of_what_they_contain() {
        let test = TestStore::new();
        let checkpoint = Checkpoint::new(test.store.manifest(&test.name(1)).expect("a manifest"));
        let named: Vec<_> = checkpoint
            .files()
            .iter()
            .map(|file| (file.name.as_str(), file.bytes))
            .collect();
        let text = |contents| checkpoint.text(contents).expect("a text");
        let (manifest, statistics) = (text(Contents::Manifest), text(Contents::Statistics));
        assert_eq!(
            named,
            [
                ("ram.raw", PAGES * PAGE_SIZE as u64),
                ("device-state", BLOB),
                ("manifest.json", manifest.len() as u64),
                ("stats.json", statistics.len() as u64),
            ]
        );
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
        assert_eq!(manifest["backends"][0]["name"], "ram");
        let statistics: serde_json::Value = serde_json::from_slice(&statistics).expect("JSON");
        assert_eq!(statistics["checkpoint"], "guest0@1");
        assert_eq!(statistics["backends"][0]["file"], "ram.raw");
        assert_eq!(statistics["statistics"]["zero"], manifest["statistics"]["zero"]);
    }
}
