// SPDX-License-Identifier: GPL-2.0-or-later
//! What small objects are wrapped in: what they are, their version, encryption, and a hash that also covers their name.

use crate::crypto::{Crypto, KEY_BYTES, ObjectKey, SALT_BYTES};
use crate::encoding::{Cursor, Malformed};
use crate::error::Error;
use crate::random::random;

const MAGIC: [u8; 8] = *b"VMEMOBJ\0";
const HEADER_BYTES: usize = 40;
const HASH_BYTES: usize = 32;

/// The version of the whole format that this program writes; it reads no newer one.
pub(crate) const VERSION: u16 = 1;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Config = 1,
    Key = 2,
    Manifest = 3,
    Order = 4,
    Lease = 5,
    Tombstones = 6,
    Removal = 7,
}

impl Kind {
    /// Most bytes of such an object.
    pub(crate) const fn limit(self) -> u64 {
        match self {
            Self::Config | Self::Key | Self::Lease | Self::Removal => 1 << 16,
            Self::Manifest => 16 << 20,
            Self::Order => 64 << 20,
            Self::Tombstones => 256 << 20,
        }
    }
}

/// How an object is encrypted, if it is.
pub(crate) enum Seal<'a> {
    /// Not at all, whatever the store does.
    Open,
    /// As the store says.
    Store(&'a Crypto),
    /// With a key of the user's.
    User(&'a [u8; KEY_BYTES]),
}

impl Seal<'_> {
    fn generation(&self) -> u32 {
        match self {
            Self::Open => 0,
            Self::Store(crypto) => crypto.generation(),
            Self::User(_) => u32::MAX,
        }
    }

    fn key(&self, generation: u32, name: &str, salt: &[u8; SALT_BYTES]) -> Result<Option<ObjectKey>, &'static str> {
        match self {
            Self::Open if generation == 0 => Ok(None),
            Self::Open => Err("it is encrypted, and objects of its kind are not"),
            Self::Store(crypto) => crypto.object_key(generation, name, salt),
            Self::User(key) if generation == u32::MAX => Ok(Some(ObjectKey::derive(key, name, salt))),
            Self::User(_) => Err("it is not encrypted with a user's key"),
        }
    }
}

fn hash(name: &str, bytes: &[u8]) -> [u8; HASH_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(name.len() as u64).to_le_bytes());
    hasher.update(name.as_bytes());
    hasher.update(bytes);
    *hasher.finalize().as_bytes()
}

/// The bytes of the object `name`.
pub(crate) fn wrap(kind: Kind, name: &str, body: &[u8], seal: &Seal<'_>) -> Result<Vec<u8>, Error> {
    let salt = random()?;
    let generation = seal.generation();
    let key = seal.key(generation, name, &salt).map_err(|what| Error::damaged(name, what))?;
    let mut body = body.to_vec();
    if let Some(key) = key {
        key.seal(0, &mut body);
    }
    let mut object = Vec::with_capacity(HEADER_BYTES + body.len() + HASH_BYTES);
    object.extend_from_slice(&MAGIC);
    object.extend_from_slice(&VERSION.to_le_bytes());
    object.extend_from_slice(&[kind as u8, 0]);
    object.extend_from_slice(&generation.to_le_bytes());
    object.extend_from_slice(&salt);
    object.extend_from_slice(&(body.len() as u64).to_le_bytes());
    object.extend_from_slice(&body);
    let hash = hash(name, &object);
    object.extend_from_slice(&hash);
    if object.len() as u64 > kind.limit() {
        return Err(Error::TooLarge(format!(
            "{name} would have {} bytes; the limit is {}",
            object.len(),
            kind.limit()
        )));
    }
    Ok(object)
}

/// That the object `name` is of a version that is known here.
pub(crate) fn check_version(name: &str, version: u16) -> Result<(), Error> {
    match version > VERSION {
        true => Err(Error::NewerVersion {
            name: name.to_owned(),
            version,
            known: VERSION,
        }),
        false => Ok(()),
    }
}

