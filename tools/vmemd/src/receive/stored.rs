// SPDX-License-Identifier: GPL-2.0-or-later
//! `--source checkpoint:STORE#GUEST@N`: regions are filled from a checkpoint store.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;
use vmem_source::{Lane, PageSource};
use vmem_store::UserKey;
use vmem_store_source::{Address, KeyOptions, Location, OriginFile, StoredPages};

use super::Source;
use crate::failure::Failure;
use crate::privileges::{Files, User};

/// Parts of a store that a reader writes to: its lease says that what it reads is in use.
const WRITTEN: [&str; 2] = ["leases", "tmp"];

/// How long the end waits until a store has the lease back. A store that is away may not answer; the lease ends by itself.
const GIVE_BACK_LIMIT: Duration = Duration::from_secs(5);

/// What else is read: how much memory is left.
const READABLE: [&str; 2] = ["/proc", "/sys"];

/// Whether the regions may have pages of a checkpoint already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Existing {
    /// They are new.
    No,
    /// `--resume` or `--attach` was given. Nobody knows which checkpoint the pages are of.
    Attached,
    /// systemd has kept them, and knows.
    Kept,
}

/// The source of this address. The store is opened when the first lane is connected: a lease is renewed by a thread, and threads begin when
/// privileges have been given up. `existing` regions must not get pages of another checkpoint than they have.
pub(super) fn open(address: &str, key: &KeyOptions, existing: Existing) -> Result<Source, Failure> {
    let unusable = |error: Box<dyn std::error::Error + Send + Sync>| Failure::Source(vmem_source::Error::Checkpoint(error));
    let address: Address = address.parse().map_err(|error: String| unusable(error.into()))?;
    if existing == Existing::Attached && address.checkpoint.sequence.is_none() {
        let why = "--resume and --attach need the number of the checkpoint (GUEST@N): the latest may be another one than before";
        return Err(unusable(why.into()));
    }
    let existing = existing != Existing::No;
    // While this is root, and before its standard input is read for anything else.
    let key = key.read().map_err(|error| unusable(error.into()))?;
    let confinement = match &address.store {
        Location::Directory(path) => confine_to(path).map_err(|error| match existing {
            // Its regions have pages of the store: it was there, and is away now.
            true => Failure::Source(vmem_source::Error::Io(error)),
            false => unusable(format!("{}: {error}", path.display()).into()),
        })?,
        // It is reached over the network, as another vmemd is.
        #[cfg(feature = "s3")]
        Location::S3(_) => (User::NOBODY, Files::default()),
    };
    // While this is root: others believe only what belongs to the user who has started vmemd.
    let file = OriginFile::new();
    let opened: Arc<Mutex<Option<Arc<StoredPages>>>> = Arc::default();
    let (at_end, published) = (Arc::clone(&opened), Arc::clone(&opened));
    let connect = move |lane: Lane| -> Result<Box<dyn PageSource>, vmem_source::Error> {
        let pages = {
            let mut opened = opened.lock().unwrap_or_else(PoisonError::into_inner);
            match &*opened {
                Some(pages) => Arc::clone(pages),
                None => Arc::clone(opened.insert(Arc::new(stored_pages(&address, key.clone(), existing)?))),
            }
        };
        Ok(Box::new(pages.source(lane)?))
    };
    Ok(Source {
        connect: Arc::new(connect),
        endpoint: None,
        warnings: Vec::new(),
        confinement,
        at_end: Some(Box::new(move || give_back(&at_end))),
        publish: Some(Box::new(move |memories| publish(file, &published, memories))),
        // Its pages are compressed and verified.
        files: Vec::new(),
    })
}

/// Proves to others that these regions are filled from the checkpoint, as long as the file is open: a checkpoint of what is in them refers to it
/// for absent pages.
fn publish(
    file: io::Result<OriginFile>,
    opened: &Mutex<Option<Arc<StoredPages>>>,
    memories: BTreeMap<u64, String>,
) -> Option<File> {
    let pages = opened.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
    let published = file.and_then(|file| file.publish(&pages.origin(memories)));
    published
        .inspect_err(|error| {
            tracing::warn!("no proof of the regions' origin, so that checkpoints wait for absent pages: {error}")
        })
        .ok()
}

/// Threads that still read do not end with the lanes, so that they cannot be who gives the lease back.
fn give_back(opened: &Mutex<Option<Arc<StoredPages>>>) {
    let Some(pages) = opened.lock().unwrap_or_else(PoisonError::into_inner).take() else {
        return;
    };
    let (done, is_done) = mpsc::channel();
    let thread = thread::Builder::new().name("give back".to_owned());
    let started = thread.spawn(move || {
        pages.give_back();
        let _ = done.send(());
    });
    if started.is_ok() {
        let _ = is_done.recv_timeout(GIVE_BACK_LIMIT);
    }
}

fn stored_pages(address: &Address, key: Option<UserKey>, existing: bool) -> Result<StoredPages, vmem_source::Error> {
    let holder = format!("vmemd, process {}", std::process::id());
    // Of regions that exist, programs wait for pages: a removal that was killed is waited for, as a store that is away is.
    let passes = |error: &vmem_store::Error| matches!(error, vmem_store::Error::NoStore | vmem_store::Error::BeingRemoved { .. });
    let is_away = |error: &vmem_store::Error| error.is_transient() || (existing && passes(error));
    StoredPages::open(address, key, &holder).map_err(|error| match error {
        vmem_store_source::Error::Store(error) if is_away(&error) => vmem_source::Error::Io(io::Error::other(error)),
        error => vmem_source::Error::Checkpoint(error.into()),
    })
}

