// SPDX-License-Identifier: GPL-2.0-or-later
//! The bandwidth of the connection, smoothed.

use std::time::Duration;

/// Bytes per second, as an average in which what is two seconds old counts little more than a third.
///
/// Only time in which there was something to send counts. Samples of mostly zero pages do not: they say how fast memory is read, and what
/// is left at the switch is data.
///
/// What the kernel has taken may lie in a buffer of this host or of the destination. So the first [`BUFFERED`](Self::BUFFERED) bytes after
/// a pause prove nothing but an upper bound: they count only if they were slower than what is known.
#[derive(Debug, Clone, Default)]
pub struct Bandwidth {
    average: Option<f64>,
    /// Bytes on the network for a page with contents, smoothed likewise.
    page_bytes: Option<f64>,
    /// Of the sample of that, which is not complete.
    recent: Sample,
    /// Of the sample that is not complete.
    proven: Sample,
    /// What was sent since the last pause and may lie in buffers.
    buffered: Sample,
    /// The user's limit, in bytes per second.
    limit: Option<u64>,
    /// The limit has changed: the average is of another time.
    is_outdated: bool,
    /// The average when the limit was last none, or not reached: that of the network.
    network: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    bytes: u64,
    data: u64,
    zero: u64,
    busy: Duration,
}

/// What was sent at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes of the frames.
    pub bytes: u64,
    /// Pages with contents.
    pub data: u64,
    /// Pages without.
    pub zero: u64,
    /// The time in which there was something to send.
    pub busy: Duration,
    /// There was nothing to send just before: the buffers of the network are empty.
    pub after_pause: bool,
    /// The bytes are known to be at the destination, and in no buffer.
    pub is_received: bool,
}

impl Bandwidth {
    /// A shorter sample says more about the buffers of the network than about its bandwidth.
    const SAMPLE: Duration = Duration::from_millis(100);
    const MEMORY: Duration = Duration::from_secs(2);
    /// From this share on, a limit is reached: it, and not the network, is what was measured.
    const REACHED: f64 = 0.8;
    /// How much may lie in buffers: 4 MiB, which is what a destination asks for ahead (`vmemd --window`, by default), and the largest send
    /// buffer of a TCP connection (`net.ipv4.tcp_wmem`, by default).
    pub const BUFFERED: u64 = 4 << 20;

    /// Adds what was sent.
    pub fn add(&mut self, transfer: &Transfer) {
        self.note_page_bytes(transfer);
        if transfer.after_pause {
            self.buffered = Sample::default();
        }
        if !transfer.is_received && self.buffered.bytes < Self::BUFFERED {
            self.buffered.add(transfer);
            self.note_upper_bound();
            return;
        }
        self.proven.add(transfer);
        if self.proven.busy < Self::SAMPLE {
            return;
        }
        let sample = std::mem::take(&mut self.proven);
        if sample.data >= sample.zero || self.average.is_none() {
            self.count(sample);
        }
    }

    /// How long a page is on the network does not depend on buffers, nor on a limit.
    fn note_page_bytes(&mut self, transfer: &Transfer) {
        self.recent.add(transfer);
        if self.recent.busy < Self::SAMPLE {
            return;
        }
        let sample = std::mem::take(&mut self.recent);
        if sample.data > 0 && sample.data >= sample.zero {
            let (share, bytes) = (sample.share(), sample.bytes as f64 / sample.data as f64);
            self.page_bytes = Some(self.page_bytes.map_or(bytes, |average| average + share * (bytes - average)));
        }
    }

    /// What may lie in buffers was sent at least as fast as it arrives.
    fn note_upper_bound(&mut self) {
        let sample = self.buffered;
        let is_slower = sample.rate().zip(self.average).is_some_and(|(rate, average)| rate < average);
        if is_slower && sample.busy >= Self::SAMPLE && sample.data >= sample.zero {
            self.count(sample);
            // It is counted; how much may lie in buffers stays known.
            self.buffered = Sample {
                bytes: sample.bytes,
                ..Sample::default()
            };
        }
    }

