// SPDX-License-Identifier: GPL-2.0-or-later
//! An export as a source, for one lane.

use std::collections::{HashMap, VecDeque};

use vmem::PageRange;
use vmem_nbd::client::{Client, Outcome};
use vmem_source::answer::Chunk;
use vmem_source::peer::{check_fetch, check_map};
use vmem_source::{Answer, Error, Export, ExportHoles, PageSource, Readiness, Reply};

use crate::error::to_source_error;
use crate::holes::Maps;
use crate::job::{Job, number};

/// Pages of one job, and of one answer.
const PIECE: u64 = Chunk::MAX_DATA_PAGES as u64;

/// The tag of questions about extents, which is that of no job.
const MAP: u64 = u64::MAX;

/// How many errors of the server are warned of. A server that cannot read its disk has one for each page.
const MAX_WARNINGS: u32 = 16;

/// An export of a server, read over a connection of its own or over one that other lanes use, too.
#[derive(Debug)]
pub struct ExportSource {
    client: Client,
    exports: [Export; 1],
    jobs: HashMap<u64, Job>,
    last_job: u64,
    /// Jobs that are complete.
    done: VecDeque<Job>,
    maps: Maps,
    chunk: Chunk,
    warnings: u32,
}

impl ExportSource {
    pub(crate) fn new(client: Client, export: Export) -> Self {
        Self {
            client,
            exports: [export],
            jobs: HashMap::new(),
            last_job: 0,
            done: VecDeque::new(),
            maps: Maps::default(),
            chunk: Chunk::new(),
            warnings: 0,
        }
    }

    fn begin(&mut self, pages: PageRange) -> Result<(), Error> {
        let job = Job::new(pages, &self.client.description());
        self.last_job += 1;
        for (tag, question) in job.questions(self.last_job) {
            self.client.ask(question, tag).map_err(to_source_error)?;
        }
        self.jobs.insert(self.last_job, job);
        Ok(())
    }

    /// Waits until a job is complete, or there is something to say about holes.
    fn wait(&mut self) -> Result<(), Error> {
        while self.done.is_empty() && !self.maps.has_answer() {
            let (tag, outcome) = self.client.next_reply().map_err(to_source_error)?;
            match outcome {
                Outcome::Extents(extents) => {
                    let next = self.maps.take(extents, &self.client.description());
                    next.map_or(Ok(()), |question| self.client.ask(question, MAP))
                        .map_err(to_source_error)?;
                }
                Outcome::Read(read, wire) => {
                    let job = self.jobs.get_mut(&number(tag));
                    let is_complete = job.is_some_and(|job| job.take(tag, read, wire));
                    let job = is_complete.then(|| self.jobs.remove(&number(tag))).flatten();
                    job.map_or(Ok(()), |job| self.finish(job))?;
                }
            }
        }
        Ok(())
    }

    /// A job is complete. After an error of several pages each is read alone: the others can be had.
    fn finish(&mut self, job: Job) -> Result<(), Error> {
        if let Some(failure) = job.failure() {
            if job.pages.count() > 1 {
                return job.pages.iter().try_for_each(|page| self.begin(page.into()));
            }
            if self.warnings < MAX_WARNINGS {
                self.warnings += 1;
                tracing::warn!("{} of {} cannot be had: {failure}", job.pages, self.exports[0].name);
            }
        }
        self.done.push_back(job);
        Ok(())
    }
}

impl PageSource for ExportSource {
    fn exports(&self) -> &[Export] {
        &self.exports
    }

    fn fetch(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), Error> {
        check_fetch(&self.exports, export, ranges)?;
        for range in ranges {
            let mut rest = Some(*range);
            while let Some((Some(pages), after)) = rest.map(|rest| rest.split_at(PIECE)) {
                self.begin(pages)?;
                rest = after;
            }
        }
        Ok(())
    }

    fn can_map(&self) -> bool {
        self.client.description().has_extents()
    }

    fn map(&mut self, export: usize, pages: PageRange) -> Result<(), Error> {
        check_map(self.can_map(), &self.exports, export, pages)?;
        let question = self.maps.ask(pages, &self.client.description());
        question
            .map_or(Ok(()), |question| self.client.ask(question, MAP))
            .map_err(to_source_error)
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::When(self.client.fd())
    }

    fn next_answer(&mut self) -> Result<Answer<'_>, Error> {
        match self.next_reply()? {
            Reply::Pages(answer) => Ok(answer),
            Reply::Holes(_) => Err(Error::InvalidFetch("pages while a map is outstanding".to_owned())),
        }
    }

    fn next_reply(&mut self) -> Result<Reply<'_>, Error> {
        self.wait()?;
        let holes = self.maps.next();
        let job = if holes.is_some() { None } else { self.done.pop_front() };
        self.client.rearm(!self.done.is_empty() || self.maps.has_answer());
        let nothing = || Error::InvalidFetch("nothing: no pages are outstanding".to_owned());
        if let Some(holes) = holes {
            return Ok(Reply::Holes(ExportHoles { export: 0, holes }));
        }
        let job = job.ok_or_else(nothing)?;
        self.chunk.clear();
        match job.failure() {
            // Never zeros.
            Some(_) => self.chunk.push_unreadable(job.pages),
            None => job.commit(&mut self.chunk),
        }
        let answer = Answer::new(0, self.chunk.runs(), self.chunk.data()).ok_or_else(nothing)?;
        Ok(Reply::Pages(answer.with_wire_bytes(job.wire)))
    }
}

#[cfg(test)]
mod tests;
