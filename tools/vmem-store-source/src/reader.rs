// SPDX-License-Identifier: GPL-2.0-or-later
//! Reads pages of a checkpoint in threads of its own, since a store may be far away.

mod workers;

use std::sync::Arc;

use vmem::PageRange;
use vmem_source::answer::Chunk;
use vmem_source::peer::{check_fetch, check_map};
use vmem_source::{Answer, Error, Export, Lane, PageSource, Readiness, Reply};
use vmem_store::{Image, Touch};

use workers::{Answers, Checkpoint, Done, Read, Role, Task, Workers};

/// Pages of one piece of work, and of one answer.
const PIECE: u64 = Chunk::MAX_DATA_PAGES as u64;

/// Pages up to which short runs are read as one piece of work: as many as a frame has, unless its store was made otherwise. More would have the
/// threads read the store out of order.
const TOGETHER: u64 = 16;

/// Asks the store whether it is there. An error says why it is not.
pub type IsThere = Arc<dyn Fn() -> Result<(), vmem_store::Error> + Send + Sync>;

/// In which order a whole checkpoint is best read.
pub(crate) type Order = Arc<dyn Fn() -> Result<Vec<Touch>, vmem_store::Error> + Send + Sync>;

/// A checkpoint as a source, for one lane.
pub struct ImageSource {
    workers: Workers,
    /// The worker for pages that nobody waits for, of the urgent lane.
    ahead: Option<Workers>,
    answers: Arc<Answers>,
    exports: Vec<Export>,
    order: Order,
    /// Pages that were fetched and are not answered.
    outstanding: u64,
    /// The same of pages that a map was asked for.
    unmapped: u64,
    current: Option<Read>,
}

impl ImageSource {
    pub(crate) fn new(
        image: Arc<Image>,
        exports: Vec<Export>,
        backends: Vec<usize>,
        is_there: IsThere,
        order: Order,
        lane: Lane,
    ) -> Result<Self, Error> {
        let checkpoint = Checkpoint {
            image,
            backends,
            is_there,
        };
        let (checkpoint, answers) = (Arc::new(checkpoint), Arc::new(Answers::new()?));
        let start = |role| Workers::start(Arc::clone(&checkpoint), Arc::clone(&answers), role);
        let (workers, ahead) = match lane {
            Lane::Urgent => (start(Role::Demand)?, Some(start(Role::Ahead)?)),
            Lane::Stream => (start(Role::Stream)?, None),
        };
        Ok(Self {
            workers,
            ahead,
            answers,
            exports,
            order,
            outstanding: 0,
            unmapped: 0,
            current: None,
        })
    }

    /// Notes that these pages are outstanding from now on.
    fn begin(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), Error> {
        check_fetch(&self.exports, export, ranges)?;
        self.outstanding += ranges.iter().map(|range| range.count()).sum::<u64>();
        Ok(())
    }
}

/// Tasks that read `ranges` in pieces of at most [`PIECE`] pages. Each piece is of one run, or of several short ones if they are read `together`.
fn reads(export: usize, ranges: &[PageRange], together: bool) -> Vec<Task> {
    let mut pieces: Vec<(u64, Vec<PageRange>)> = Vec::new();
    for range in ranges {
        let mut rest = Some(*range);
        while let Some(pages) = rest {
            let room = match pieces.last() {
                Some((count, _)) if together && *count < TOGETHER => TOGETHER - count,
                _ => {
                    pieces.push((0, Vec::new()));
                    PIECE
                }
            };
            let (first, after) = pages.split_at(room);
            if let (Some(first), Some((count, piece))) = (first, pieces.last_mut()) {
                *count += first.count();
                piece.push(first);
            }
            rest = after;
        }
    }
    pieces.into_iter().map(|(_, piece)| Task::Read(export, piece)).collect()
}

impl PageSource for ImageSource {
    fn exports(&self) -> &[Export] {
        &self.exports
    }

    fn fetch(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), Error> {
        self.begin(export, ranges)?;
        // Each page that somebody waits for is answered as soon as it is read.
        let together = self.ahead.is_none();
        self.workers.add(reads(export, ranges, together));
        Ok(())
    }

    fn fetch_ahead(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), Error> {
        self.begin(export, ranges)?;
        self.ahead.as_ref().unwrap_or(&self.workers).add(reads(export, ranges, true));
        Ok(())
    }

    /// Those of the recorded access order, or those that the checkpoint wrote itself; then the others as they lie in the store.
    fn preferred(&mut self) -> Vec<(usize, PageRange)> {
        let touches = (self.order)().unwrap_or_else(|error| {
            tracing::warn!("pages of the checkpoint are read in the order of memory: {error}");
            Vec::new()
        });
        let touches = touches.into_iter().map(|touch| (touch.backend, touch.pages));
        self.workers.checkpoint().of_exports(touches).collect()
    }

    /// What is stored in the same frame, and has been decompressed with the page.
    fn nearby(&mut self) -> Vec<(usize, PageRange)> {
        self.current
            .as_mut()
            .map(|read| std::mem::take(&mut read.nearby))
            .unwrap_or_default()
    }

    fn skip_nearby(&mut self) {
        self.workers.skip_nearby();
    }

    /// The index says which pages are zero.
    fn can_map(&self) -> bool {
        true
    }

    fn map(&mut self, export: usize, pages: PageRange) -> Result<(), Error> {
        check_map(self.can_map(), &self.exports, export, pages)?;
        self.unmapped += pages.count();
        self.workers.add([Task::Map(export, pages)]);
        Ok(())
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::When(self.answers.ready())
    }

    fn next_answer(&mut self) -> Result<Answer<'_>, Error> {
        match self.next_reply()? {
            Reply::Pages(answer) => Ok(answer),
            Reply::Holes(_) => Err(Error::InvalidFetch("pages while a map is outstanding".to_owned())),
        }
    }

    fn next_reply(&mut self) -> Result<Reply<'_>, Error> {
        if self.outstanding == 0 && self.unmapped == 0 {
            return Err(Error::InvalidFetch("nothing: no pages are outstanding".to_owned()));
        }
        match self.answers.next()? {
            Done::Read(read) => {
                let read = self.current.insert(read);
                let answer = Answer::new(read.export, &read.runs, &read.data);
                let answer = answer.ok_or_else(|| Error::Io(std::io::Error::other("an answer has other bytes than its runs")))?;
                self.outstanding = self.outstanding.saturating_sub(answer.pages());
                Ok(Reply::Pages(answer))
            }
            Done::Holes(holes) => {
                self.unmapped = self.unmapped.saturating_sub(holes.holes.pages.count());
                Ok(Reply::Holes(holes))
            }
        }
    }
}

#[cfg(test)]
mod tests;
