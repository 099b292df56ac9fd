// SPDX-License-Identifier: GPL-2.0
//! What another host says is not believed, and neither is what QEMU calls its memory.

use std::path::Path;

use vmem::{Access, MapHandle};

use super::Offer;
use crate::channel::Channel;
use crate::failure::Trouble;
use crate::guest::Memory;
use crate::message::Backend;
use crate::name::session_mark;
use crate::network::Security;

/// Looks at what the source wants of this host's vmemd; returns where that one finds the pages.
pub(super) fn check_offer(offer: &Offer, channel: &Channel, security: &Security) -> Result<String, Trouble> {
    let mark = session_mark(&offer.session).ok_or_else(|| Trouble::other("the source's session is no number"))?;
    for (at, backend) in offer.memory.iter().enumerate() {
        let (id, export) = (&backend.id, &backend.export);
        // The export of another move cannot be called that.
        if vmem::Name::new(export).is_err() || !export.ends_with(mark) {
            return Err(Trouble::other(format!("{export:?} is no name for an export of this move")));
        }
        let before = offer.memory.iter().take(at);
        if before.filter(|other| other.id == *id || other.export == *export).count() > 0 {
            return Err(Trouble::other(format!(
                "the source offers memory backend {id:?} or its export twice"
            )));
        }
    }
    if let Ok(port) = offer.pages.parse::<u16>() {
        let (_, mut peer) = channel
            .ends()
            .ok_or_else(|| Trouble::other("the source is not on a network"))?;
        // The address as it is, with the scope of one that is link-local.
        peer.set_port(port);
        return Ok(peer.to_string());
    }
    security.check_host(&offer.pages)?;
    Ok(offer.pages.clone())
}

/// The region of each backend that is offered, as QEMU has it.
pub(super) fn match_memory(offered: &[Backend], found: &[Memory]) -> Result<Vec<String>, Trouble> {
    let mut names = Vec::new();
    for backend in offered {
        let id = &backend.id;
        let memory = found.iter().find(|memory| memory.id == *id);
        let memory = memory.ok_or_else(|| Trouble::other(format!("QEMU here has no memory backend {id:?}")))?;
        if memory.bytes != backend.bytes {
            return Err(Trouble::other(format!(
                "memory backend {id} has {} bytes here and {} at the source",
                memory.bytes, backend.bytes
            )));
        }
        let name = memory.path.strip_prefix("/dev/vmem").ok().and_then(Path::to_str);
        let not_region = || Trouble::other(format!("memory backend {id} is {}, and no region", memory.path.display()));
        names.push(name.ok_or_else(not_region)?.to_owned());
    }
    if offered.len() == found.len() {
        Ok(names)
    } else {
        Err(Trouble::other("QEMU here has more memory backends than at the source"))
    }
}

/// What QEMU calls `/dev/vmem/NAME` may be another file: it may see another /dev, or have made a file there before there was a region.
/// And what is in a region already is not this guest's.
pub(super) fn check_region(name: &str) -> Result<(), Trouble> {
    let info = MapHandle::open(name, Access::ReadOnly).and_then(|handle| handle.info());
    let info = info.map_err(Trouble::vmem(format!("cannot look at region {name}")))?;
    if info.mappings == 0 {
        Err(Trouble::other(format!(
            "QEMU does not have region {name} mapped, but another file of that path"
        )))
    } else if info.plain || info.present != 0 || info.unreadable != 0 {
        Err(Trouble::other(format!(
            "region {name} is not empty: it has pages of another guest"
        )))
    } else {
        Ok(())
    }
}

/// Whether somebody has this region mapped.
pub(super) fn is_mapped(name: &str) -> bool {
    let info = MapHandle::open(name, Access::ReadOnly).and_then(|handle| handle.info());
    // There is no such region.
    info.is_ok_and(|info| info.plain || info.mappings > 0)
}