    fn count(&mut self, sample: Sample) {
        let Some(rate) = sample.rate() else { return };
        let share = if self.is_outdated { 1.0 } else { sample.share() };
        self.is_outdated = false;
        self.average = Some(self.average.map_or(rate, |average| average + share * (rate - average)));
    }

    /// The user has set a limit, in bytes per second, or none. What was measured before is of another time: the next sample replaces it. Until
    /// then, what the network did before a limit that was reached counts. If that is not known, it is as fast as that limit at least.
    pub fn set_limit(&mut self, limit: Option<u64>) {
        let is_reached = |average: f64| self.limit.is_some_and(|limit| average >= Self::REACHED * limit as f64);
        match self.average {
            Some(average) if is_reached(average) => self.average = self.network.or(Some(average)),
            average => self.network = average,
        }
        self.limit = limit;
        self.is_outdated = true;
        self.proven = Sample::default();
        // Bytes and time of two limits are no sample.
        self.buffered = Sample {
            bytes: self.buffered.bytes,
            ..Sample::default()
        };
    }

    /// The user's limit, in bytes per second.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Bytes per second, which are not more than the limit; `None` if it is not known.
    #[must_use]
    pub fn get(&self) -> Option<u64> {
        let measured = self.average.or_else(|| self.proven.rate()).map(|average| average as u64);
        measured.map(|measured| measured.min(self.limit.unwrap_or(u64::MAX)))
    }

    /// Bytes on the network for a page with contents: fewer than the page has if it was compressed. `None` if too little was sent yet.
    #[must_use]
    pub fn page_bytes(&self) -> Option<u64> {
        self.page_bytes.map(|average| average.ceil() as u64)
    }
}

impl Sample {
    fn add(&mut self, transfer: &Transfer) {
        self.bytes = self.bytes.saturating_add(transfer.bytes);
        self.data = self.data.saturating_add(transfer.data);
        self.zero = self.zero.saturating_add(transfer.zero);
        self.busy = self.busy.saturating_add(transfer.busy);
    }

    /// How much of an average the sample is.
    fn share(&self) -> f64 {
        1.0 - (-self.busy.as_secs_f64() / Bandwidth::MEMORY.as_secs_f64()).exp()
    }

