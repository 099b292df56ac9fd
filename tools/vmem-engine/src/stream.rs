// SPDX-License-Identifier: GPL-2.0-or-later
//! A connection of the stream: fetches absent pages that no other connection of the stream has taken.

mod group;
mod outstanding;

use std::sync::Arc;

use vmem::PageRange;
use vmem_source::{ExportHoles, Lane, PageSource, Reply};

use crate::apply::{apply, apply_holes, apply_known};
use crate::connection::{Connect, Connection};
use crate::error::Error;
use crate::readiness::wait;
use crate::release_notifier::ReleaseNotifier;
use crate::seed::Announcer;
use crate::shared::{Interruption, POLL_TIMEOUT, Shared};
use crate::survey::Survey;
pub(crate) use group::Group;
use outstanding::Outstanding;

/// Pages of one fetch (1 MiB): large enough that the cost of a fetch does not matter, small enough to follow the faults.
const FETCH_PAGES: u64 = 256;

/// Runs of one fetch.
const FETCH_RUNS: usize = 256;

/// The most runs of all outstanding fetches: few enough that they fit into the source's socket while the source is busy with answers, however
/// scattered the pages are. A fetch never waits until an answer is read.
const MAX_RUNS: usize = 1024;

/// How a connection of the stream begins.
pub(crate) enum Begin {
    /// With an open source, which has staged pages before.
    Open(Box<dyn PageSource>),
    /// With a connection that the stream cannot do without: it is retried.
    Connect,
    /// With a further connection. If the source takes no more, the stream goes on with those that there are.
    Join,
}

/// Fetches pages of the group's plan, and ends when all have arrived.
///
/// If a connection is lost for longer than the time limit of retries, the others go on without it. The loss of the last one is an error.
pub(crate) fn run(shared: &Arc<Shared>, group: &Group, begin: Begin, connect: Connect) -> Result<(), Error> {
    let member = group.enter();
    if shared.options.yields {
        // Threads that the source starts inherit it.
        Lane::Stream.yield_thread_priority();
    }
    let of = Arc::clone(shared);
    // Staged pages have an order of their own.
    let is_first = matches!(begin, Begin::Connect);
    let pulse = shared.watch("stream");
    pulse.waits(shared.options.patience);
    let opened = match begin {
        Begin::Open(source) => Connection::open(of, Lane::Stream, connect, source, pulse).map(Some),
        Begin::Connect => Connection::connect(of, Lane::Stream, connect, &|| group.is_complete(), pulse),
        Begin::Join => match connect(Lane::Stream) {
            Ok(source) => Connection::open(of, Lane::Stream, connect, source, pulse).map(Some),
            Err(error) => Err(error.into()),
        },
    };
    let mut connection = match opened {
        Ok(Some(connection)) => connection,
        Ok(None) => return Ok(()),
        Err(error) => return member.leave(error),
    };
    if is_first {
        group.prefer(shared, connection.preferred());
    }
    let announcer = Announcer::new(shared.options.seed.as_ref(), connection.can_hash());
    let mut stream = Stream {
        shared,
        group,
        connection,
        announcer,
        survey: None,
        outstanding: Outstanding::default(),
        notifier: None,
    };
    while !shared.stop.is_set() {
        let error = match stream.turn() {
            Ok(true) => continue,
            Ok(false) => break,
            Err(Interruption::Error(error)) => return Err(error),
            Err(Interruption::Source(error)) => error,
        };
        match stream.recover(error) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => return member.leave(error),
        }
    }
    Ok(())
}

struct Stream<'a> {
    shared: &'a Shared,
    group: &'a Group,
    connection: Connection,
    /// What the source was told of contents that are here.
    announcer: Announcer,
    /// Of the connection that asks for holes.
    survey: Option<Survey>,
    outstanding: Outstanding,
    /// Of the connection that notifies the source of pages that have arrived.
    notifier: Option<ReleaseNotifier>,
}

impl Drop for Stream<'_> {
    /// Another connection notifies the source, and asks for holes, if there is one.
    fn drop(&mut self) {
        if self.notifier.is_some() {
            self.group.end_notifications();
        }
        if self.survey.is_some() {
            self.group.end_survey(false);
        }
    }
}