/// A store belongs to one user and is closed to all others. vmemd becomes that user, and opens no other files.
fn confine_to(store: &Path) -> io::Result<(User, Files)> {
    // Where it is does not depend on where vmemd was started.
    let store = store.canonicalize()?;
    let metadata = fs::metadata(&store)?;
    let (uid, gid) = (metadata.uid(), metadata.gid());
    let writable: Vec<PathBuf> = WRITTEN.map(|part| store.join(part)).to_vec();
    for part in &writable {
        match DirBuilder::new().mode(0o700).create(part) {
            Ok(()) => give(part, uid, gid)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    let readable = READABLE.map(PathBuf::from).into_iter().chain([store]).collect();
    Ok((User { uid, gid }, Files { readable, writable }))
}

/// Gives a directory to a user. That user owns the directory around it, and may have put a link in its place, which root must not follow.
fn give(directory: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::DIRECTORY | OFlags::NOFOLLOW).bits() as i32)
        .open(directory)?;
    fchown(opened, Some(uid), Some(gid))
}

#[cfg(test)]
mod tests {
    use vmem_store::{InitOptions, Store};

    use super::*;

    #[test]
    fn reader_of_a_store_is_its_owner_and_writes_leases_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let (user, files) = confine_to(directory.path()).expect("a directory");
        let metadata = fs::metadata(directory.path()).expect("a directory");
        assert_eq!((user.uid, user.gid), (metadata.uid(), metadata.gid()));
        let store = directory.path().canonicalize().expect("a directory");
        assert_eq!(files.writable, [store.join("leases"), store.join("tmp")]);
        assert!(files.readable.contains(&store) && !files.readable.iter().any(|path| path.starts_with("/etc")));
        confine_to(directory.path()).expect("they exist already");
    }

    #[test]
    fn directory_is_not_given_away_through_a_link() {
        let directory = tempfile::tempdir().expect("a directory");
        let (target, link) = (directory.path().join("target"), directory.path().join("link"));
        fs::create_dir(&target).expect("a directory");
        std::os::unix::fs::symlink(&target, &link).expect("a link");
        let metadata = fs::metadata(&target).expect("a directory");
        give(&target, metadata.uid(), metadata.gid()).expect("it is a directory");
        assert!(give(&link, metadata.uid(), metadata.gid()).is_err());
    }

    #[test]
    fn store_that_does_not_exist_is_no_lost_source() {
        let failed = open("/nonexistent/store#guest0@1", &KeyOptions::default(), Existing::No)
            .err()
            .expect("no store");
        assert_eq!(failed.code(), 3, "{failed}");
        assert_eq!(
            open("/tmp", &KeyOptions::default(), Existing::No)
                .err()
                .expect("no guest")
                .code(),
            3
        );
        // The same for regions that were filled from it: it is away.
        let away = open("/nonexistent/store#guest0@1", &KeyOptions::default(), Existing::Attached)
            .err()
            .expect("no store");
        assert_eq!(away.code(), 2, "{away}");
    }

    #[test]
    fn region_that_exists_needs_the_number_of_its_checkpoint() {
        let directory = tempfile::tempdir().expect("a directory");
        let address = |checkpoint| format!("{}#guest0{checkpoint}", directory.path().display());
        let failed = open(&address("@latest"), &KeyOptions::default(), Existing::Attached)
            .err()
            .expect("not known which");
        assert!(format!("{failed:?}").contains("GUEST@N"), "{failed:?}");
        assert!(
            open(&address("@3"), &KeyOptions::default(), Existing::Attached).is_ok()
                && open(&address(""), &KeyOptions::default(), Existing::No).is_ok()
        );
    }

    #[test]
    fn encrypted_store_takes_its_own_key_and_says_so() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = directory.path().join("store");
        let key = UserKey::generate().expect("randomness");
        let location: Location = store.display().to_string().parse().expect("a directory");
        let mut init = InitOptions::default();
        init.key = Some(key.clone());
        Store::init(
            location.objects().expect("a place"),
            &init,
            vmem_store::OpenOptions::default(),
        )
        .expect("a store");
        let failure = |key: Option<&UserKey>| {
            let command = key.map(|key| format!("echo {}", key.to_text().trim_end()));
            let options = KeyOptions {
                key_command: command,
                key_file: None,
            };
            let opened = open(&format!("{}#guest0@1", store.display()), &options, Existing::No).expect("a source");
            let failed = (opened.connect)(Lane::Urgent).err().expect("no checkpoint");
            vmem_cli::chain(&failed)
        };
        let other = UserKey::generate().expect("randomness");
        assert!(failure(None).contains("it needs a key"), "{}", failure(None));
        assert!(
            failure(Some(&other)).contains("does not open this store"),
            "{}",
            failure(Some(&other))
        );
        assert!(
            failure(Some(&key)).contains("no checkpoint guest0@1"),
            "{}",
            failure(Some(&key))
        );
    }
}
