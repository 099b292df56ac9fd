// SPDX-License-Identifier: GPL-2.0-or-later
//! What obeys the requests of a control socket.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread;

use vmem_control::{Change, Later, Publisher, Refusal, Service};
use vmem_precopy::PreCopy;
use vmem_source::serve::{LEAST_BANDWIDTH, Limiter, Server};
use vmem_wait::StopEvent;

use super::ending::Ending;
use super::tracked;
use crate::cli::Serve;

/// The most changes that are made or wait at a time.
const MAX_CHANGES: usize = 8;

/// Pages are given back, or may be some day.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Free {
    Never,
    AtOnce,
    /// After the request.
    Held,
}

pub(super) struct Requests {
    pub(super) free: Free,
    /// It does not keep the memory when that is let go of.
    pub(super) server: Weak<Server>,
    pub(super) limiter: Arc<Limiter>,
    pub(super) stop: Arc<StopEvent>,
    pub(super) rounds: Option<Weak<PreCopy>>,
    pub(super) ending: Arc<Ending>,
    /// Held while a change is made. Each thread that makes one, or waits for that, has it.
    pub(super) changing: Arc<Mutex<()>>,
    pub(super) clients: Arc<OnceLock<Publisher>>,
}

impl Requests {
    pub(super) fn new(args: &Serve, server: &Arc<Server>, stop: &Arc<StopEvent>, rounds: Option<&Arc<PreCopy>>) -> Self {
        let free = match (&args.free, args.hold_release) {
            (None, _) => Free::Never,
            (Some(_), false) => Free::AtOnce,
            (Some(_), true) => Free::Held,
        };
        Self {
            free,
            server: Arc::downgrade(server),
            limiter: server.limiter(),
            stop: Arc::clone(stop),
            rounds: rounds.map(Arc::downgrade),
            ending: Arc::new(Ending::new(stop)),
            changing: Arc::default(),
            clients: Arc::default(),
        }
    }

    /// Where to put what tells the clients, once there is a server.
    pub(super) fn clients(&self) -> Arc<OnceLock<Publisher>> {
        Arc::clone(&self.clients)
    }
}

impl Service for Requests {
    fn start(&mut self) -> Result<(), Refusal> {
        Err(Refusal::new("it serves, and holds nothing"))
    }

    fn finish(&mut self) -> Result<(), Refusal> {
        let rounds = self
            .rounds
            .as_ref()
            .ok_or_else(|| Refusal::new("it was not started with --rounds"))?;
        let (Some(rounds), Some(clients)) = (rounds.upgrade(), self.clients.get()) else {
            return Err(Refusal::new("it begins or ends just now"));
        };
        tracked::finish(&rounds, self.server.clone(), &self.limiter, &self.ending, clients.clone())
            .map_err(|error| Refusal::new(format!("no thread ends the rounds: {error}")))
    }

    /// In a thread of its own: the log may be read just now, which takes time.
    fn set(&mut self, change: Change, answer: Later) {
        if Arc::strong_count(&self.changing) > MAX_CHANGES {
            return answer.answer(Err(Refusal::new("other changes are being made: try again")));
        }
        let (rounds, limiter, clients) = (self.rounds.clone(), Arc::clone(&self.limiter), self.clients.get().cloned());
        let changing = Arc::clone(&self.changing);
        let thread = thread::Builder::new().name("set".to_owned());
        // Without a thread, the client is told that it could not be done.
        let _ = thread.spawn(move || {
            let _one = changing.lock().unwrap_or_else(PoisonError::into_inner);
            answer.answer(apply(&change, rounds.as_ref(), &limiter, clients.as_ref()));
        });
    }

    fn release(&mut self) -> Result<(), Refusal> {
        match self.free {
            Free::Never => return Err(Refusal::new("it was not started with --free")),
            Free::AtOnce => {}
            Free::Held => {
                let server = self.server.clone();
                // Making holes takes time.
                let thread = thread::Builder::new().name("release".to_owned());
                let started = thread.spawn(move || server.upgrade().iter().for_each(|server| server.allow_release()));
                started.map_err(|error| Refusal::new(format!("no thread gives memory back: {error}")))?;
            }
        }
        Ok(())
    }

    fn stop(&mut self) {
        self.stop.set();
    }

    /// Nobody is left who could end the rounds.
    fn abandoned(&mut self) {
        if self.rounds.is_some() {
            self.ending.abandon();
        }
    }
}

/// Changes how it sends: all of it or nothing, except if the log cannot be read for the order to switch: then the bandwidth stays as it was,
/// which the client takes it to be.
fn apply(change: &Change, rounds: Option<&Weak<PreCopy>>, limiter: &Limiter, clients: Option<&Publisher>) -> Result<(), Refusal> {
    if change.is_empty() {
        return Err(Refusal::new("the request names nothing that is to be changed"));
    }
    let bandwidth = change
        .bandwidth
        .map(|bandwidth| Some(bandwidth).filter(|bandwidth| *bandwidth > 0));
    if let Some(Some(bandwidth @ ..LEAST_BANDWIDTH)) = bandwidth {
        let text =
            format!("a bandwidth of {bandwidth} bytes/s is not possible: it is {LEAST_BANDWIDTH} or more, or 0 for no limit");
        return Err(Refusal::new(text));
    }
    let rounds = match rounds {
        None if change.is_of_rounds() => {
            return Err(Refusal::new(
                "it sends no rounds (--rounds): only the bandwidth can be changed",
            ));
        }
        None => None,
        Some(rounds) => rounds.upgrade(),
    };
    if change.is_of_rounds() {
        let rounds = rounds.as_deref().ok_or_else(|| Refusal::new("it begins or ends just now"))?;
        tracked::adjust(rounds, change)?;
        if change.switch_now {
            tracked::switch(rounds)?;
        }
    }
    if let Some(bandwidth) = bandwidth {
        limiter.set(bandwidth);
        rounds.iter().for_each(|rounds| rounds.set_bandwidth_limit(bandwidth));
    }
    tracing::info!("changed by a client: {}", text(change));
    if let (Some(rounds), Some(clients)) = (rounds, clients) {
        tracked::publish_standing(&rounds, clients);
    }
    Ok(())
}

