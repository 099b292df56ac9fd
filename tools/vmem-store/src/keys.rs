// SPDX-License-Identifier: GPL-2.0-or-later
//! The user's key, and the objects that hold the store's keys encrypted with it.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::crypto::{KEY_BYTES, KeyRing};
use crate::envelope::{Kind, Seal, unwrap, wrap};
use crate::error::Error;
use crate::hex::{from_hex, to_hex};
use crate::names::{KEYS, WriterId};
use crate::objects::{Objects, Part, Put};
use crate::random::random;

/// A key of the user's: 32 random bytes. It opens the store's own keys, and nothing else is encrypted with it.
#[derive(Clone)]
pub struct UserKey([u8; KEY_BYTES]);

impl Drop for UserKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserKey")
    }
}

/// How long a command may take that gives a key.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// Most bytes that are read for a key.
const MAX_TEXT: u64 = 4096;

impl UserKey {
    /// A new random key.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self(random()?))
    }

    /// The key as text, for a key file: 64 hexadecimal digits and the end of the line.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(to_hex(&self.0) + "\n")
    }

    /// The key from 32 bytes, or from 64 hexadecimal digits with or without an end of the line. A password is refused: what can be guessed
    /// is no key.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        if let Ok(bytes) = bytes.try_into() {
            return Ok(Self(bytes));
        }
        let text = std::str::from_utf8(bytes).unwrap_or_default().trim_end();
        from_hex(&text.to_ascii_lowercase())
            .map(Self)
            .ok_or_else(|| Error::Key("a key is 32 random bytes, or 64 hexadecimal digits".to_owned()))
    }

    /// The key from a file that nobody but its owner can read.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let failed = |error: std::io::Error| Error::Key(format!("{}: {error}", path.display()));
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_file() && metadata.mode() & 0o077 != 0 {
            return Err(Error::Key(format!(
                "{}: others than its owner may access it (mode {:04o}): chmod 600",
                path.display(),
                metadata.mode() & 0o7777
            )));
        }
        Self::from_reader(file, &path.display().to_string())
    }

    /// The key from what this gives up to its end. `name` is for errors.
    pub fn from_reader(reader: impl Read, name: &str) -> Result<Self, Error> {
        let mut bytes = Zeroizing::new(Vec::new());
        let read = reader.take(MAX_TEXT).read_to_end(&mut bytes);
        read.map_err(|error| Error::Key(format!("{name}: {error}")))?;
        Self::from_bytes(&bytes).map_err(|error| match error {
            Error::Key(what) => Error::Key(format!("{name}: {what}")),
            error => error,
        })
    }

    /// The key from what a program prints. The program has a minute for it.
    pub fn from_command(program: &str, arguments: &[String]) -> Result<Self, Error> {
        Self::from_command_within(program, arguments, COMMAND_LIMIT)
    }

    fn from_command_within(program: &str, arguments: &[String], limit: Duration) -> Result<Self, Error> {
        let failed = |what: String| Error::Key(format!("{program}: {what}"));
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let output = child.stdout.take();
        // A process that the program leaves behind may keep the pipe open: the reader is not waited for longer than the program.
        let (sender, printed) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let key = output.map(|output| Self::from_reader(output, "what it printed"));
            let _ = sender.send(key);
        });
        let begun = Instant::now();
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if begun.elapsed() < limit => std::thread::sleep(Duration::from_millis(10)),
                ended => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(failed(match ended {
                        Err(error) => error.to_string(),
                        Ok(_) => format!("it did not end within {} s", limit.as_secs()),
                    }));
                }
            }
        };
        if !status.success() {
            return Err(failed(format!("it failed ({status})")));
        }
        match printed.recv_timeout(limit.saturating_sub(begun.elapsed())) {
            Ok(Some(Ok(key))) => Ok(key),
            Ok(Some(Err(Error::Key(what)))) => Err(failed(what)),
            _ => Err(failed(format!("its output did not end within {} s", limit.as_secs()))),
        }
    }
}

/// The keys of a store as they are stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredKeys {
    hash: String,
    masters: Vec<String>,
}

impl Drop for StoredKeys {
    fn drop(&mut self) {
        self.hash.zeroize();
        self.masters.zeroize();
    }
}

