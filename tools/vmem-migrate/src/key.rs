// SPDX-License-Identifier: GPL-2.0-or-later
//! The key that identifies a guest on a host: its UUID, if it has one. A name is for users only, and two guests can have the same name.

use serde::{Deserialize, Serialize};
use vmem_process::Process;
use vmem_qemu::{Qmp, guest};

/// The longest key in bytes. The key becomes part of a file name.
const LONGEST: usize = 128;

/// A key. It is valid as part of a file name, whatever it was made of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Key(String);

impl Key {
    /// The key of a guest with this UUID or else this name, or else of the text of `other`.
    pub(crate) fn new(uuid: Option<&str>, name: Option<&str>, other: impl FnOnce() -> String) -> Self {
        match (uuid, name) {
            // An encoded name has no "=", so the kinds of keys cannot collide.
            (Some(uuid), _) => Self(encoded(&format!("uuid={}", uuid.to_ascii_lowercase()), "=")),
            (None, Some(name)) => Self(encoded(name, "")),
            (None, None) => Self(encoded(&other(), "=")),
        }
    }

    /// What identifies the guest of a QEMU on this host: its UUID, or its name, or else the process of its QEMU.
    pub(crate) fn of_guest(qmp: &mut Qmp) -> Result<Self, vmem_qemu::Error> {
        let uuid = guest::uuid(qmp)?;
        let name = guest::own_name(qmp)?;
        let process = qmp.peer_pid()?;
        Ok(Self::new(uuid.as_deref(), name.as_deref(), || {
            let identity = Process::open(process).and_then(|process| process.identity());
            // Without its identity, a later command could not tell whether the process is the same one, so it does not find the guest by this
            // key.
            identity.map_or_else(|_| format!("qemu={process}"), |identity| format!("qemu={identity}"))
        }))
    }

    /// A key that another host has sent.
    pub(crate) fn received(text: &str) -> Self {
        Self(encoded(text, "=%~"))
    }

    /// The key that another host gets. A process number means nothing on another host, so the session replaces it.
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
    /// The key of a guest with this name and no UUID.
    fn from(name: &str) -> Self {
        Self::new(None, Some(name), String::new)
    }
}

/// Encodes `text`: `%` and two digits stand for each byte that is not a letter, a digit, `_`, `-` or one of `also`. So no two texts have
/// the same encoding, and none leads into another directory. A hash of the whole text replaces the end of a long one.
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
    fn different_guests_have_different_keys() {
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
    fn key_with_uuid_does_not_depend_on_the_name() {
        let key = |name| Key::new(Some(UUID), name, String::new);
        assert_eq!(key(Some("a")), key(None));
        assert_eq!(key(None).as_str(), format!("uuid={}", UUID.to_lowercase()));
    }

    #[test]
    fn key_without_uuid_and_name_is_sent_as_the_session() {
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