/// A change, in words.
fn text(change: &Change) -> String {
    let words = [
        change.bandwidth.map(|bandwidth| match bandwidth {
            0 => "no limit of the bandwidth".to_owned(),
            bandwidth => format!("bandwidth {bandwidth} bytes/s"),
        }),
        change.max_downtime_ms.map(|downtime| format!("downtime {downtime} ms")),
        change.mode.as_ref().map(|mode| format!("mode {mode}")),
        change.switch_now.then(|| "switch now".to_owned()),
    ];
    words.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vmem::{PageRange, PageSet};
    use vmem_precopy::{DirtyMemory, Event, Logged, Mode, Options, Reason};

    use super::*;

    fn requests(rounds: Option<Weak<PreCopy>>) -> Requests {
        let stop = Arc::new(StopEvent::new().expect("an eventfd"));
        Requests {
            free: Free::Never,
            server: Weak::new(),
            limiter: Arc::default(),
            rounds,
            ending: Arc::new(Ending::new(&stop)),
            changing: Arc::default(),
            stop,
            clients: Arc::default(),
        }
    }

    #[test]
    fn rounds_that_no_client_can_finish_end_and_all_else_goes_on() {
        let ends = |mut requests: Requests| {
            requests.abandoned();
            requests.stop.is_set()
        };
        assert!(ends(requests(Some(Weak::new()))));
        assert!(!ends(requests(None)));
        let finished = requests(Some(Weak::new()));
        finished.ending.begin();
        finished.ending.end(true);
        assert!(!ends(finished), "the destination may need pages");
    }

    #[test]
    fn refused_finish_finishes_nothing() {
        let mut requests = requests(Some(Weak::new()));
        requests.finish().expect_err("nothing is tracked");
        requests.abandoned();
        assert!(requests.stop.is_set());
    }

    /// Memory that nobody writes to.
    #[derive(Debug)]
    struct Idle(PageRange);

    impl DirtyMemory for Idle {
        fn pages(&self) -> PageRange {
            self.0
        }

        fn peek(&self, pages: PageRange) -> Logged {
            Logged {
                dirty: PageSet::none_of(pages),
                error: None,
            }
        }

        fn clean(&self, pages: PageRange) -> Logged {
            self.peek(pages)
        }
    }

    fn refused(result: Result<(), Refusal>) -> String {
        format!("{:?}", result.expect_err("it is refused"))
    }

    #[test]
    fn change_is_made_as_a_whole_or_refused_with_the_reason() {
        let rounds = Arc::new(
            PreCopy::new(
                vec![Box::new(Idle(PageRange::from_pgoff(0, 1000).expect("pages")))],
                Options::default(),
            )
            .expect("rounds"),
        );
        let (weak, limiter) = (Arc::downgrade(&rounds), Limiter::default());
        let set = |change: &Change| apply(change, Some(&weak), &limiter, None);
        assert!(refused(set(&Change::default())).contains("names nothing"));
        let bad = [
            (
                Change {
                    bandwidth: Some(1000),
                    ..Change::default()
                },
                "1000 bytes/s",
            ),
            (
                Change {
                    mode: Some("postcopy".to_owned()),
                    bandwidth: Some(1 << 20),
                    ..Change::default()
                },
                "is not a mode",
            ),
            (
                Change {
                    max_downtime_ms: Some(0),
                    mode: Some("hybrid".to_owned()),
                    bandwidth: Some(1 << 20),
                    ..Change::default()
                },
                "downtime",
            ),
        ];
        for (change, reason) in bad {
            let text = refused(set(&change));
            assert!(text.contains(reason), "{text}");
            let standing = rounds.standing().expect("they run");
            assert_eq!((limiter.get(), standing.limit, standing.mode), (None, None, Mode::Auto));
        }
        let change = Change {
            bandwidth: Some(1 << 20),
            max_downtime_ms: Some(300),
            mode: Some("precopy".to_owned()),
            switch_now: true,
        };
        set(&change).expect("it is done");
        let standing = rounds.standing().expect("they run");
        assert_eq!(
            (limiter.get(), standing.limit, standing.mode),
            (Some(1 << 20), Some(1 << 20), Mode::Precopy)
        );
        assert_eq!(standing.downtime, Duration::from_millis(300));
        let settled = rounds.next_event(Duration::ZERO);
        assert!(
            matches!(settled, Some(Event::Settled(decision)) if decision.reason == Reason::Requested),
            "{settled:?}"
        );
        rounds.finish().expect("a log");
        assert!(refused(set(&change)).contains("over"));
        // The stream goes on.
        let unlimited = Change {
            bandwidth: Some(0),
            ..Change::default()
        };
        set(&unlimited).expect("it is done");
        assert_eq!(limiter.get(), None);
        assert!(refused(apply(&change, None, &limiter, None)).contains("no rounds"));
        apply(&unlimited, None, &limiter, None).expect("it is done");
    }
}
