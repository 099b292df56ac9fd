// SPDX-License-Identifier: GPL-2.0-or-later
//! The file system without FUSE: which directories and files there are, and what is in them.

use std::sync::Arc;

use fuser::FileAttr;
use vmem_pages::PAGE_SIZE;
use vmem_store::{CheckpointName, GuestName, PageError, Store};
use vmem_store_source::Location;

use crate::attributes::attributes;
use crate::blocks::stored;
use crate::catalog::Catalog;
use crate::checkpoint::{Checkpoint, Contents};
use crate::error::Error;
use crate::images::Images;
use crate::open_file::{OpenContents, OpenFile};
use crate::tree::{Node, Tree};

/// The number of an inode that the kernel does not know yet, in the listing of a directory. (libfuse has the same one.)
const UNKNOWN: u64 = u32::MAX as u64;

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// Its inode's number.
    pub(crate) number: u64,
    pub(crate) is_directory: bool,
    pub(crate) name: String,
}

/// A store as a tree of files. All methods but [`attributes`](Self::attributes) may wait for the store.
#[derive(Debug)]
pub(crate) struct View {
    store: Store,
    location: Location,
    catalog: Catalog,
    images: Images,
    pub(crate) tree: Tree,
}

impl View {
    /// `holder` says to a person who holds the leases on what is open.
    pub(crate) fn new(store: Store, location: Location, holder: String) -> Self {
        Self {
            catalog: Catalog::new(store.clone(), location.clone()),
            images: Images::new(store.clone(), location.clone(), holder),
            tree: Tree::new(),
            store,
            location,
        }
    }

    fn node(&self, number: u64) -> Result<Node, Error> {
        self.tree.get(number).ok_or(Error::NotFound)
    }

    /// What stat(2) says of a node with this number. Waits for nothing.
    pub(crate) fn attributes(&self, number: u64, node: &Node) -> FileAttr {
        attributes(number, node, &self.catalog.known())
    }

    /// The name of a node, for messages.
    pub(crate) fn label(&self, number: u64) -> String {
        match self.tree.get(number) {
            Some(Node::Root) => "the guests".to_owned(),
            Some(Node::Guest(guest)) => guest.to_string(),
            Some(Node::Checkpoint(checkpoint)) => checkpoint.name().to_string(),
            Some(Node::File { checkpoint, number, .. }) => checkpoint.label(number),
            None => format!("inode {number}"),
        }
    }

    /// What has this name in a directory.
    pub(crate) fn lookup(&self, parent: u64, name: &str) -> Result<Node, Error> {
        match self.node(parent)? {
            Node::Root => {
                let guest: GuestName = name.parse().map_err(|_| Error::NotFound)?;
                let listing = self.catalog.fresh()?;
                listing.guests.get(&guest).ok_or(Error::NotFound)?;
                Ok(Node::Guest(guest))
            }
            Node::Guest(guest) => self.checkpoint(parent, guest, name),
            Node::Checkpoint(checkpoint) => self.file(parent, checkpoint, name),
            Node::File { .. } => Err(Error::NotDirectory),
        }
    }

    fn checkpoint(&self, parent: u64, guest: GuestName, name: &str) -> Result<Node, Error> {
        // "07" is not the name of checkpoint 7.
        let sequence: u64 = name.parse().map_err(|_| Error::NotFound)?;
        if sequence.to_string() != name {
            return Err(Error::NotFound);
        }
        let listing = self.catalog.fresh()?;
        let listed = listing.guests.get(&guest).and_then(|guest| guest.checkpoints.get(&sequence));
        let revision = *listed.ok_or(Error::NotFound)?;
        if let Some((_, Node::Checkpoint(known))) = self.tree.known(parent, name) {
            if known.revision() >= revision {
                return Ok(Node::Checkpoint(known));
            }
        }
        let checkpoint = CheckpointName { guest, sequence };
        let read = || self.store.manifest(&checkpoint).map_err(PageError::from);
        let manifest = self.location.read_there(read)?;
        Ok(Node::Checkpoint(Arc::new(Checkpoint::new(manifest))))
    }

    fn file(&self, parent: u64, checkpoint: Arc<Checkpoint>, name: &str) -> Result<Node, Error> {
        if let Some((_, known)) = self.tree.known(parent, name) {
            return Ok(known);
        }
        let number = checkpoint.find(name).ok_or(Error::NotFound)?;
        let file = checkpoint.files().get(number).ok_or(Error::NotFound)?;
        let stored = match file.contents {
            Contents::Backend(backend) => {
                let image = || self.store.image(checkpoint.name()).map_err(PageError::from);
                let open = || Ok(self.location.read_there(image)?);
                stored(open, backend, file.bytes.div_ceil(PAGE_SIZE as u64))?
            }
            Contents::Manifest | Contents::Statistics => file.bytes,
        };
        Ok(Node::File {
            checkpoint,
            number,
            stored,
        })
    }

