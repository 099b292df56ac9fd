// SPDX-License-Identifier: GPL-2.0-or-later
//! An encrypted store: memory of a program goes there and comes back with the key, and the key is seen nowhere else.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vmem::PAGE_SIZE;

use super::store::{Store, memory_of, wait_gone};
use crate::failure::{Outcome, ensure};
use crate::suite::vmemd::{beside, map, open};

const FILE: &str = "/dev/shm/vmem-checkpoint-encrypted";
const PAGES: usize = 500;
const TEXT: &[u8] = b"this is what nobody should find in the store";

/// A directory for keys, removed at the end.
struct Keys(PathBuf);

impl Keys {
    fn new() -> Outcome<Self> {
        let directory = PathBuf::from("/dev/shm/vmem-checkpoint-keys");
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory)?;
        Ok(Self(directory))
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn contains(path: &Path, text: &[u8]) -> Outcome<bool> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            if contains(&entry?.path(), text)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    Ok(fs::read(path)?.windows(text.len()).any(|bytes| bytes == text))
}

/// Fails if a process has this text in its arguments or its environment.
fn check_processes(text: &[u8]) -> Outcome {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        for part in ["cmdline", "environ"] {
            // A process may end at this moment.
            let words = fs::read(path.join(part)).unwrap_or_default();
            ensure!(
                !words.windows(text.len()).any(|bytes| bytes == text),
                "the key is in {}/{part}",
                path.display()
            );
        }
    }
    Ok(())
}

pub(super) fn restored() -> Outcome {
    let keys = Keys::new()?;
    let make = |name: &str| -> Outcome<String> {
        let path = keys.0.join(name);
        let status = beside("vmemctl")?
            .args(["checkpoint", "key", "generate"])
            .arg(&path)
            .status()?;
        ensure!(status.success(), "key generate: {status}");
        Ok(path.to_string_lossy().into_owned())
    };
    let (key, other) = (make("key")?, make("other")?);
    let digits = fs::read_to_string(&key)?;
    let store = Store::encrypted(Path::new(&key))?;
    let _ = fs::remove_file(FILE);
    let file = fs::File::options().read(true).write(true).create_new(true).open(FILE)?;
    file.set_len((PAGES * PAGE_SIZE) as u64)?;
    for page in 0..PAGES {
        file.write_all_at(TEXT, (page * PAGE_SIZE + page) as u64)?;
    }
    let (pid, memory) = memory_of(&file);
    let made = store.run(
        "create",
        &["--key-file", &key, "--name", "secret", "--pid", &pid, "--memory", &memory],
    );
    let _ = fs::remove_file(FILE);
    made?;
    ensure!(
        !contains(&store.directory.join("store"), TEXT)?,
        "the contents are in the store"
    );
    let command = format!("cat {key}");
    let listed = store.run("list", &["--key-command", &command])?;
    ensure!(listed.contains("encrypted"), "{listed}");
    for (arguments, said) in [
        (&["secret", "--key-file", &other][..], "does not open this store"),
        (&["secret"][..], "it needs a key"),
    ] {
        let output = store.end("restore", arguments)?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(1) && stderr.contains(said),
            "{:?} {stderr}",
            output.status
        );
    }
    let restore = store.restore("secret", &["--key-file", &key], "ready")?;
    check_processes(digits.trim_end().as_bytes())?;
    let region = open("secret.vmem-checkpo")?;
    let restored = map(&region)?;
    let mut found = vec![0; TEXT.len()];
    for page in 0..PAGES {
        restored.read_at(page * PAGE_SIZE + page, &mut found)?;
        ensure!(found == TEXT, "page {page} is not what was stored");
    }
    restore.end()?;
    drop((restored, region));
    wait_gone("secret.vmem-checkpo")
}
