// SPDX-License-Identifier: GPL-2.0
//! What whoever started the daemon with `--hold` tells it on standard input, a word on a line.

use std::io::{self, BufRead};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use crate::failure::Failure;
use crate::orders;
use crate::report::Report;
use vmem_engine::{Permission, Release};

/// The orders of one run.
pub(super) struct Orders {
    start: Receiver<()>,
    release: Arc<Release>,
}

impl Orders {
    /// Listens on standard input if there is something to wait for.
    pub(super) fn new(hold: bool, release: bool, json: bool) -> Result<Self, Failure> {
        let (sender, start) = channel();
        let release = Arc::new(Release::new(match (release, hold) {
            (true, true) => Permission::Pending,
            (true, false) => Permission::Given,
            (false, _) => Permission::Never,
        }));
        if hold {
            let release = Arc::clone(&release);
            thread::Builder::new()
                .name("orders".to_owned())
                .spawn(move || {
                    listen(io::stdin().lock(), &sender, &release, |order, error| {
                        Report::order(json, order, error)
                    })
                })
                .map_err(Failure::local("cannot start a thread"))?;
        }
        Ok(Self { start, release })
    }

    /// Waits for `start`. Whoever goes away before has changed his mind.
    pub(super) fn wait_for_start(&self) -> Result<(), Failure> {
        self.start.recv().map_err(|_| Failure::Stopped)
    }

    /// Whether the source may give back what has been delivered.
    pub(super) fn release(&self) -> Arc<Release> {
        Arc::clone(&self.release)
    }
}

fn listen(lines: impl BufRead, start: &Sender<()>, release: &Release, tell: impl Fn(&str, Option<&str>)) {
    let obey = |order: &str| {
        match order {
            // Twice is once.
            "start" => drop(start.send(())),
            "release" => give(release),
            _ => return false,
        }
        true
    };
    orders::listen(lines, "the orders are start and release", obey, tell);
    if release.get() == Permission::Pending {
        release.set(Permission::Never);
    }
}

/// If somebody is waiting for it.
fn give(release: &Release) {
    if release.get() == Permission::Pending {
        release.set(Permission::Given);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let (sender, start) = channel();
        let release = Arc::new(Release::new(Permission::Pending));
        listen(&b""[..], &sender, &release, |_, _| ());
        drop(sender);
        assert_eq!(release.get(), Permission::Never);
        let orders = Orders { start, release };
        assert!(matches!(orders.wait_for_start(), Err(Failure::Stopped)));
    }
}
