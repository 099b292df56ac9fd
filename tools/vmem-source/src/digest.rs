// SPDX-License-Identifier: GPL-2.0-or-later
//! Digests of pages: how two sides find out that both have the same contents, without sending them.
//!
//! A digest is the first 16 bytes of keyed BLAKE3. Whoever chooses the contents of pages (a guest) does not know the key, which is random and
//! new in each process. So nobody can look for two pages with the same digest, and 2^32 pages (16 TiB) on each side have two by
//! chance with a probability of 2^-64.

use std::fmt;
use std::io;

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// Size of a digest in bytes.
pub const DIGEST_SIZE: usize = 16;

/// Size of a key in bytes.
pub const KEY_SIZE: usize = 32;

/// The most pages that a destination announces the digests of, or that a source keeps digests of for one (256 GiB).
pub const MAX_ANNOUNCED: u64 = 1 << 26;

/// The digest of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Digest([u8; DIGEST_SIZE]);

impl Digest {
    /// A digest that somebody else has computed.
    #[must_use]
    pub fn from_bytes(bytes: [u8; DIGEST_SIZE]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; DIGEST_SIZE] {
        &self.0
    }

    /// The first 8 bytes, which are announced. That they are those of another page, too, is found out with the other 8.
    #[must_use]
    pub fn prefix(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

/// The key of digests.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; KEY_SIZE]);

impl Key {
    /// A random key.
    ///
    /// # Errors
    ///
    /// The error of `getrandom(2)`.
    pub fn random() -> io::Result<Self> {
        let mut key = [0; KEY_SIZE];
        let mut filled = 0;
        while filled < KEY_SIZE {
            match getrandom(&mut key[filled..], GetRandomFlags::empty()) {
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self(key))
    }

    /// A key that somebody else has chosen.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_SIZE]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; KEY_SIZE] {
        &self.0
    }

    /// The digest of the contents of a page.
    #[must_use]
    pub fn digest(&self, page: &[u8]) -> Digest {
        let mut digest = [0; DIGEST_SIZE];
        let hash = blake3::keyed_hash(&self.0, page);
        digest.copy_from_slice(&hash.as_bytes()[..DIGEST_SIZE]);
        Digest(digest)
    }
}

impl fmt::Debug for Key {
    /// A key is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_depends_on_every_byte_and_on_the_key() {
        let (key, other) = (Key::random().expect("a key"), Key::random().expect("a key"));
        let mut page = [7; 4096];
        let digest = key.digest(&page);
        assert_eq!(key.digest(&page), digest);
        assert_ne!(other.digest(&page), digest);
        page[4095] ^= 1;
        assert_ne!(key.digest(&page), digest);
    }

    #[test]
    fn digest_is_keyed_blake3() {
        // The first of the official test vectors: no bytes, this key.
        let key = Key::from_bytes(*b"whats the Elvish word for friend");
        assert_eq!(
            key.digest(&[]).bytes(),
            &[
                0x92, 0xb2, 0xb7, 0x56, 0x04, 0xed, 0x3c, 0x76, 0x1f, 0x9d, 0x6f, 0x62, 0x39, 0x2c, 0x8a, 0x92
            ]
        );
        assert_eq!(key.digest(&[]).prefix(), 0x763c_ed04_56b7_b292);
    }
}
