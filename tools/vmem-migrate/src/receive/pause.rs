// SPDX-License-Identifier: GPL-2.0
//! Pausing the guest while its source is gone, in a thread of its own: QEMU may answer late, or not before pages come again.
//!
//! QEMU carries out commands in the order in which it gets them, and one that it has not answered in time is carried out later. So what
//! counts is not whether `stop` was answered, but whether it was sent: that is recorded first. When the source is back, QEMU is asked how
//! it is, and has the guest go on if this has paused it. A guest that somebody else has paused is left alone.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use vmem_cli::chain;
use vmem_qmp::Qmp;

use super::monitor::Monitor;
use crate::error::Cause;
use crate::guest::{self, GuestError, Settings};
use crate::record::StateDir;

/// The file that says that `stop` was sent because the source is gone.
const PAUSED: &str = "paused";

/// How often QEMU is looked at, and a command is tried again that QEMU did not carry out.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// How long a QEMU that has closed its socket may take to exit.
const EXIT: Duration = Duration::from_secs(2);

/// How the source is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// Nobody has said.
    Unknown,
    There,
    Gone,
    /// Gone for good.
    Lost,
}

/// What the thread is told.
#[derive(Debug)]
enum Order {
    Source(Source),
    /// All pages are here: has the guest go on if it was paused, and lets QEMU's socket go.
    Finish,
}

/// What the thread reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum News {
    Note(String),
    /// QEMU's settings are as they were before the move.
    Restored,
    /// QEMU is gone for certain.
    Gone,
    /// The thread has done what there was to do, and holds QEMU's socket no more.
    Finished,
}

/// The thread's handle.
pub(super) struct Pauser {
    orders: Sender<Order>,
    news: Receiver<News>,
}

impl Pauser {
    /// Takes over QEMU's monitor, and puts the settings back that the move has changed.
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
            .map_err(Cause::io("cannot start a thread"))?;
        Ok(Self { orders, news })
    }

    /// The source is gone: the guest is paused, once QEMU takes commands.
    pub(super) fn source_gone(&self) {
        self.order(Order::Source(Source::Gone));
    }

    /// The source is there again.
    pub(super) fn source_back(&self) {
        self.order(Order::Source(Source::There));
    }

    /// The source is gone for good: the guest is paused, and does not go on.
    pub(super) fn source_lost(&self) {
        self.order(Order::Source(Source::Lost));
    }

    /// All pages are here.
    pub(super) fn finish(&self) {
        self.order(Order::Finish);
    }

    fn order(&self, order: Order) {
        // A thread that has ended has said that QEMU is gone.
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
    /// What is still to be put back.
    settings: Option<Settings>,
    /// `stop` was sent because the source is gone.
    sent: bool,
    file: PathBuf,
    source: Source,
    /// What became of the latest order has been said.
    noted: bool,
    /// When it is given up to have the guest go on.
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
            // Only the latest one counts.
            while let Ok(order) = self.orders.try_recv() {
                self.obey(order);
            }
            if self.is_gone() {
                self.tell(News::Gone);
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
            self.tell(News::Note(why.to_owned()));
        }
        let Self { monitor, news, .. } = self;
        drop(monitor);
        let _ = news.send(News::Finished);
    }

    fn obey(&mut self, order: Order) {
        let source = match order {
            Order::Source(source) => source,
            Order::Finish => {
                self.finishing = Some(Instant::now() + guest::LIMIT);
                Source::There
            }
        };
        self.noted &= source == self.source;
        self.source = source;
    }

    fn tell(&self, news: News) {
        // Nobody listens any more if the program is about to end.
        let _ = self.news.send(news);
    }

    fn note(&mut self, text: String) {
        if !std::mem::replace(&mut self.noted, true) {
            self.tell(News::Note(text));
        }
    }

    /// Takes note of QEMU's events; whether QEMU is gone.
    fn is_gone(&mut self) -> bool {
        loop {
            match self.monitor.event(Instant::now()) {
                // Somebody else has had the guest go on: it is that one's now.
                Ok(Some(event)) if event.name == "RESUME" && self.sent => self.forget(),
                Ok(Some(_)) => {}
                Ok(None) => return false,
                Err(_) if self.monitor.is_gone_within(EXIT) => return true,
                Err(_) => {
                    // Connects again. If that fails, the next look finds out what it means.
                    let _ = self.monitor.once(guest::status);
                    return false;
                }
            }
        }
    }

    /// Has QEMU stop a guest that runs.
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
            // Asked again the next time.
            Err(error) => return self.tell(News::Note(format!("the guest waits {lasting}: {}", chain(&error)))),
        }
        if let Err(error) = self.record() {
            self.tell(News::Note(format!(
                "{}: {error}; 'receive --resume' would not know that the guest was paused",
                self.file.display()
            )));
        }
        self.sent = true;
        match self.monitor.once(|qmp| run(qmp, "stop")) {
            Ok(()) => self.note(format!("the guest is paused {lasting}")),
            Err(error) => self.note(format!("the guest waits {lasting}: {}", chain(&error))),
        }
        // Those of before, and of this.
        while let Ok(Some(_)) = self.monitor.event(Instant::now()) {}
    }

    /// Has a guest go on that was paused because its source was gone.
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
                // Whether it was carried out is seen the next time.
                Err(error) => self.note(format!("the guest does not go on yet: {}", chain(&error))),
            },
            // Somebody has had it go on, or it has ended.
            Ok(_) => self.forget(),
            Err(error) => self.note(format!("the guest does not go on yet: {}", chain(&error))),
        }
    }

    /// Puts QEMU's settings back. A guest that is saved to a file next would miss its memory otherwise.
    fn restore(&mut self) {
        let Some(settings) = &self.settings else { return };
        match self.monitor.once(|qmp| settings.restore(qmp)) {
            Ok(()) => {
                self.settings = None;
                self.tell(News::Restored);
            }
            // Those that QEMU does not know any more, for example.
            Err(GuestError::Qmp(vmem_qmp::Error::Refused { .. })) => self.settings = None,
            // Tried again.
            Err(_) => {}
        }
    }

    fn record(&self) -> io::Result<()> {
        fs::write(&self.file, "")
    }

    fn forget(&mut self) {
        self.sent = false;
        // One that stays says that `stop` was sent: QEMU is asked before anything follows from it.
        let _ = fs::remove_file(&self.file);
    }
}

fn run(qmp: &mut Qmp, command: &str) -> Result<(), GuestError> {
    Ok(qmp.execute(command, json!({})).map(drop)?)
}

#[cfg(test)]
mod tests;
