// SPDX-License-Identifier: GPL-2.0

//! The registry of all regions.

use super::{
    name::Name,
    region::Region, //
};
use crate::sys::{
    global::global_mutex,
    node::{
        Access,
        Node, //
    },
    shared::InodeId, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

/// The maximal number of named regions.
pub(crate) const MAX_NODES: u32 = 4096;

const MINOR_WORDS: usize = MAX_NODES as usize / 64;

global_mutex! {
    static REGISTRY: Mutex<Registry> = Registry::EMPTY, initialized by init;
}

static NEXT_ID: Atomic<u64> = Atomic::new(1);

/// All regions.
struct Registry {
    entries: KVec<Entry>,
    /// Minor numbers in use.
    minors: [u64; MINOR_WORDS],
    /// Where the search for a free minor number begins. A process that is just opening a node that
    /// has been removed must not get another region with the same number.
    next_minor: u32,
}

struct Entry {
    region: Arc<Region>,
    handles: usize,
    node: Option<NamedNode>,
}

struct NamedNode {
    name: Name,
    minor: u32,
    /// Of the file. It is the node's until it is changed.
    access: Access,
    _node: Node,
}

/// A region with a name, as it was when it was looked up. Other than a [`Handle`], it does not keep
/// the name.
pub(crate) struct NamedRegion {
    /// The region.
    pub(crate) region: Arc<Region>,
    /// Its name.
    pub(crate) name: Name,
    /// Mode and owner of its file.
    pub(crate) access: Access,
}

impl Entry {
    fn named(&self) -> Option<NamedRegion> {
        let node = self.node.as_ref()?;
        Some(NamedRegion {
            region: self.region.clone(),
            name: node.name,
            access: node.access,
        })
    }
}

impl Registry {
    const EMPTY: Self = Self {
        entries: KVec::new(),
        minors: [0; MINOR_WORDS],
        next_minor: 0,
    };

    /// Another handle of the region for which `matches` holds.
    fn find(&mut self, matches: impl Fn(&Entry) -> bool) -> Option<Handle> {
        let entry = self.entries.iter_mut().find(|entry| matches(entry))?;
        entry.handles += 1;
        Some(Handle(entry.region.clone()))
    }

    fn free_minor(&self) -> Option<u32> {
        let is_free = |minor: &u32| {
            let word = self.minors.get(*minor as usize / 64);
            word.is_some_and(|word| word & (1 << (minor % 64)) == 0)
        };
        (0..MAX_NODES)
            .map(|step| (self.next_minor + step) % MAX_NODES)
            .find(is_free)
    }

    fn toggle_minor(&mut self, minor: u32) {
        if let Some(word) = self.minors.get_mut(minor as usize / 64) {
            *word ^= 1 << (minor % 64);
        }
    }
}

/// A reference to a region. With the last handle, the region and its name are removed.
pub(crate) struct Handle(Arc<Region>);

impl Handle {
    /// The region.
    pub(crate) fn region(&self) -> &Arc<Region> {
        &self.0
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut registry = REGISTRY.lock();
        let id = self.0.id();
        let Some(at) = registry
            .entries
            .iter()
            .position(|entry| entry.region.id() == id)
        else {
            return;
        };
        let Some(entry) = registry.entries.get_mut(at) else {
            return;
        };
        entry.handles -= 1;
        if entry.handles > 0 {
            return;
        }
        // The node is removed with the lock held, so that its name can be used again at once. The
        // region itself is dropped with `self`.
        if let Ok(entry) = registry.entries.remove(at) {
            if let Some(node) = entry.node {
                registry.toggle_minor(node.minor);
            }
        }
        if registry.entries.is_empty() {
            // A static is not dropped when the module is unloaded.
            registry.entries = KVec::new();
        }
    }
}

/// A number for a new region.
pub(crate) fn next_id() -> u64 {
    NEXT_ID.fetch_add(1u64, Relaxed)
}

/// Adds a region, with a node if it has a name. `EEXIST` if the name is in use, `ENOSPC` if there
/// are too many named regions.
pub(crate) fn add(region: Arc<Region>, named: Option<(Name, Access)>) -> Result<Handle> {
    let mut registry = REGISTRY.lock();
    let node = match named {
        None => None,
        Some((name, access)) => {
            let taken = |entry: &Entry| entry.node.as_ref().is_some_and(|node| node.name == name);
            if registry.entries.iter().any(taken) {
                return Err(EEXIST);
            }
            let minor = registry.free_minor().ok_or(ENOSPC)?;
            let node = Node::new(name.as_c_str()?, minor, access)?;
            Some(NamedNode {
                name,
                minor,
                access,
                _node: node,
            })
        }
    };
    let minor = node.as_ref().map(|node| node.minor);
    let entry = Entry {
        region: region.clone(),
        handles: 1,
        node,
    };
    // This is the last step that can fail: an empty list with capacity would be leaked by the
    // module.
    registry.entries.push(entry, GFP_KERNEL)?;
    if let Some(minor) = minor {
        registry.toggle_minor(minor);
        registry.next_minor = (minor + 1) % MAX_NODES;
    }
    // Only now: the drop of a handle looks for its entry, and takes the lock.
    Ok(Handle(region))
}

/// The region with this number.
pub(crate) fn find_id(id: u64) -> Result<Handle> {
    REGISTRY
        .lock()
        .find(|entry| entry.region.id() == id)
        .ok_or(ENOENT)
}

/// The region that this memory belongs to.
pub(crate) fn find_memory(memory: InodeId) -> Result<Handle> {
    let matches = |region: &Region| InodeId::of_region(region.staging()) == memory;
    REGISTRY
        .lock()
        .find(|entry| matches(&entry.region))
        .ok_or(ENOENT)
}

/// The region with this name.
pub(crate) fn find_name(name: Name) -> Result<Handle> {
    REGISTRY
        .lock()
        .find(|entry| entry.node.as_ref().is_some_and(|node| node.name == name))
        .ok_or(ENOENT)
}

/// The region whose node has this minor number.
pub(crate) fn find_minor(minor: u32) -> Result<Handle> {
    REGISTRY
        .lock()
        .find(|entry| entry.node.as_ref().is_some_and(|node| node.minor == minor))
        .ok_or(ENXIO)
}

/// The named region for which `matches` holds.
fn find_named(matches: impl Fn(&Region, Name) -> bool) -> Option<NamedRegion> {
    let registry = REGISTRY.lock();
    let mut entries = registry.entries.iter();
    let entry = entries.find(|entry| {
        let node = entry.node.as_ref();
        node.is_some_and(|node| matches(&entry.region, node.name))
    })?;
    entry.named()
}

/// The region with this name, for a look at it.
pub(crate) fn look_up_name(name: Name) -> Result<NamedRegion> {
    find_named(|_, other| other == name).ok_or(ENOENT)
}

/// The region with this number, if it has a name, for a look at it.
pub(crate) fn look_up_id(id: u64) -> Result<NamedRegion> {
    find_named(|region, _| region.id() == id).ok_or(ENOENT)
}

/// The region with a name whose number is the next one after `id`.
pub(crate) fn next_named(id: u64) -> Option<NamedRegion> {
    let registry = REGISTRY.lock();
    let later = registry
        .entries
        .iter()
        .filter(|entry| entry.region.id() > id);
    later
        .filter(|entry| entry.node.is_some())
        .min_by_key(|entry| entry.region.id())?
        .named()
}

/// Changes mode and owner of the file of a region.
pub(crate) fn set_access(id: u64, access: Access) -> Result {
    let mut registry = REGISTRY.lock();
    let mut entries = registry.entries.iter_mut();
    let entry = entries.find(|entry| entry.region.id() == id);
    let node = entry.and_then(|entry| entry.node.as_mut()).ok_or(ENOENT)?;
    node.access = access;
    Ok(())
}
