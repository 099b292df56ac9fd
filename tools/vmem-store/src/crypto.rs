// SPDX-License-Identifier: GPL-2.0-or-later
//! Encryption and hashes: AES-256-GCM with keys that are derived for each object, and BLAKE3.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::{Zeroize, Zeroizing};

/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 32;
/// Bytes that encryption adds.
pub(crate) const TAG_BYTES: usize = 16;
/// Random bytes that make the key of each object another one.
pub(crate) const SALT_BYTES: usize = 16;

/// The first bytes of a BLAKE3 hash; keyed in an encrypted store, so that it says nothing about the contents to those without the key.
pub(crate) type Hash16 = [u8; 16];

/// Bytes do not open with the key: they are damaged, of another object, or of another store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it does not open with the store's key: it is damaged, or of another store")]
pub(crate) struct NotOpened;

/// A key that encrypts the parts of one object. Each part has a number of its own, and is encrypted once.
pub(crate) struct ObjectKey(LessSafeKey);

impl ObjectKey {
    /// The key for the object `context` with these random bytes.
    pub(crate) fn derive(master: &[u8; KEY_BYTES], context: &str, salt: &[u8; SALT_BYTES]) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(master);
        hasher.update(b"vmem checkpoint object key\0");
        hasher.update(salt);
        hasher.update(context.as_bytes());
        let key = Zeroizing::new(*hasher.finalize().as_bytes());
        // 32 bytes are a key of AES-256; ring has no other reason to refuse.
        match UnboundKey::new(&AES_256_GCM, key.as_slice()) {
            Ok(key) => Self(LessSafeKey::new(key)),
            Err(_) => unreachable!("a key of 32 bytes"),
        }
    }

    fn nonce(part: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&part.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    /// Encrypts a part in place; it becomes [`TAG_BYTES`] longer.
    pub(crate) fn seal(&self, part: u64, bytes: &mut Vec<u8>) {
        if self
            .0
            .seal_in_place_append_tag(Self::nonce(part), Aad::empty(), bytes)
            .is_err()
        {
            unreachable!("a part of an object is shorter than 64 GiB");
        }
    }

    /// Decrypts a part in place.
    pub(crate) fn open(&self, part: u64, bytes: &mut Vec<u8>) -> Result<(), NotOpened> {
        let plain = self
            .0
            .open_in_place(Self::nonce(part), Aad::empty(), bytes)
            .map_err(|_| NotOpened)?
            .len();
        bytes.truncate(plain);
        Ok(())
    }
}

impl std::fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ObjectKey")
    }
}

/// The keys of an encrypted store. A user's key opens them, and encrypts nothing else.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct KeyRing {
    /// Of the hashes; stays when keys are rotated, so that pages of old checkpoints are still recognized.
    pub(crate) hash: [u8; KEY_BYTES],
    /// One for each generation. The last encrypts what is new; objects say which generation theirs is of.
    pub(crate) masters: Vec<[u8; KEY_BYTES]>,
}

impl Drop for KeyRing {
    fn drop(&mut self) {
        self.hash.zeroize();
        self.masters.zeroize();
    }
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyRing of {} generations", self.masters.len())
    }
}

/// How contents are hashed and encrypted in one store.
#[derive(Debug, Clone)]
pub(crate) struct Crypto {
    keys: Option<KeyRing>,
}

impl Crypto {
    pub(crate) fn new(keys: Option<KeyRing>) -> Self {
        Self { keys }
    }

    pub(crate) fn keys(&self) -> Option<&KeyRing> {
        self.keys.as_ref()
    }

    pub(crate) fn hash16(&self, bytes: &[u8]) -> Hash16 {
        let hash = match &self.keys {
            Some(keys) => blake3::keyed_hash(&keys.hash, bytes),
            None => blake3::hash(bytes),
        };
        let mut first = [0; 16];
        first.copy_from_slice(&hash.as_bytes()[..16]);
        first
    }

    pub(crate) fn hash32(&self, bytes: &[u8]) -> [u8; 32] {
        match &self.keys {
            Some(keys) => *blake3::keyed_hash(&keys.hash, bytes).as_bytes(),
            None => *blake3::hash(bytes).as_bytes(),
        }
    }

    /// The generation of the key for new objects; 0 without encryption.
    pub(crate) fn generation(&self) -> u32 {
        self.keys.as_ref().map_or(0, |keys| keys.masters.len() as u32)
    }

    /// The key of an object. `None` without encryption.
    ///
    /// # Errors
    ///
    /// If the object is encrypted and the store is not, the other way round, or the key's generation is unknown.
    pub(crate) fn object_key(
        &self,
        generation: u32,
        context: &str,
        salt: &[u8; SALT_BYTES],
    ) -> Result<Option<ObjectKey>, &'static str> {
        match (&self.keys, generation) {
            (None, 0) => Ok(None),
            (None, _) => Err("it is encrypted, and the store is not"),
            (Some(_), 0) => Err("it is not encrypted, and the store is"),
            (Some(keys), generation) => {
                let master = keys
                    .masters
                    .get(generation as usize - 1)
                    .ok_or("its key's generation is unknown")?;
                Ok(Some(ObjectKey::derive(master, context, salt)))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sealed_part_opens_as_the_same_part_of_the_same_object_only() {
        let key = ObjectKey::derive(&[1; 32], "packs/x", &[2; 16]);
        let mut sealed = b"page".to_vec();
        key.seal(7, &mut sealed);
        assert_eq!(sealed.len(), 4 + TAG_BYTES);
        let open = |key: &ObjectKey, part| key.open(part, &mut sealed.clone());
        let mut plain = sealed.clone();
        key.open(7, &mut plain).unwrap();
        assert_eq!(plain, b"page");
        assert_eq!(open(&key, 8), Err(NotOpened));
        assert_eq!(open(&ObjectKey::derive(&[1; 32], "packs/y", &[2; 16]), 7), Err(NotOpened));
        assert_eq!(open(&ObjectKey::derive(&[1; 32], "packs/x", &[3; 16]), 7), Err(NotOpened));
        assert_eq!(open(&ObjectKey::derive(&[9; 32], "packs/x", &[2; 16]), 7), Err(NotOpened));
    }
}
