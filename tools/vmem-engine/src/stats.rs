// SPDX-License-Identifier: GPL-2.0-or-later
//! Counters of a run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::{CreationError, Histogram};

use crate::error::Error;

/// Counters of the lanes. They are independent of each other: relaxed ordering is enough.
pub struct Stats {
    /// Pages filled with data.
    pub(crate) data: AtomicU64,
    /// Pages marked as zero.
    pub(crate) zero: AtomicU64,
    /// Pages that arrived although they were present.
    pub(crate) duplicates: AtomicU64,
    /// Pages that arrived while their program still ran at the source; a page that arrived twice counts twice.
    pub(crate) staged: AtomicU64,
    /// Pages of which the source has sent the digest, and that were copied from a seed.
    pub(crate) known: AtomicU64,
    /// Pages that the source has sent again as the same, while their program still ran there.
    pub(crate) same: AtomicU64,
    /// Pages that were compared with the source's.
    pub(crate) verified: AtomicU64,
    /// Bytes that pages took on the network, compressed or not.
    pub(crate) wire: AtomicU64,
    /// Requests taken from regions.
    pub(crate) requests: AtomicU64,
    /// Pages fetched ahead of requests.
    pub(crate) ahead: AtomicU64,
    /// Reconnects.
    pub(crate) reconnects: AtomicU64,
    /// Microseconds from taking a request to filling its page.
    service: Mutex<Histogram<u64>>,
}

/// Service times of requests, from taking a request to filling its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// The median.
    pub p50: Duration,
    /// The 99th percentile.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

impl Stats {
    /// Counters that are zero.
    ///
    /// # Errors
    ///
    /// The histogram cannot be created.
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            data: AtomicU64::new(0),
            zero: AtomicU64::new(0),
            duplicates: AtomicU64::new(0),
            staged: AtomicU64::new(0),
            known: AtomicU64::new(0),
            same: AtomicU64::new(0),
            verified: AtomicU64::new(0),
            wire: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            ahead: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            service: Mutex::new(Histogram::new_with_max(HOUR_US, 2).map_err(of_histogram)?),
        })
    }

    /// Records service times.
    pub(crate) fn served(&self, times: &[Duration]) {
        let mut service = self.service();
        for time in times {
            service.saturating_record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        }
    }

    /// The service times; `None` before the first request.
    pub fn service_times(&self) -> Option<Service> {
        let service = self.service();
        let at = |quantile| Duration::from_micros(service.value_at_quantile(quantile));
        (!service.is_empty()).then(|| Service {
            p50: at(0.5),
            p99: at(0.99),
            max: Duration::from_micros(service.max()),
        })
    }

    fn service(&self) -> MutexGuard<'_, Histogram<u64>> {
        self.service.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The longest service time recorded, in microseconds; longer ones count as this.
const HOUR_US: u64 = 3_600_000_000;

fn of_histogram(error: CreationError) -> Error {
    Error::local("count")(std::io::Error::other(error))
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

/// Reads a counter.
pub(crate) fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
