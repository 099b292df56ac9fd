// SPDX-License-Identifier: GPL-2.0-or-later
//! What the requests of other commands pass: whether the migration can be given up, and when vmemd can be asked for a change.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vmem_cli::{Signals, chain};
use vmem_control::{Change, Client, Refusal};

/// How long vmemd may take to obey.
const VMEMD_LIMIT: Duration = Duration::from_secs(5);

/// How long a change waits for a vmemd that is being started.
const START_LIMIT: Duration = Duration::from_secs(15);

/// How often a change that waits tries to reach vmemd.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// What the thread of the socket and the migration share.
#[derive(Debug)]
pub(in crate::migrate) struct Gate {
    signals: Signals,
    state: Mutex<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The destination owns the guest.
    is_committed: bool,
    /// The source's vmemd is being started: a change waits for it.
    is_starting: bool,
    /// The latest limit of the bandwidth that vmemd has accepted, for those that are started after it.
    bandwidth: Option<u64>,
}

impl Gate {
    /// The gate of a migration that this host owns the guest of.
    pub(in crate::migrate) fn new(signals: &Signals) -> Arc<Self> {
        Self::with(signals, Shared::default())
    }

    /// The same, of one whose vmemd is not started yet: until [`started`](Self::started), changes wait for it.
    pub(in crate::migrate) fn starting(signals: &Signals) -> Arc<Self> {
        let state = Shared {
            is_starting: true,
            ..Shared::default()
        };
        Self::with(signals, state)
    }

    /// The gate of a migration that an earlier vmemctl has begun. Whose the guest is has to be known before anybody can ask to give up.
    pub(in crate::migrate) fn resuming(signals: &Signals, is_committed: bool) -> Arc<Self> {
        let state = Shared {
            is_committed,
            ..Shared::default()
        };
        Self::with(signals, state)
    }

    fn with(signals: &Signals, state: Shared) -> Arc<Self> {
        Arc::new(Self {
            signals: signals.clone(),
            state: Mutex::new(state),
        })
    }

    /// vmemd is ready, or is not started at all: changes do not wait any more.
    pub(in crate::migrate) fn started(&self) {
        self.lock().is_starting = false;
    }

    /// Has vmemd make a change. If vmemd is being started, waits for that.
    pub(super) fn change(&self, vmemd: &Path, change: &Change) -> Result<(), Refusal> {
        let until = Instant::now() + START_LIMIT;
        loop {
            // Before the attempt: vmemd may become ready after it.
            let is_starting = self.lock().is_starting;
            let made = Client::connect(vmemd, VMEMD_LIMIT).and_then(|mut client| client.set(change.clone(), VMEMD_LIMIT));
            return match made {
                Ok(()) => {
                    if change.bandwidth.is_some() {
                        self.lock().bandwidth = change.bandwidth;
                    }
                    Ok(())
                }
                Err(vmem_control::Error::Refused { text, .. }) => Err(Refusal::new(text)),
                Err(_) if is_starting && Instant::now() < until => {
                    thread::sleep(RETRY_INTERVAL);
                    continue;
                }
                Err(error) if is_starting => Err(Refusal::new(format!(
                    "the source's vmemd is not ready yet: try again when 'vmemctl status' shows rounds ({})",
                    chain(&error)
                ))),
                Err(error) if error.is_nobody() => Err(Refusal::new(format!(
                    "the source's vmemd does not obey, because it has ended or is being started again: try again in some seconds ({})",
                    chain(&error)
                ))),
                Err(error) => Err(Refusal::new(format!("the source's vmemd does not obey: {}", chain(&error)))),
            };
        }
    }

    /// Gives the migration up, as SIGINT does.
    pub(super) fn abort(&self) -> Result<(), Refusal> {
        let state = self.lock();
        if state.is_committed {
            return Err(Refusal::new(
                "the destination owns the guest already: the migration cannot be given up any more",
            ));
        }
        self.signals.raise();
        Ok(())
    }

    /// Runs `record`, which records whose the guest is, and returns whether it is the destination's. A request to give up comes before it or
    /// after it.
    pub(in crate::migrate) fn commit<T>(&self, record: impl FnOnce() -> (T, bool)) -> T {
        let mut state = self.lock();
        let (result, is_committed) = record();
        state.is_committed = is_committed;
        result
    }

    /// The limit of the bandwidth, if it was changed since the last call.
    pub(super) fn take_bandwidth(&self) -> Option<u64> {
        self.lock().bandwidth.take()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_does_not_wait_for_a_vmemd_that_is_not_started_any_more() {
        let gate = Gate::starting(&Signals::default());
        let change = Change {
            bandwidth: Some(1 << 20),
            ..Change::default()
        };
        thread::scope(|scope| {
            let changes = scope.spawn(|| gate.change(Path::new("/no/such/vmemd"), &change));
            thread::sleep(Duration::from_millis(300));
            assert!(!changes.is_finished(), "{:?}", changes.join());
            let began = Instant::now();
            gate.started();
            let refused = changes.join().expect("no panic").expect_err("nobody makes it");
            assert!(began.elapsed() < START_LIMIT / 2, "{:?}", began.elapsed());
            assert!(format!("{refused:?}").contains("does not obey"), "{refused:?}");
        });
    }
}
