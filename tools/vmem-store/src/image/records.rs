// SPDX-License-Identifier: GPL-2.0-or-later
//! Records of the index, read in blocks: a checkpoint's leaves lie next to each other.

use std::sync::Arc;

use crate::base::Base;
use crate::cache::Cache;
use crate::crypto::ObjectKey;
use crate::error::Error;
use crate::names::{self, WriterId};
use crate::objects::Part;
use crate::record::{HEADER_BYTES, MAX_RECORD, RecordKind, open_header, open_record};
use crate::tree::RecordRef;

/// Blocks that are kept.
const BLOCKS: usize = 64;

#[derive(Debug)]
pub(crate) struct Records {
    base: Arc<Base>,
    block_bytes: u64,
    blocks: Cache<(WriterId, u64), Vec<u8>>,
    keys: Cache<WriterId, Option<ObjectKey>>,
}

impl Records {
    pub(crate) fn new(base: Arc<Base>) -> Self {
        Self {
            block_bytes: (2 * base.objects.window()).max(64 << 10),
            base,
            blocks: Cache::new(BLOCKS),
            keys: Cache::new(usize::MAX),
        }
    }

    fn block(&self, writer: WriterId, block: u64) -> Result<Arc<Vec<u8>>, Error> {
        self.blocks.get(&(writer, block), || {
            let start = block * self.block_bytes;
            let bytes = start..start.saturating_add(self.block_bytes);
            Ok(self.base.get(&names::index(writer), Part::Within(bytes))?.bytes)
        })
    }

    fn bytes(&self, writer: WriterId, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let at = offset + bytes.len() as u64;
            let block = self.block(writer, at / self.block_bytes)?;
            let rest = block.get((at % self.block_bytes) as usize..).filter(|rest| !rest.is_empty());
            let rest = rest.ok_or_else(|| Error::damaged(names::index(writer), format!("it ends before byte {at}")))?;
            bytes.extend_from_slice(&rest[..rest.len().min(length - bytes.len())]);
        }
        Ok(bytes)
    }

    /// The contents of a record.
    pub(crate) fn read(&self, writer: WriterId, kind: RecordKind, record: &RecordRef) -> Result<Vec<u8>, Error> {
        let name = names::index(writer);
        if record.length > MAX_RECORD || record.offset > 1 << 48 {
            return Err(Error::damaged(name, "a record is too long or too far away"));
        }
        let crypto = &self.base.crypto;
        let key = self.keys.get(&writer, || {
            open_header(&name, writer, &self.bytes(writer, 0, HEADER_BYTES)?, crypto)
        })?;
        let bytes = self.bytes(writer, record.offset, record.length as usize)?;
        let opened = open_record(&name, kind, record, &bytes, (*key).as_ref(), crypto);
        if opened.is_err() {
            // What was damaged on the way is read again by the next who asks.
            let last = record.offset + u64::from(record.length.max(1)) - 1;
            (record.offset / self.block_bytes..=last / self.block_bytes).for_each(|block| self.blocks.remove(&(writer, block)));
        }
        opened
    }
}
