// SPDX-License-Identifier: GPL-2.0-or-later
//! The names that the parts of a checkpoint have as files.

use std::collections::BTreeSet;

use vmem_store::{BackendKind, Manifest};

/// The file with the manifest.
pub const MANIFEST_FILE: &str = "manifest.json";

/// The file with what the writer of the checkpoint has counted, in a view of the store.
pub const STATISTICS_FILE: &str = "stats.json";

/// Most bytes of a file's name (`NAME_MAX`).
const MAX_NAME: usize = 255;

/// The name of each backend's file, by the backend's number: `ID.raw` for a memory, and the name itself for other bytes.
///
/// A backend's name may be any text. A character that no file name may have, or that a terminal would obey, is written as `%XX`. A name that is
/// too long, or that another file has, becomes `memory-N.raw` or `blob-N`.
#[must_use]
pub fn backend_files(manifest: &Manifest) -> Vec<String> {
    let backends = manifest.backends.iter().map(|backend| (backend.name.as_str(), backend.kind));
    names(backends)
}

fn names<'a>(backends: impl Iterator<Item = (&'a str, BackendKind)>) -> Vec<String> {
    let mut taken: BTreeSet<String> = [MANIFEST_FILE, STATISTICS_FILE].map(str::to_owned).into();
    let mut names = Vec::new();
    for (number, (name, kind)) in backends.enumerate() {
        let (end, kind) = match kind {
            BackendKind::Memory => (".raw", "memory"),
            BackendKind::Blob => ("", "blob"),
        };
        let mut file = escaped(name) + end;
        if file.len() > MAX_NAME || taken.contains(&file) {
            // A backend may have even this name.
            let free = |tail: &String| !taken.contains(&format!("{kind}-{number}{tail}{end}"));
            let tail = (0_u32..).map(|more| "_".repeat(more as usize)).find(free).unwrap_or_default();
            file = format!("{kind}-{number}{tail}{end}");
        }
        taken.insert(file.clone());
        names.push(file);
    }
    names
}

fn escaped(name: &str) -> String {
    let mut file = String::new();
    for (at, c) in name.char_indices() {
        if c == '/' || c == '%' || c.is_control() || (at == 0 && c == '.') {
            let mut bytes = [0; 4];
            c.encode_utf8(&mut bytes)
                .bytes()
                .for_each(|byte| file.push_str(&format!("%{byte:02X}")));
        } else {
            file.push(c);
        }
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memories(all: &[&str]) -> Vec<String> {
        names(all.iter().map(|name| (*name, BackendKind::Memory)))
    }

    #[test]
    fn usual_names_stay_as_they_are() {
        let both = [("ram", BackendKind::Memory), ("device-state", BackendKind::Blob)];
        assert_eq!(names(both.into_iter()), ["ram.raw", "device-state"]);
    }

    #[test]
    fn no_name_leaves_the_directory_or_disturbs_a_terminal() {
        assert_eq!(
            memories(&["a/b", "..", ".hidden", "a%2Fb", "\u{1b}[1m", "ü\0"]),
            [
                "a%2Fb.raw",
                "%2E..raw",
                "%2Ehidden.raw",
                "a%252Fb.raw",
                "%1B[1m.raw",
                "ü%00.raw"
            ]
        );
    }

    #[test]
    fn names_that_are_taken_or_too_long_get_numbers() {
        let long = "x".repeat(252);
        assert_eq!(memories(&["memory-1", &long]), ["memory-1.raw", "memory-1_.raw"]);
        assert_eq!(memories(&[&"x".repeat(251)])[0].len(), 255);
        let blobs = ["manifest.json", "blob-1_", "blob-1", "stats.json"].map(|name| (name, BackendKind::Blob));
        let all = blobs
            .into_iter()
            .chain([("a.raw", BackendKind::Blob), ("a", BackendKind::Memory)]);
        let files = ["blob-0", "blob-1_", "blob-1", "blob-3", "a.raw", "memory-5.raw"];
        assert_eq!(names(all), files);
    }
}