    /// What is in a directory, itself and the one above included.
    pub(crate) fn list(&self, number: u64) -> Result<Vec<Item>, Error> {
        let above = self.tree.parent(number).ok_or(Error::NotFound)?;
        let names: Vec<(String, bool)> = match self.node(number)? {
            Node::Root => {
                let listing = self.catalog.fresh()?;
                listing.guests.keys().map(|guest| (guest.to_string(), true)).collect()
            }
            Node::Guest(guest) => {
                let listing = self.catalog.fresh()?;
                let guest = listing.guests.get(&guest).ok_or(Error::NotFound)?;
                guest
                    .checkpoints
                    .keys()
                    .map(|sequence| (sequence.to_string(), true))
                    .collect()
            }
            Node::Checkpoint(checkpoint) => checkpoint.files().iter().map(|file| (file.name.clone(), false)).collect(),
            Node::File { .. } => return Err(Error::NotDirectory),
        };
        let directory = |number, name: &str| Item {
            number,
            is_directory: true,
            name: name.to_owned(),
        };
        let items = names.into_iter().map(|(name, is_directory)| Item {
            number: self.tree.known(number, &name).map_or(UNKNOWN, |(number, _)| number),
            is_directory,
            name,
        });
        Ok([directory(number, "."), directory(above, "..")]
            .into_iter()
            .chain(items)
            .collect())
    }

    /// Opens a file, with a lease on its checkpoint if its contents are in the store.
    pub(crate) fn open(&self, number: u64) -> Result<OpenFile, Error> {
        let Node::File { checkpoint, number, .. } = self.node(number)? else {
            return Err(Error::IsDirectory);
        };
        let file = checkpoint.files().get(number).ok_or(Error::NotFound)?;
        let contents = match file.contents {
            Contents::Backend(backend) => OpenContents::Backend {
                image: self.images.hold(checkpoint.name())?,
                location: self.location.clone(),
                number: backend,
                bytes: file.bytes,
            },
            contents => OpenContents::Text(checkpoint.text(contents).unwrap_or_default()),
        };
        let label = checkpoint.label(number);
        Ok(OpenFile { label, contents })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::FRESH;
    use crate::testing::{PAGES, TestStore, contents};
    use crate::tree::ROOT;

    fn view(test: &TestStore) -> View {
        View::new(test.store.clone(), test.location.clone(), "a test".to_owned())
    }

    /// Walks as the kernel does.
    fn walk(view: &View, path: &str) -> Result<u64, Error> {
        path.split('/').try_fold(ROOT, |parent, name| {
            let node = view.lookup(parent, name)?;
            Ok(view.tree.remember(parent, name, node))
        })
    }

    fn names(view: &View, number: u64) -> Vec<String> {
        let items = view.list(number).expect("a directory");
        items.into_iter().map(|item| item.name).collect()
    }

    #[test]
    fn guests_have_checkpoints_and_these_have_files() {
        let test = TestStore::new();
        let view = view(&test);
        assert_eq!(names(&view, ROOT), [".", "..", "guest0"]);
        assert_eq!(names(&view, walk(&view, "guest0").expect("a guest")), [".", "..", "1"]);
        let directory = walk(&view, "guest0/1").expect("a checkpoint");
        let files = ["ram.raw", "device-state", "manifest.json", "stats.json"];
        assert_eq!(names(&view, directory)[2..], files);
        let number = walk(&view, "guest0/1/ram.raw").expect("a file");
        assert_eq!(walk(&view, "guest0/1/ram.raw"), Ok(number));
        let listed = view.list(directory).expect("a directory");
        assert_eq!((listed[2].number, listed[3].number), (number, UNKNOWN));
        assert_eq!(
            (listed[0].number, listed[1].number),
            (directory, walk(&view, "guest0").expect("a guest"))
        );
        let attributes = view.attributes(number, &view.node(number).expect("a file"));
        assert_eq!((attributes.size, attributes.blocks), (PAGES * PAGE_SIZE as u64, 33 * 8));
        assert_eq!((attributes.perm, attributes.kind), (0o400, fuser::FileType::RegularFile));
        let file = view.open(number).expect("a file");
        assert_eq!(file.read(0, contents().len() as u32), Ok(contents()));
        assert_eq!(file.label, "guest0@1/ram.raw");
        for (path, error) in [
            ("guest1", Error::NotFound),
            ("-x", Error::NotFound),
            ("guest0/2", Error::NotFound),
            ("guest0/01", Error::NotFound),
            ("guest0/+1", Error::NotFound),
            ("guest0/1/ram", Error::NotFound),
            ("guest0/1/ram.raw/x", Error::NotDirectory),
        ] {
            assert_eq!(walk(&view, path), Err(error), "{path}");
        }
        assert!(matches!(view.open(directory), Err(Error::IsDirectory)));
        assert_eq!(view.list(number), Err(Error::NotDirectory));
        assert_eq!(view.list(99), Err(Error::NotFound));
    }

    #[test]
    fn checkpoint_that_is_removed_vanishes_and_one_that_is_open_stays() {
        let test = TestStore::new();
        test.checkpoint();
        let view = view(&test);
        let first = walk(&view, "guest0/1/ram.raw").expect("a file");
        let open = view.open(walk(&view, "guest0/2/ram.raw").expect("a file")).expect("a file");
        test.store.remove(&test.name(1)).expect("nobody reads it");
        assert!(test.store.remove(&test.name(2)).is_err(), "it is open");
        assert!(matches!(view.open(first), Err(Error::NotFound)));
        std::thread::sleep(FRESH);
        assert_eq!(walk(&view, "guest0/1"), Err(Error::NotFound));
        drop(open);
        test.store.remove(&test.name(2)).expect("nobody reads it");
        std::thread::sleep(FRESH);
        assert_eq!(names(&view, ROOT), [".", ".."]);
    }
}
