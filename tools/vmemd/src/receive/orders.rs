// SPDX-License-Identifier: GPL-2.0-or-later
//! What whoever started the daemon tells it: with `--hold`, words on lines of standard input; with `--control`, requests.

use std::io::{self, BufRead};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use vmem_control::{Refusal, Service};

use super::stopping::{Order, Stopping};
use crate::failure::Failure;
use crate::orders;
use crate::report::Report;
use vmem_engine::{Permission, Release};

/// The orders of one run.
pub(super) struct Orders {
    order: Receiver<Order>,
    sender: Sender<Order>,
    hold: bool,
    release: Arc<Release>,
}

impl Orders {
    pub(super) fn new(hold: bool, release: bool) -> Self {
        let (sender, order) = channel();
        let release = Arc::new(Release::new(match (release, hold) {
            (true, true) => Permission::Pending,
            (true, false) => Permission::Given,
            (false, _) => Permission::Never,
        }));
        Self {
            order,
            sender,
            hold,
            release,
        }
    }

    /// Listens on standard input if there is something to wait for.
    pub(super) fn listen(&mut self, json: bool) -> Result<(), Failure> {
        if self.hold {
            // Only standard input can end the hold: if it ends, nobody does.
            let sender = std::mem::replace(&mut self.sender, channel().0);
            let release = Arc::clone(&self.release);
            thread::Builder::new()
                .name("orders".to_owned())
                .spawn(move || {
                    listen(io::stdin().lock(), &sender, &release, |order, error| {
                        Report::order(json, order, error)
                    })
                })
                .map_err(Failure::local("cannot start a thread"))?;
        }
        Ok(())
    }

    /// What obeys the requests of a control socket.
    pub(super) fn service(&self, stopping: &Stopping) -> Requests {
        Requests {
            order: self.sender.clone(),
            holds: self.hold,
            release: Arc::clone(&self.release),
            stopping: stopping.clone(),
        }
    }

    /// What ends the hold before it has begun.
    pub(super) fn sender(&self) -> Sender<Order> {
        self.sender.clone()
    }

    /// Waits for `start`, at most for `limit`: whether it has come. Whoever goes away before has changed his mind.
    pub(super) fn wait_for_start(&self, limit: Duration) -> Result<bool, Failure> {
        match self.order.recv_timeout(limit) {
            Ok(Order::Start) => Ok(true),
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => Err(Failure::Stopped),
        }
    }

    /// Whether the source may give back what has been delivered.
    pub(super) fn release(&self) -> Arc<Release> {
        Arc::clone(&self.release)
    }
}

/// What obeys the requests of a control socket.
pub(super) struct Requests {
    order: Sender<Order>,
    /// It was started with `--hold`, and nobody has said `start`.
    holds: bool,
    release: Arc<Release>,
    stopping: Stopping,
}

impl Service for Requests {
    fn start(&mut self) -> Result<(), Refusal> {
        self.holds = false;
        // Twice is once.
        let _ = self.order.send(Order::Start);
        Ok(())
    }

    fn release(&mut self) -> Result<(), Refusal> {
        give(&self.release);
        match self.release.get() {
            Permission::Never => Err(Refusal::new(
                "it was not started with --release, or the client that could say so has gone",
            )),
            _ => Ok(()),
        }
    }

    fn stop(&mut self) {
        self.stopping.request();
    }

    /// Whoever goes away before he has said `start`, or `release`, does not say it.
    fn abandoned(&mut self) {
        withhold(&self.release);
        if self.holds {
            let _ = self.order.send(Order::Stop);
        }
    }
}

fn listen(lines: impl BufRead, order: &Sender<Order>, release: &Release, report: impl Fn(&str, Option<&str>)) {
    let obey = |word: &str| {
        match word {
            // Twice is once.
            "start" => drop(order.send(Order::Start)),
            "release" => give(release),
            _ => return false,
        }
        true
    };
    orders::listen(lines, "the orders are start and release", obey, report);
    withhold(release);
}

/// If somebody is waiting for it.
fn give(release: &Release) {
    if release.get() == Permission::Pending {
        release.set(Permission::Given);
    }
}

/// Nobody will give it any more.
fn withhold(release: &Release) {
    if release.get() == Permission::Pending {
        release.set(Permission::Never);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn orders_are_words_on_lines() {
        let (sender, start) = channel();
        let release = Release::new(Permission::Pending);
        listen(&b"go\n start \nstart\nrelease\n"[..], &sender, &release, |_, _| ());
        assert_eq!(start.try_iter().count(), 2);
        assert_eq!(release.get(), Permission::Given);
    }

    #[test]
    fn a_source_that_was_not_to_give_pages_back_does_not() {
        let release = Release::new(Permission::Never);
        listen(&b"release\n"[..], &channel().0, &release, |_, _| ());
        assert_eq!(release.get(), Permission::Never);
    }

    #[test]
    fn who_goes_away_does_not_start_it() {
        let mut orders = Orders::new(true, true);
        let sender = std::mem::replace(&mut orders.sender, channel().0);
        listen(&b""[..], &sender, &orders.release, |_, _| ());
        drop(sender);
        assert_eq!(orders.release.get(), Permission::Never);
        assert!(matches!(orders.wait_for_start(LIMIT), Err(Failure::Stopped)));
    }

    #[test]
    fn requests_start_and_release() {
        let orders = Orders::new(true, true);
        let mut requests = orders.service(&Stopping::default());
        requests.start().expect("it holds");
        assert!(orders.wait_for_start(LIMIT).expect("no end"), "it was started");
        assert_eq!(orders.release.get(), Permission::Pending);
        requests.release().expect("it was started with --release");
        assert_eq!(orders.release.get(), Permission::Given);
        requests.release().expect("twice is once");
        requests.abandoned();
        assert_eq!(orders.release.get(), Permission::Given, "what is given stays given");
    }

    #[test]
    fn release_of_a_daemon_without_that_option_is_refused() {
        let orders = Orders::new(true, false);
        assert!(orders.service(&Stopping::default()).release().is_err());
    }

    #[test]
    fn client_that_goes_away_does_not_start_it() {
        let orders = Orders::new(true, true);
        let mut requests = orders.service(&Stopping::default());
        requests.abandoned();
        assert!(matches!(orders.wait_for_start(LIMIT), Err(Failure::Stopped)));
        assert!(requests.release().is_err(), "and nothing is given back");
        // Pages come, whatever becomes of whoever has said so.
        let orders = Orders::new(true, true);
        let mut requests = orders.service(&Stopping::default());
        requests.start().expect("it holds");
        requests.abandoned();
        assert!(orders.wait_for_start(LIMIT).expect("no end"), "it was started");
        assert!(orders.order.try_recv().is_err());
    }
}
