// SPDX-License-Identifier: GPL-2.0-or-later
//! Names of stores and of checkpoints, as users write them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use vmem_store::objects::{Directory, Objects, Waiting};
use vmem_store::{CheckpointName, Error, GuestName, NameError, OpenOptions, PageError, Store, UserKey};

/// Where a store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A directory of this host.
    Directory(PathBuf),
    /// A prefix of a bucket in S3: `s3://BUCKET/PREFIX`. Credentials, region and endpoint are in the environment.
    #[cfg(feature = "s3")]
    S3(String),
}

impl Location {
    /// The place of the objects.
    ///
    /// # Errors
    ///
    /// The environment has no credentials, or ones that cannot be used.
    pub fn objects(&self) -> Result<Arc<dyn Objects>, Error> {
        Ok(match self {
            Self::Directory(path) => Arc::new(Directory::new(path)),
            #[cfg(feature = "s3")]
            Self::S3(url) => Arc::new(remote(url)?),
        })
    }

    /// Opens the store as [`open`](Self::open) does. From then on, a place that is away is waited for, for so long at most.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub fn open_patiently(&self, key: Option<UserKey>, patience: Duration, waiting: Arc<dyn Waiting>) -> Result<Store, Error> {
        let objects: Arc<dyn Objects> = match self {
            Self::Directory(path) => Arc::new(Directory::new(path)),
            #[cfg(feature = "s3")]
            Self::S3(url) => Arc::new(remote(url)?.with_waiting(waiting.clone())),
        };
        let mut options = OpenOptions::default();
        options.key = key;
        options.retry.patience = patience;
        options.waiting = Some(waiting);
        Store::open(objects, options)
    }

    /// Opens the store, with the key if it is encrypted.
    ///
    /// # Errors
    ///
    /// Those of [`Store::open`] and [`objects`](Self::objects).
    pub fn open(&self, key: Option<UserKey>) -> Result<Store, Error> {
        let mut options = OpenOptions::default();
        options.key = key;
        Store::open(self.objects()?, options)
    }

    /// Asks whether the store is there. This takes no key.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub fn is_there(&self) -> Result<(), Error> {
        match self.open(None) {
            Ok(_) | Err(Error::KeyNeeded) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads something of a checkpoint. All objects of a directory that is not mounted are missing, and it may have been mounted since: only
    /// what is read while the store is there says something about the page.
    ///
    /// # Errors
    ///
    /// That of `read`, or [`PageError::Away`] if it failed and the store is not there.
    pub fn read_there<T>(&self, mut read: impl FnMut() -> Result<T, PageError>) -> Result<T, PageError> {
        match read() {
            Err(PageError::Damaged(_)) => {
                self.is_there().map_err(PageError::Away)?;
                read()
            }
            read => read,
        }
    }
}

#[cfg(feature = "s3")]
fn remote(url: &str) -> Result<vmem_store::objects::Remote, Error> {
    vmem_store::objects::Remote::s3(url).map_err(|cause| Error::Object {
        action: "open",
        name: url.to_owned(),
        cause,
    })
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        #[cfg(feature = "s3")]
        if text
            .strip_prefix("s3://")
            .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
        {
            return Ok(Self::S3(text.to_owned()));
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(format!(
                "{scheme}:// is no kind of store that is known: give a directory or s3://BUCKET/PREFIX"
            ));
        }
        if text.is_empty() {
            return Err("no directory".to_owned());
        }
        Ok(Self::Directory(text.into()))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            #[cfg(feature = "s3")]
            Self::S3(url) => url.fmt(f),
        }
    }
}

/// A checkpoint of a guest: `GUEST@N`, or the latest one: `GUEST` or `GUEST@latest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// The guest.
    pub guest: GuestName,
    /// The number. `None` is the latest one.
    pub sequence: Option<u64>,
}

impl Selector {
    /// The checkpoint that this means now.
    ///
    /// # Errors
    ///
    /// Those of [`Store::latest`].
    pub fn find(&self, store: &Store) -> Result<CheckpointName, Error> {
        match self.sequence {
            None => store.latest(&self.guest),
            Some(sequence) => Ok(CheckpointName {
                guest: self.guest.clone(),
                sequence,
            }),
        }
    }
}

impl From<&CheckpointName> for Selector {
    /// This checkpoint, also when there is a later one.
    fn from(checkpoint: &CheckpointName) -> Self {
        Self {
            guest: checkpoint.guest.clone(),
            sequence: Some(checkpoint.sequence),
        }
    }
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (guest, sequence) = text
            .split_once('@')
            .map_or((text, None), |(guest, sequence)| (guest, Some(sequence)));
        let sequence =
            match sequence {
                None | Some("latest") => None,
                Some(number) => Some(number.parse().ok().filter(|number| *number > 0).ok_or_else(|| {
                    format!("{number:?} is no number of a checkpoint: GUEST@N with N from 1 on, or GUEST@latest")
                })?),
            };
        Ok(Self {
            guest: guest.parse().map_err(|error: NameError| error.to_string())?,
            sequence,
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sequence {
            None => write!(f, "{}@latest", self.guest),
            Some(sequence) => write!(f, "{}@{sequence}", self.guest),
        }
    }
}

/// A checkpoint in a store: `STORE#GUEST[@N]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The store.
    pub store: Location,
    /// The checkpoint in it.
    pub checkpoint: Selector,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A directory may have a # in its name, a guest may not.
        let (store, checkpoint) = text.rsplit_once('#').ok_or("not checkpoint:STORE#GUEST@N")?;
        Ok(Self {
            store: store.parse()?,
            checkpoint: checkpoint.parse()?,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.store, self.checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for (text, guest, sequence) in [
            ("/srv/ckpt#guest0@7", "guest0", Some(7)),
            ("/srv/a#b#guest0@latest", "guest0", None),
            #[cfg(feature = "s3")]
            ("s3://bucket/prefix#guest0@7", "guest0", Some(7)),
        ] {
            let address: Address = text.parse().expect("an address");
            assert_eq!(
                (address.checkpoint.guest.as_str(), address.checkpoint.sequence),
                (guest, sequence)
            );
            assert_eq!(address.to_string(), text);
        }
        let latest: Address = "/srv/ckpt#guest0".parse().expect("an address");
        assert_eq!(latest.to_string(), "/srv/ckpt#guest0@latest");
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in [
            "",
            "/srv/ckpt",
            "#guest0",
            "/srv#",
            "/srv#guest0@0",
            "/srv#guest0@x",
            "/srv#a/b",
            "gs://b#guest0",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
