// SPDX-License-Identifier: GPL-2.0-or-later
//! What the daemon says: to people on a terminal, to people who read a log, or to machines; and to clients of its control socket.

mod json;
mod text;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use vmem::{Files, PAGE_SIZE};
use vmem_cli::chain;
use vmem_control::{Event, MAX_RUNS, Publisher};
use vmem_engine::{RegionStatus, Status, Touches, Verified};
use vmem_source::Lane;

use crate::failure::Failure;
use text::{Bar, Lines};

const PAGE: u64 = PAGE_SIZE as u64;

/// Between two events that say how far it is.
const PERIOD: Duration = Duration::from_secs(1);

/// Who is told.
pub(crate) struct Report {
    to: To,
    clients: Option<Publisher>,
    /// Where programs find the regions.
    files: Files,
    /// When machines were told last how far it is.
    then: Instant,
    /// When machines were told last what was touched.
    touches_then: Instant,
}

enum To {
    Bar(Bar),
    Lines(Lines),
    Json,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        let to = if json {
            To::Json
        } else if io::stderr().is_terminal() {
            To::Bar(Bar::new())
        } else {
            To::Lines(Lines::new())
        };
        Self {
            to,
            clients: None,
            files: Files::NotWanted,
            then: Instant::now(),
            touches_then: Instant::now(),
        }
    }

    /// From now on clients of the control socket are told, too.
    pub(crate) fn publish_to(&mut self, clients: Publisher) {
        self.clients = Some(clients);
    }

    /// From now on programs find the regions here.
    pub(crate) fn show_paths(&mut self, files: Files) {
        self.files = files;
    }

    fn is_for_people(&self) -> bool {
        !matches!(self.to, To::Json)
    }

    /// Tells machines.
    fn event(&self, event: Event) {
        if let To::Json = self.to {
            json::print(&event);
        }
        if let Some(clients) = &self.clients {
            clients.publish(event);
        }
    }

    /// The regions exist, and everything waits for the order to start.
    pub(crate) fn holding(&mut self, source: &str, status: &Status) {
        if self.is_for_people() {
            tracing::info!(
                "holding: {} starts it",
                match self.clients {
                    None => "a line \"start\" on standard input",
                    Some(_) => "a request \"start\" on the control socket",
                }
            );
        }
        let (source, regions) = (source.to_owned(), json::found(status, &self.files));
        self.event(Event::Holding { source, regions });
    }

    /// The regions exist, and their faults are served.
    pub(crate) fn ready(&mut self, source: &str, status: &Status) {
        if self.is_for_people() {
            text::ready(source, status, &self.files);
        }
        let (source, regions) = (source.to_owned(), json::found(status, &self.files));
        self.event(Event::Ready { source, regions });
    }

    /// A line has come on standard input; with an error, it is no order.
    pub(crate) fn order(json: bool, order: &str, error: Option<&str>) {
        if let Some(error) = error {
            tracing::warn!("no such order: {order}: {error}");
        }
        if json {
            json::print(&Event::Order {
                order: order.to_owned(),
                error: error.map(str::to_owned),
            });
        }
    }

    /// Called often; says as often as it makes sense.
    pub(crate) fn progress(&mut self, status: &Status) {
        match &mut self.to {
            To::Bar(bar) => bar.progress(status),
            To::Lines(lines) => lines.progress(status),
            To::Json => {}
        }
        if self.then.elapsed() >= PERIOD {
            self.then = Instant::now();
            self.event(Event::Progress(json::figures(status)));
        }
    }

    /// Called often; tells machines once a second what programs have requested of the regions with these names, and at the end, if `is_over`.
    pub(crate) fn touches(&mut self, touches: &Touches, names: &[&str], is_over: bool) {
        if !is_over && self.touches_then.elapsed() < PERIOD {
            return;
        }
        self.touches_then = Instant::now();
        let touched = touches.take();
        let mut missed = touched.missed;
        for of_one in touched.runs.chunk_by(|one, other| one.0 == other.0) {
            for runs in of_one.chunks(MAX_RUNS) {
                let Some(name) = names.get(runs[0].0) else { continue };
                self.event(Event::Touched(json::touched(name, runs, std::mem::take(&mut missed))));
            }
        }
    }

    /// A region has come to another phase.
    pub(crate) fn phase(&mut self, region: &RegionStatus) {
        if self.is_for_people() {
            tracing::info!("{}", text::phase(region, &self.files));
        }
        self.event(Event::Region(json::found_region(region, &self.files)));
    }

    /// A connection was lost.
    pub(crate) fn lost(&mut self, lane: Lane, error: &vmem_source::Error) {
        if self.is_for_people() {
            tracing::warn!("{}", text::lost(lane, error));
        }
        let (connection, error) = (json::lane(lane), chain(error));
        self.event(Event::Lost { connection, error });
    }

    /// A connection was made again.
    pub(crate) fn back(&mut self, lane: Lane) {
        if self.is_for_people() {
            tracing::info!("{}", text::back(lane));
        }
        let connection = json::lane(lane);
        self.event(Event::Back { connection });
    }

    /// There is no memory for pages of a region.
    pub(crate) fn short(&mut self, name: &str) {
        if self.is_for_people() {
            tracing::warn!("{}", text::short(name));
        }
        let name = name.to_owned();
        self.event(Event::Short { name });
    }

    /// The regions were compared with the source.
    pub(crate) fn verified(&mut self, verified: &Verified) {
        if self.is_for_people() {
            tracing::info!("{}", text::verified(verified));
        }
        self.event(Event::Verified(json::verified(verified)));
    }

    /// The end; without a status if nothing was begun.
    pub(crate) fn end(&mut self, status: Option<&Status>, failure: Option<&Failure>) {
        match &mut self.to {
            To::Bar(bar) => bar.end(status),
            To::Lines(_) => text::end(status),
            To::Json => {}
        }
        self.event(Event::End {
            exit_code: failure.map_or(0, Failure::code),
            error: failure.map(|failure| chain(failure)),
            figures: status.map(json::figures),
        });
    }
}