/// A new set of keys.
pub(crate) fn new_ring() -> Result<KeyRing, Error> {
    Ok(KeyRing {
        hash: random()?,
        masters: vec![random()?],
    })
}

/// Writes the store's keys for a user's key, and gives the object's name.
pub(crate) fn store(objects: &dyn Objects, ring: &KeyRing, user: &UserKey) -> Result<String, Error> {
    let name = format!("{KEYS}{}", WriterId::new()?);
    let stored = StoredKeys {
        hash: to_hex(&ring.hash),
        masters: ring.masters.iter().map(|master| to_hex(master)).collect(),
    };
    let body = Zeroizing::new(serde_json::to_vec(&stored).unwrap_or_default());
    let object = wrap(Kind::Key, &name, &body, &Seal::User(&user.0))?;
    let failed = |cause| Error::Object {
        action: "write",
        name: name.clone(),
        cause,
    };
    objects.put(&name, &object, Put::New).map_err(failed)?;
    Ok(name)
}

/// The names of all objects with keys.
pub(crate) fn list(objects: &dyn Objects) -> Result<Vec<String>, Error> {
    let listed = objects.list(KEYS).map_err(|cause| Error::Object {
        action: "list",
        name: KEYS.to_owned(),
        cause,
    })?;
    Ok(listed.into_iter().map(|meta| meta.name).collect())
}

/// The store's keys, and the objects that the user's key opens.
pub(crate) fn load(objects: &dyn Objects, user: &UserKey) -> Result<(KeyRing, Vec<String>), Error> {
    let mut found: Option<KeyRing> = None;
    let mut names = Vec::new();
    for name in list(objects)? {
        let object = match objects.get(&name, Part::All(Kind::Key.limit())) {
            Err(crate::objects::ObjectError::NotFound) => continue,
            object => object.map_err(|cause| Error::Object {
                action: "read",
                name: name.clone(),
                cause,
            })?,
        };
        let Ok(body) = unwrap(Kind::Key, &name, &object.bytes, &Seal::User(&user.0)).map(Zeroizing::new) else {
            continue;
        };
        let ring = parse(&body).ok_or_else(|| Error::damaged(&name, "it does not hold the keys of a store"))?;
        // During a rotation there are two: the one with more generations is the newer.
        if found.as_ref().is_none_or(|found| found.masters.len() < ring.masters.len()) {
            found = Some(ring);
        }
        names.push(name);
    }
    found.map(|ring| (ring, names)).ok_or(Error::WrongKey)
}

fn parse(body: &[u8]) -> Option<KeyRing> {
    let stored: StoredKeys = serde_json::from_slice(body).ok()?;
    let masters: Option<Vec<_>> = stored.masters.iter().map(|master| from_hex(master)).collect();
    let masters = masters.filter(|masters| !masters.is_empty())?;
    Some(KeyRing {
        hash: from_hex(&stored.hash)?,
        masters,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn key_comes_from_private_file_or_command_and_is_no_password() {
        let key = UserKey::generate().unwrap();
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("key");
        std::fs::write(&path, key.to_text().as_bytes()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(UserKey::from_file(&path).unwrap_err().to_string().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(UserKey::from_file(&path).unwrap().0, key.0);
        let printed = UserKey::from_command("cat", &[path.display().to_string()]).unwrap();
        assert_eq!(printed.0, key.0);
        assert!(UserKey::from_command("false", &[]).is_err());
        assert!(UserKey::from_command("/nonexistent", &[]).is_err());
        assert!(UserKey::from_bytes(b"a password").is_err());
        let digits = key.to_text();
        let long = Read::chain(digits.as_bytes(), std::io::repeat(b' '));
        assert_eq!(
            UserKey::from_reader(long, "a file").unwrap().0,
            key.0,
            "what is beyond the limit is not read"
        );
        assert_eq!(format!("{key:?}"), "UserKey");
    }

    #[test]
    fn command_that_does_not_end_or_leaves_its_output_open_is_given_up() {
        let begun = Instant::now();
        for (script, said) in [
            ("exec sleep 1000", "did not end"),
            ("sleep 20 & exit 0", "output did not end"),
        ] {
            let limit = Duration::from_millis(300);
            let failed = UserKey::from_command_within("/bin/sh", &["-c".to_owned(), script.to_owned()], limit).unwrap_err();
            assert!(failed.to_string().contains(said), "{failed}");
        }
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
