// SPDX-License-Identifier: GPL-2.0-or-later
//! What a checkpoint goes on from.

use vmem_store::{BackendKind, CheckpointName, Manifest, WriteOptions, Writer};

use super::{Checkpointer, Memories};
use crate::error::Error;
use crate::memory::Tracked;
use crate::stored_origin::StoredOrigin;

impl Checkpointer {
    /// The checkpoint of the store from which memory is filled whose absent pages need not be waited for.
    fn find_origin(&self) -> Result<Option<StoredOrigin>, Error> {
        let mut incomplete = Vec::new();
        if let Memories::Tracked(memories) = &self.memories {
            for memory in memories {
                if memory.may_refer()? {
                    incomplete.push(memory.described());
                }
            }
        }
        match incomplete.as_slice() {
            [] => Ok(None),
            incomplete => StoredOrigin::find(incomplete, &self.store),
        }
    }

    /// Fails before the guest is stopped if nobody brings the pages that would be waited for.
    pub(super) fn check_served(&self, origin: Option<&StoredOrigin>) -> Result<(), Error> {
        let Memories::Tracked(memories) = &self.memories else {
            return Ok(());
        };
        for memory in memories {
            let is_filled = origin.is_some_and(|origin| origin.names.contains_key(&memory.backend.id));
            if let Some(error) = memory.unserved()?.filter(|_| !is_filled) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Begins a checkpoint in the store: what can fail there fails before the guest is stopped. Returns also to which checkpoint it can refer
    /// for absent pages: those that are not written are as the parent has them.
    pub(super) fn writer(&mut self) -> Result<(Writer, Option<StoredOrigin>), Error> {
        let origin = self.find_origin()?;
        if let Some(latest) = &self.latest {
            match self.begin_from(Some(latest), None) {
                // Somebody has removed it. Its pages are not in the log any more.
                Err(Error::Store(vmem_store::Error::NoCheckpoint(_))) => {
                    if let Memories::Tracked(memories) = &mut self.memories {
                        memories.iter_mut().for_each(Tracked::owe_all);
                    }
                    self.latest = None;
                }
                begun => return Ok((begun?, origin.filter(|origin| origin.goes_on(self.origin.as_ref())))),
            }
        }
        if let Some(origin) = origin {
            match self.begin_from(Some(&origin.checkpoint), Some(&origin)) {
                // All pages are waited for.
                Err(Error::Store(vmem_store::Error::NoCheckpoint(_))) => {}
                begun => return Ok((begun?, Some(origin))),
            }
        }
        let parent = match self.store.latest(&self.guest) {
            Ok(latest) => Some(latest),
            Err(vmem_store::Error::NoCheckpoints(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let Memories::Clone(memory) = &self.memories else {
            return Ok((self.begin_from(parent.as_ref(), None)?, None));
        };
        // A checkpoint with other memory cannot be what this one goes on from: pages that are not written are the parent's.
        let base = &memory.base.checkpoint;
        let parent = match parent {
            Some(parent) if has_memories(&self.store.manifest(&parent)?, &self.memories.sizes()) => parent,
            _ => base.clone(),
        };
        Ok((self.begin_from(Some(&parent), None)?, None))
    }

    fn begin_from(&self, parent: Option<&CheckpointName>, origin: Option<&StoredOrigin>) -> Result<Writer, Error> {
        let memories = self.memories.sizes();
        let mut options = WriteOptions::default();
        if let Some(origin) = origin {
            options.parent_names = origin.names.clone();
        }
        options.holder = format!(
            "vmemctl checkpoint create, guest {}, process {}",
            self.guest,
            std::process::id()
        );
        Ok(self.store.begin(&self.guest, parent, &memories, &options)?)
    }
}

/// Whether a checkpoint has these memories and no others.
fn has_memories(manifest: &Manifest, memories: &[(String, u64)]) -> bool {
    let found = manifest.backends.iter().filter(|backend| backend.kind == BackendKind::Memory);
    let has = |(name, bytes): &(String, u64)| found.clone().any(|backend| backend.name == *name && backend.bytes == *bytes);
    found.clone().count() == memories.len() && memories.iter().all(has)
}