impl Stream<'_> {
    /// Fills the window, and applies one answer. False if the stream has ended.
    fn turn(&mut self) -> Result<bool, Interruption> {
        // The source is notified only while no page is outstanding. It does not read notifications while it sends answers, and this thread does
        // not read answers while it notifies: with long notifications, both would wait for each other.
        let notify = self.notifies() && self.notifier.as_ref().is_some_and(|notifier| notifier.is_due(self.shared));
        let pauses = notify || self.announcer.is_due();
        if self.survey.is_none() && self.connection.can_map() {
            self.survey = self.group.claim_survey(self.shared);
        }
        while let Some((region, pages)) = self.survey.as_mut().filter(|_| !pauses).and_then(Survey::next) {
            self.connection.map(region, pages)?;
        }
        while !pauses && self.outstanding.pages() < self.group.window() {
            let room = FETCH_RUNS.min(MAX_RUNS - self.outstanding.runs());
            let Some((region, runs)) = self.group.take(self.shared, FETCH_PAGES, room) else {
                break;
            };
            // Before the fetch: if that fails, the pages go back into the plan.
            self.outstanding.add(region, &runs);
            self.connection.fetch(region, &runs)?;
        }
        if self.outstanding.pages() == 0 && !self.survey.as_ref().is_some_and(Survey::is_outstanding) {
            return self.idle(notify);
        }
        self.connection.pulse().waits(POLL_TIMEOUT);
        if !wait(&self.shared.stop, self.connection.readiness())? {
            let (region, reply) = self.connection.next_reply()?;
            match reply {
                Reply::Pages(answer) => {
                    let pages = answer.pages();
                    let mut short = apply(self.shared, region, &answer)?;
                    let (also_short, missing) = apply_known(self.shared, region, &answer)?;
                    short.extend(also_short);
                    self.outstanding.received(pages);
                    self.group.received(self.shared, region, pages, &short, &missing);
                }
                Reply::Holes(ExportHoles { holes, .. }) => {
                    let short = apply_holes(self.shared, region, &holes)?;
                    self.group.mapped(self.shared, region, &holes, &short);
                    self.received_map(holes.pages);
                }
            }
        }
        Ok(true)
    }

    /// No page is outstanding on this connection. False if the stream has ended.
    fn idle(&mut self, notify: bool) -> Result<bool, Interruption> {
        if self.announcer.is_due() {
            let (announcer, connection) = (&mut self.announcer, &mut self.connection);
            announcer.announce(|key, prefixes| connection.announce(key, prefixes))?;
            return Ok(true);
        }
        if let Some(notifier) = self.notifier.as_mut().filter(|_| notify) {
            notifier.notify(self.shared, &mut self.connection)?;
            return Ok(true);
        }
        self.connection.pulse().waits(POLL_TIMEOUT);
        if !self.group.wait_until_complete() {
            return Ok(true);
        }
        if self.notifies() {
            if let Some(notifier) = &mut self.notifier {
                notifier.release_all(self.shared, &mut self.connection)?;
            }
        }
        Ok(false)
    }

    /// Notes an answer to the survey, which is over with the last one.
    fn received_map(&mut self, pages: PageRange) {
        let Some(survey) = &mut self.survey else { return };
        survey.received(pages);
        if survey.is_asked() && !survey.is_outstanding() {
            self.survey = None;
            self.group.end_survey(true);
        }
    }

    /// Whether this connection is the one that notifies the source. It stays so until it ends.
    fn notifies(&mut self) -> bool {
        if self.notifier.is_none() && self.group.claim_notifications() {
            self.notifier = Some(ReleaseNotifier::new());
        }
        self.notifier.is_some()
    }

    /// Gives the outstanding pages back to the plan, and reconnects. False if the stream has ended meanwhile.
    fn recover(&mut self, error: vmem_source::Error) -> Result<bool, Error> {
        let lost: Vec<(usize, PageRange)> = self.outstanding.take();
        self.group.requeue(self.shared, &lost)?;
        if self.survey.take().is_some() {
            // Another connection asks for the holes, or this one again.
            self.group.end_survey(false);
        }
        let (group, shared, notifies) = (self.group, self.shared, self.notifier.is_some());
        let is_over = || group.is_complete() && !(notifies && shared.release.is_awaited());
        let reconnected = self.connection.reconnect(error, &is_over)?;
        self.announcer = Announcer::new(shared.options.seed.as_ref(), self.connection.can_hash());
        if notifies {
            // The latest notifications may not have arrived.
            self.notifier = Some(ReleaseNotifier::new());
        }
        Ok(reconnected)
    }
}
