// SPDX-License-Identifier: GPL-2.0-or-later
//! Answers the MAPs of a connection: which pages are holes.

use vmem::PageRange;

use super::Shared;
use super::next::NextHandler;
use super::sender::Sender;
use crate::error::Error;
use crate::holes::{Holes, MAX_HOLES};
use crate::wire::ProtocolError;
use crate::wire::frame::Type;
use crate::wire::map::encode_holes;

impl NextHandler<'_> {
    /// Answers a MAP of these pages, with one frame or several. While the program runs, the pages are taken out of the dirty log before their
    /// holes are looked for.
    pub(super) fn map(
        &mut self,
        tag: u32,
        export: usize,
        pages: PageRange,
        shared: &Shared,
        sender: &mut Sender<'_>,
    ) -> Result<(), Error> {
        if tag == 0 {
            return Err(ProtocolError::NoTag("MAP").into());
        }
        let memory = &shared.memories[export];
        let holes_of = |pages| memory.holes(pages, MAX_HOLES);
        let connection = match self {
            Self::Rounds(connection) if connection.is_first() => Some(connection),
            Self::Rounds(_) | Self::Ending { .. } => return Err(ProtocolError::LateMap.into()),
            Self::None | Self::Ended { .. } | Self::Over { .. } => None,
        };
        let mut rest = Some(pages);
        while let Some(pages) = rest {
            let holes = match &connection {
                Some(connection) => connection.map(export, pages, &mut |pages| holes_of(pages))?,
                None => holes_of(pages),
            };
            sender.send_holes(tag, export, &holes)?;
            rest = pages.split_at(holes.pages.count()).1;
        }
        Ok(())
    }
}

impl Sender<'_> {
    fn send_holes(&mut self, tag: u32, export: usize, holes: &Holes) -> Result<(), Error> {
        self.send_frame(Type::Holes, tag, &encode_holes(export as u32, holes))?;
        self.count_holes(holes.count());
        Ok(())
    }
}
