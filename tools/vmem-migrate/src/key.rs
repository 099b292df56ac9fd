// SPDX-License-Identifier: GPL-2.0
//! What tells a guest from all others of a host: its UUID, if it has one. Names are for people, and two guests can have the same one.

use serde::{Deserialize, Serialize};

/// The longest key, in bytes: it becomes part of a file's name.
const LONGEST: usize = 128;

/// A key, as it is: part of a file's name, whatever it was made of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Key(String);

impl Key {
    /// Of a guest with this UUID and name, as far as it has them, or else of what `other` says that it has.
    pub(crate) fn new(uuid: Option<&str>, name: Option<&str>, other: impl FnOnce() -> String) -> Self {
        match (uuid, name) {
            // A name has no "=" in it, once it is encoded.
            (Some(uuid), _) => Self(encoded(&format!("uuid={}", uuid.to_ascii_lowercase()), "=")),
            (None, Some(name)) => Self(encoded(name, "")),
            (None, None) => Self(encoded(&other(), "=")),
        }
    }

    /// As another host says it.
    pub(crate) fn received(text: &str) -> Self {
        Self(encoded(text, "=%~"))
    }

    /// What another host is told. A process is one of this host.
    pub(crate) fn to_say(&self, session: &str) -> Self {
        if self.0.starts_with("qemu=") {
            Self::new(None, None, || format!("session={session}"))
        } else {
            self.clone()
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Key {
    /// Of a guest with this name and no UUID.
    fn from(name: &str) -> Self {
        Self::new(None, Some(name), String::new)
    }
}

/// `text` with `%` and two digits for each byte that is not a letter, a digit, `_`, `-` or one of `also`: no two texts become the same, and
/// none leads into another directory. Of a long one the end is replaced by a number made of all of it.
fn encoded(text: &str, also: &str) -> String {
    let mut done = String::new();
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "_-".contains(c) || also.contains(c) {
            done.push(c);
        } else {
            done.push_str(&format!("%{byte:02X}"));
        }
    }
    if done.len() > LONGEST {
        // FNV-1a.
        let number = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |number, byte| {
            (number ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        done.truncate(LONGEST - 17);
        done.push_str(&format!("~{number:016x}"));
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "0B8A3C5E-6f5e-4d0c-9d6c-0123456789ab";

    #[test]
    fn guests_that_differ_have_keys_that_differ() {
        let keys = [
            Key::from("a b"),
            Key::from("a_b"),
            Key::from("a%20b"),
            Key::from("guest"),
            Key::from("../a"),
            Key::from("uuid=1"),
            Key::new(Some("1"), Some("guest"), String::new),
            Key::new(None, None, || "qemu=812-4711".to_owned()),
            Key::new(None, None, || "qemu=813-4711".to_owned()),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[..at].contains(key), "{key:?}");
            assert!(!key.as_str().contains(['/', '.']), "{key:?}");
        }
    }

    #[test]
    fn guest_with_uuid_may_change_its_name() {
        let key = |name| Key::new(Some(UUID), name, String::new);
        assert_eq!(key(Some("a")), key(None));
        assert_eq!(key(None).as_str(), format!("uuid={}", UUID.to_lowercase()));
    }

    #[test]
    fn guest_with_neither_is_told_by_the_session() {
        let key = Key::new(None, None, || "qemu=812-4711".to_owned());
        assert_eq!(key.to_say("0a").as_str(), "session=0a");
        assert_eq!(Key::from("qemu=1").to_say("0a"), Key::from("qemu=1"), "this is a name");
    }

    #[test]
    fn key_stays_the_same_on_another_host() {
        let long = "\u{e9}".repeat(200);
        for key in [
            Key::from("a b"),
            Key::from(long.as_str()),
            Key::new(Some(UUID), None, String::new),
        ] {
            assert_eq!(Key::received(key.as_str()), key);
            assert!(key.as_str().len() <= LONGEST);
        }
        assert_ne!(Key::from(long.as_str()), Key::from(format!("{long}a").as_str()));
        assert_eq!(Key::received("../../etc").as_str(), "%2E%2E%2F%2E%2E%2Fetc");
    }
}
