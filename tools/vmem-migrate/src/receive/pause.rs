// SPDX-License-Identifier: GPL-2.0-or-later
//! Pauses the guest while its source is lost, in a thread of its own: QEMU may answer late, or not before pages arrive again.
//!
//! QEMU executes commands in the order in which they arrive. A command that QEMU has not answered in time may still be executed later. So
//! what counts is whether `stop` was sent, and not whether it was answered. That it will be sent is recorded first. When the source is
//! back, the thread asks QEMU for the run state, and continues the guest if this thread has paused it. A guest that another client has
//! paused stays paused.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use vmem_cli::chain;
use vmem_qemu::migration::Settings;
use vmem_qemu::{COMMAND_LIMIT, Qmp, guest};

use super::monitor::Monitor;
use crate::error::Cause;
use crate::record::StateDir;

/// The file whose existence records that `stop` was sent because the source is lost.
const PAUSED: &str = "paused";

/// How often QEMU's events are read, and a failed command is repeated.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// How long QEMU may take to exit after it has closed its socket.
const EXIT: Duration = Duration::from_secs(2);

/// The state of the source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// Not reported yet.
    Unknown,
    There,
    Gone,
    /// Lost for good.
    Lost,
}

/// An order to the thread.
#[derive(Debug)]
enum Order {
    Source(Source),
    /// All pages are present: continue the guest if it was paused, and close QEMU's socket.
    Finish,
}

/// What the thread reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum News {
    Note(String),
    /// QEMU has the settings that it had before the move.
    Restored,
    /// QEMU is certain to have ended.
    Gone,
    /// The thread is done, and has closed QEMU's socket.
    Finished,
}

/// The handle of the thread.
pub(super) struct Pauser {
    orders: Sender<Order>,
    news: Receiver<News>,
}

impl Pauser {
    /// Takes over QEMU's monitor, and restores the settings that the move has changed.
    pub(super) fn start(monitor: Monitor, settings: Option<Settings>, state_dir: &StateDir) -> Result<Self, Cause> {
        let ((orders, heard), (reporter, news)) = (channel(), channel());
        let file = state_dir.path(PAUSED);
        let guest = Guest {
            monitor,
            settings,
            sent: file.exists(),
            file,
            source: Source::Unknown,
            noted: false,
            finishing: None,
            orders: heard,
            news: reporter,
        };
        thread::Builder::new()
            .name("pauser".to_owned())
            .spawn(move || guest.run())
            .map_err(Cause::call("cannot start a thread"))?;
        Ok(Self { orders, news })
    }

    /// The source is lost: pauses the guest, once QEMU executes commands.
    pub(super) fn source_gone(&self) {
        self.order(Order::Source(Source::Gone));
    }

    /// The source is back: continues the guest if this thread has paused it.
    pub(super) fn source_back(&self) {
        self.order(Order::Source(Source::There));
    }

    /// The source is lost for good: pauses the guest, and never continues it.
    pub(super) fn source_lost(&self) {
        self.order(Order::Source(Source::Lost));
    }

    /// All pages are present: continues a paused guest, and ends the thread.
    pub(super) fn finish(&self) {
        self.order(Order::Finish);
    }

    fn order(&self, order: Order) {
        // A thread that has ended has reported before that QEMU has ended.
        let _ = self.orders.send(order);
    }

    pub(super) fn news(&self) -> Option<News> {
        self.news.try_recv().ok()
    }

    /// The next news, if there are some within `limit`.
    pub(super) fn news_within(&self, limit: Duration) -> Option<News> {
        self.news.recv_timeout(limit).ok()
    }
}

/// The guest, as the thread sees it.
struct Guest {
    monitor: Monitor,
    /// The settings that are still to be restored.
    settings: Option<Settings>,
    /// `stop` was sent because the source is lost.
    sent: bool,
    file: PathBuf,
    source: Source,
    /// The outcome of the latest order has been reported.
    noted: bool,
    /// When the thread stops trying to continue the guest.
    finishing: Option<Instant>,
    orders: Receiver<Order>,
    news: Sender<News>,
}