    fn rate(&self) -> Option<f64> {
        let seconds = self.busy.as_secs_f64();
        (seconds > 0.0 && self.bytes > 0).then(|| self.bytes as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn transfer(bytes: u64, busy: Duration) -> Transfer {
        Transfer {
            bytes,
            data: bytes / 4096,
            busy,
            ..Transfer::default()
        }
    }

    fn received(bytes: u64, busy: Duration) -> Transfer {
        Transfer {
            is_received: true,
            ..transfer(bytes, busy)
        }
    }

    #[test]
    fn drop_of_a_moment_changes_little_and_one_that_stays_is_followed() {
        let mut bandwidth = Bandwidth::default();
        assert_eq!(bandwidth.get(), None);
        bandwidth.add(&received(50_000, 50 * MS));
        assert_eq!(bandwidth.get(), Some(1_000_000));
        (0..10).for_each(|_| bandwidth.add(&received(100_000, 100 * MS)));
        bandwidth.add(&received(10_000, 100 * MS));
        assert!(bandwidth.get().is_some_and(|now| now > 950_000), "{bandwidth:?}");
        (0..100).for_each(|_| bandwidth.add(&received(10_000, 100 * MS)));
        assert!(bandwidth.get().is_some_and(|now| now < 110_000), "{bandwidth:?}");
    }

    #[test]
    fn bytes_of_a_page_follow_what_compression_brings_and_zero_pages_do_not_count() {
        let mut bandwidth = Bandwidth::default();
        assert_eq!(bandwidth.page_bytes(), None);
        let sent = |bytes, data, zero| Transfer {
            data,
            zero,
            ..transfer(bytes, 100 * MS)
        };
        (0..100).for_each(|_| bandwidth.add(&sent(100_000, 100, 0)));
        assert_eq!(bandwidth.page_bytes(), Some(1000));
        (0..100).for_each(|_| bandwidth.add(&sent(1000, 1, 10_000)));
        assert_eq!(bandwidth.page_bytes(), Some(1000));
        (0..100).for_each(|_| bandwidth.add(&sent(410_000, 100, 0)));
        assert!(bandwidth.page_bytes().is_some_and(|bytes| (4000..=4100).contains(&bytes)));
    }

    #[test]
    fn zero_pages_do_not_lower_a_known_bandwidth() {
        let mut bandwidth = Bandwidth::default();
        bandwidth.add(&received(100_000, 100 * MS));
        let zero = Transfer {
            data: 0,
            zero: 10_000,
            ..received(1000, 100 * MS)
        };
        (0..100).for_each(|_| bandwidth.add(&zero));
        assert_eq!(bandwidth.get(), Some(1_000_000));
    }

    /// A link of 1 MiB/s behind buffers of 4 MiB.
    #[test]
    fn bytes_that_may_lie_in_buffers_are_no_proof() {
        let mut bandwidth = Bandwidth::default();
        (0..4).for_each(|_| bandwidth.add(&transfer(1 << 20, 30 * MS)));
        assert_eq!(bandwidth.get(), None, "all of small memory fits into the buffers");
        bandwidth.add(&transfer(1 << 20, 1000 * MS));
        assert_eq!(bandwidth.get(), Some(1 << 20));
        // After a pause, the buffers are empty.
        let first = Transfer {
            after_pause: true,
            ..transfer(1 << 20, 10 * MS)
        };
        bandwidth.add(&first);
        (0..3).for_each(|_| bandwidth.add(&transfer(1 << 20, 40 * MS)));
        assert_eq!(bandwidth.get(), Some(1 << 20));
        bandwidth.add(&first);
        bandwidth.add(&transfer(1 << 20, 8000 * MS));
        assert!(
            bandwidth.get().is_some_and(|now| now < 300_000),
            "slower is slower: {bandwidth:?}"
        );
    }

    #[test]
    fn limit_is_followed_at_once_in_both_directions() {
        let mut bandwidth = Bandwidth::default();
        (0..10).for_each(|_| bandwidth.add(&received(10_000_000, 100 * MS)));
        bandwidth.add(&received(1_000_000, 10 * MS));
        bandwidth.set_limit(Some(1_000_000));
        assert_eq!((bandwidth.get(), bandwidth.limit()), (Some(1_000_000), Some(1_000_000)));
        (0..10).for_each(|_| bandwidth.add(&received(100_000, 100 * MS)));
        assert_eq!(bandwidth.get(), Some(1_000_000));
        bandwidth.set_limit(None);
        // Rounds may be too small by now to show it again.
        assert_eq!(bandwidth.get(), Some(100_000_000), "as before the limit");
        bandwidth.add(&received(9_000_000, 100 * MS));
        assert_eq!(bandwidth.get(), Some(90_000_000), "one sample is enough");
        // A limit that the network does not reach.
        bandwidth.set_limit(Some(500_000_000));
        (0..100).for_each(|_| bandwidth.add(&received(2_000_000, 100 * MS)));
        bandwidth.set_limit(Some(1_000_000));
        bandwidth.set_limit(None);
        assert!(bandwidth.get().is_some_and(|now| now < 21_000_000), "{bandwidth:?}");
    }

    #[test]
    fn network_that_was_never_without_a_limit_is_as_fast_as_that_at_least() {
        let mut bandwidth = Bandwidth::default();
        bandwidth.set_limit(Some(1_000_000));
        (0..10).for_each(|_| bandwidth.add(&received(100_000, 100 * MS)));
        bandwidth.set_limit(Some(50_000_000));
        assert_eq!(bandwidth.get(), Some(1_000_000));
        bandwidth.add(&received(5_000_000, 100 * MS));
        assert_eq!(bandwidth.get(), Some(50_000_000));
    }
}