/// The body of the object `name`.
pub(crate) fn unwrap(kind: Kind, name: &str, object: &[u8], seal: &Seal<'_>) -> Result<Vec<u8>, Error> {
    let malformed = |Malformed(what)| Error::damaged(name, what);
    let mut cursor = Cursor::new(object);
    if cursor.array().map_err(malformed)? != MAGIC {
        return Err(Error::damaged(name, "it is no object of a checkpoint store"));
    }
    let version = cursor.u16().map_err(malformed)?;
    check_version(name, version)?;
    let [found, reserved] = cursor.array().map_err(malformed)?;
    let generation = cursor.u32().map_err(malformed)?;
    let salt = cursor.array().map_err(malformed)?;
    let length = cursor.u64().map_err(malformed)?;
    let length = usize::try_from(length).map_err(|_| Error::damaged(name, "it ends too early"))?;
    let mut body = cursor.bytes(length).map_err(malformed)?.to_vec();
    let stored = cursor.array::<HASH_BYTES>().map_err(malformed)?;
    cursor.end().map_err(malformed)?;
    if stored != hash(name, &object[..HEADER_BYTES + length]) {
        return Err(Error::damaged(name, "its hash is not that of its contents and its name"));
    }
    if found != kind as u8 || reserved != 0 || version == 0 {
        return Err(Error::damaged(name, "it is of another kind than its name says"));
    }
    if let Some(key) = seal.key(generation, name, &salt).map_err(|what| Error::damaged(name, what))? {
        key.open(0, &mut body)
            .map_err(|error| Error::damaged(name, error.to_string()))?;
    }
    Ok(body)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::KeyRing;

    fn encrypted() -> Crypto {
        Crypto::new(Some(KeyRing {
            hash: [1; 32],
            masters: vec![[2; 32], [3; 32]],
        }))
    }

    #[test]
    fn object_is_read_under_its_own_name_and_kind_only() {
        for crypto in [Crypto::new(None), encrypted()] {
            let seal = Seal::Store(&crypto);
            let object = wrap(Kind::Manifest, "checkpoints/a/1", b"body", &seal).unwrap();
            assert_eq!(unwrap(Kind::Manifest, "checkpoints/a/1", &object, &seal).unwrap(), b"body");
            assert!(unwrap(Kind::Manifest, "checkpoints/a/2", &object, &seal).is_err());
            assert!(unwrap(Kind::Order, "checkpoints/a/1", &object, &seal).is_err());
        }
        let sealed = wrap(Kind::Manifest, "n", b"a secret of the guest", &Seal::Store(&encrypted())).unwrap();
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        assert!(unwrap(Kind::Manifest, "n", &sealed, &Seal::Store(&Crypto::new(None))).is_err());
        let open = wrap(Kind::Manifest, "n", b"x", &Seal::Open).unwrap();
        assert!(unwrap(Kind::Manifest, "n", &open, &Seal::Store(&encrypted())).is_err());
    }

    #[test]
    fn newer_version_is_an_error_of_its_own() {
        let mut object = wrap(Kind::Config, "config", b"body", &Seal::Open).unwrap();
        object[8] += 1;
        let error = unwrap(Kind::Config, "config", &object, &Seal::Open).unwrap_err();
        assert!(
            matches!(
                error,
                Error::NewerVersion {
                    version: 2,
                    known: 1,
                    ..
                }
            ),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn changed_or_cut_object_is_refused(at in 0..1000_usize, bit in 0..8_u8, cut in 1..1000_usize) {
            let object = wrap(Kind::Config, "config", &[7; 100], &Seal::Open).unwrap();
            let mut changed = object.clone();
            let at = at % changed.len();
            changed[at] ^= 1 << bit;
            prop_assert!(unwrap(Kind::Config, "config", &changed, &Seal::Open).is_err());
            let cut = object.len() - 1 - cut % object.len();
            prop_assert!(unwrap(Kind::Config, "config", &object[..cut], &Seal::Open).is_err());
        }

        #[test]
        fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(unwrap(Kind::Config, "config", &bytes, &Seal::Open).is_err());
            let mut magic = MAGIC.to_vec();
            magic.extend_from_slice(&[1, 0]);
            magic.extend_from_slice(&bytes);
            prop_assert!(unwrap(Kind::Config, "config", &magic, &Seal::Open).is_err());
        }
    }
}