impl Guest {
    fn run(mut self) {
        loop {
            match self.orders.recv_timeout(POLL_INTERVAL) {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // Only the latest order counts.
            while let Ok(order) = self.orders.try_recv() {
                self.obey(order);
            }
            if self.is_gone() {
                self.report(News::Gone);
                return;
            }
            match self.source {
                Source::Gone | Source::Lost => self.pause(),
                Source::There => self.go_on(),
                Source::Unknown => {}
            }
            self.restore();
            let is_over = |until| !self.sent || Instant::now() >= until;
            if self.finishing.is_some_and(is_over) {
                return self.finish();
            }
        }
    }

    fn finish(self) {
        if self.sent {
            let why = "the guest stays paused, and QEMU does not have it go on: say 'cont' to QEMU";
            self.report(News::Note(why.to_owned()));
        }
        let Self { monitor, news, .. } = self;
        drop(monitor);
        let _ = news.send(News::Finished);
    }

    fn obey(&mut self, order: Order) {
        let source = match order {
            Order::Source(source) => source,
            Order::Finish => {
                self.finishing = Some(Instant::now() + COMMAND_LIMIT);
                Source::There
            }
        };
        self.noted &= source == self.source;
        self.source = source;
    }

    fn report(&self, news: News) {
        // The receiver is gone if the program is about to end.
        let _ = self.news.send(news);
    }

    fn note(&mut self, text: String) {
        if !std::mem::replace(&mut self.noted, true) {
            self.report(News::Note(text));
        }
    }

    /// Reads QEMU's events. Returns whether QEMU has ended.
    fn is_gone(&mut self) -> bool {
        loop {
            match self.monitor.event(Instant::now()) {
                // Another client has continued the guest, so the pause of this thread is over.
                Ok(Some(event)) if event.name == "RESUME" && self.sent => self.forget(),
                Ok(Some(_)) => {}
                Ok(None) => return false,
                Err(_) if self.monitor.is_gone_within(EXIT) => return true,
                Err(_) => {
                    // Connects again. If that fails, the next poll finds out why.
                    let _ = self.monitor.once(guest::status);
                    return false;
                }
            }
        }
    }

    /// Pauses a running guest.
    fn pause(&mut self) {
        let lasting = match self.source {
            Source::Lost => "for good",
            _ => "until the source is back",
        };
        if self.noted {
            return;
        }
        if self.sent {
            return self.note(format!("the guest is paused {lasting}"));
        }
        match self.monitor.once(guest::status) {
            Ok(status) if status == "running" => {}
            Ok(status) => return self.note(format!("the guest is {status}, and stays so")),
            // The next poll asks again.
            Err(error) => return self.report(News::Note(format!("the guest waits {lasting}: {}", chain(&error)))),
        }
        if let Err(error) = self.record() {
            self.report(News::Note(format!(
                "{}: {error}; 'receive --resume' would not know that the guest was paused",
                self.file.display()
            )));
        }
        self.sent = true;
        match self.monitor.once(|qmp| run(qmp, "stop")) {
            Ok(()) => self.note(format!("the guest is paused {lasting}")),
            Err(error) => self.note(format!("the guest waits {lasting}: {}", chain(&error))),
        }
        // Discards earlier events and those of this `stop`: a RESUME among them does not end this pause.
        while let Ok(Some(_)) = self.monitor.event(Instant::now()) {}
    }

    /// Continues a guest that was paused because its source was lost.
    fn go_on(&mut self) {
        if !self.sent {
            return;
        }
        match self.monitor.once(guest::status) {
            Ok(status) if status == "paused" => match self.monitor.once(|qmp| run(qmp, "cont")) {
                Ok(()) => {
                    self.forget();
                    self.note("the source is back, and the guest goes on".to_owned());
                }
                // The next poll shows whether QEMU has executed `cont`.
                Err(error) => self.note(format!("the guest does not go on yet: {}", chain(&error))),
            },
            // Another client has continued the guest, or the guest has ended.
            Ok(_) => self.forget(),
            Err(error) => self.note(format!("the guest does not go on yet: {}", chain(&error))),
        }
    }

    /// Restores QEMU's settings. With those of the move, a guest that is saved to a file next would be saved without its memory.
    fn restore(&mut self) {
        let Some(settings) = &self.settings else { return };
        match self.monitor.once(|qmp| settings.restore(qmp)) {
            Ok(()) => {
                self.settings = None;
                self.report(News::Restored);
            }
            // QEMU may refuse settings that it does not know any more, for example.
            Err(vmem_qemu::Error::Refused { .. }) => self.settings = None,
            // The next poll tries again.
            Err(_) => {}
        }
    }

    fn record(&self) -> io::Result<()> {
        fs::write(&self.file, "")
    }

    fn forget(&mut self) {
        self.sent = false;
        // If the file stays, it claims that `stop` was sent. QEMU is asked before anything follows from it.
        let _ = fs::remove_file(&self.file);
    }
}

fn run(qmp: &mut Qmp, command: &str) -> Result<(), vmem_qemu::Error> {
    qmp.execute(command, json!({})).map(drop)
}

#[cfg(test)]
mod tests;
