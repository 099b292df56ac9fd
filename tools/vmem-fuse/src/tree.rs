// SPDX-License-Identifier: GPL-2.0-or-later
//! The inodes that the kernel knows.
//!
//! A number is given out with the answer to a look-up, means one thing for ever, and is kept until the kernel has forgotten it as often as it
//! has looked it up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmem_store::GuestName;

use crate::checkpoint::Checkpoint;

/// The number of the root.
pub(crate) const ROOT: u64 = 1;

/// What an inode is.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    /// The directory of all guests.
    Root,
    /// The directory of a guest.
    Guest(GuestName),
    /// The directory of a checkpoint.
    Checkpoint(Arc<Checkpoint>),
    /// A file of a checkpoint.
    File {
        checkpoint: Arc<Checkpoint>,
        /// The number of the file in it.
        number: usize,
        /// Bytes that are no holes.
        stored: u64,
    },
}

impl Node {
    /// Whether a node that has the same name in the same directory is the same one.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Checkpoint(one), Self::Checkpoint(other)) => one.revision() == other.revision(),
            _ => true,
        }
    }
}

#[derive(Debug)]
struct Inode {
    node: Node,
    parent: u64,
    name: String,
    lookups: u64,
}

#[derive(Debug)]
struct State {
    inodes: HashMap<u64, Inode>,
    names: HashMap<(u64, String), u64>,
    last: u64,
}

#[derive(Debug)]
pub(crate) struct Tree(Mutex<State>);

impl Tree {
    pub(crate) fn new() -> Self {
        let root = Inode {
            node: Node::Root,
            parent: ROOT,
            name: String::new(),
            // The kernel does not look it up.
            lookups: u64::MAX,
        };
        Self(Mutex::new(State {
            inodes: [(ROOT, root)].into(),
            names: HashMap::new(),
            last: ROOT,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a number means.
    pub(crate) fn get(&self, number: u64) -> Option<Node> {
        self.lock().inodes.get(&number).map(|inode| inode.node.clone())
    }

    /// The number of the directory that an inode is in.
    pub(crate) fn parent(&self, number: u64) -> Option<u64> {
        self.lock().inodes.get(&number).map(|inode| inode.parent)
    }

    /// The inode of a name, if the kernel knows it.
    pub(crate) fn known(&self, parent: u64, name: &str) -> Option<(u64, Node)> {
        let state = self.lock();
        let number = *state.names.get(&(parent, name.to_owned()))?;
        Some((number, state.inodes.get(&number)?.node.clone()))
    }

    /// Counts a look-up whose answer is sent, and returns the inode's number.
    pub(crate) fn remember(&self, parent: u64, name: &str, node: Node) -> u64 {
        let mut state = self.lock();
        let key = (parent, name.to_owned());
        if let Some(number) = state.names.get(&key).copied() {
            if let Some(inode) = state.inodes.get_mut(&number).filter(|inode| inode.node.is(&node)) {
                inode.lookups += 1;
                return number;
            }
        }
        state.last += 1;
        let number = state.last;
        let inode = Inode {
            node,
            parent,
            name: key.1.clone(),
            lookups: 1,
        };
        state.inodes.insert(number, inode);
        state.names.insert(key, number);
        number
    }

    /// Takes back look-ups.
    pub(crate) fn forget(&self, number: u64, lookups: u64) {
        let mut state = self.lock();
        let Some(inode) = state.inodes.get_mut(&number).filter(|_| number != ROOT) else {
            return;
        };
        inode.lookups = inode.lookups.saturating_sub(lookups);
        if inode.lookups == 0 {
            if let Some(gone) = state.inodes.remove(&number) {
                let key = (gone.parent, gone.name);
                // The name may mean a newer inode by now.
                if state.names.get(&key) == Some(&number) {
                    state.names.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestStore;

    fn guest(name: &str) -> Node {
        Node::Guest(name.parse().expect("a name"))
    }

    #[test]
    fn inode_is_kept_until_all_look_ups_are_forgotten() {
        let tree = Tree::new();
        let number = tree.remember(ROOT, "a", guest("a"));
        assert_eq!(tree.remember(ROOT, "a", guest("a")), number);
        let other = tree.remember(ROOT, "b", guest("b"));
        assert_ne!(other, number);
        tree.forget(number, 1);
        assert!(matches!(tree.known(ROOT, "a"), Some((known, Node::Guest(_))) if known == number));
        tree.forget(number, 1);
        assert!(tree.get(number).is_none() && tree.known(ROOT, "a").is_none());
        assert_eq!(tree.parent(other), Some(ROOT));
        let again = tree.remember(ROOT, "a", guest("a"));
        assert!(again > other, "a number means one thing for ever");
        // More than there were, and what does not exist.
        tree.forget(other, 9);
        tree.forget(ROOT, u64::MAX);
        tree.forget(77, 1);
        assert!(tree.get(other).is_none() && tree.get(ROOT).is_some());
    }

    #[test]
    fn checkpoint_that_was_rewritten_is_another_inode() {
        let test = TestStore::new();
        let manifest = test.store.manifest(&test.name(1)).expect("a manifest");
        let mut newer = manifest.clone();
        newer.revision = 1;
        let node = |manifest: &vmem_store::Manifest| Node::Checkpoint(Arc::new(Checkpoint::new(manifest.clone())));
        let tree = Tree::new();
        let first = tree.remember(2, "1", node(&manifest));
        assert_eq!(tree.remember(2, "1", node(&manifest)), first);
        let second = tree.remember(2, "1", node(&newer));
        assert_ne!(first, second);
        tree.forget(first, 2);
        assert!(matches!(tree.known(2, "1"), Some((known, _)) if known == second));
    }
}
