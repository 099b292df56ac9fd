// SPDX-License-Identifier: GPL-2.0-or-later
//! Figures for a Prometheus that comes and asks: OpenMetrics text over HTTP. vmemd(8) lists them.

mod http;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use vmem::PAGE_SIZE;
use vmem_cli::chain;
use vmem_engine::{Phase, RegionStatus, Status};
use vmem_source::serve::Totals;

/// The figures cannot be given.
#[derive(Debug, thiserror::Error)]
#[error("cannot give figures on {address}")]
pub(crate) struct MetricsError {
    address: SocketAddr,
    source: io::Error,
}

/// What becomes of figures whose address cannot be listened on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unbound {
    /// An error: nothing has been begun, and the command line can be mended.
    Fails,
    /// A warning, and the address is tried again and again: programs wait for the pages of this process, and not for its figures.
    Retries,
}

/// Between two tries to listen.
const PAUSE: Duration = if cfg!(test) {
    Duration::from_millis(20)
} else {
    Duration::from_secs(10)
};

/// What a destination shows: the latest status.
#[derive(Clone, Debug, Default)]
pub(crate) struct Destination(Arc<Mutex<Status>>);

impl Destination {
    /// Gives figures from now on, or from when that becomes possible.
    pub(crate) fn listen(listener: Listener) -> Self {
        let destination = Self::default();
        listener.answer("vmemd", Box::new(destination.clone()));
        destination
    }

    /// This is how it is now.
    pub(crate) fn set(&self, now: Status) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

impl Collector for Destination {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        const PAGE: u64 = PAGE_SIZE as u64;
        let now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut regions = |name: &str, help: &str, unit: Option<&Unit>, value: &dyn Fn(&RegionStatus) -> u64| {
            let mut metric = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
            for region in &now.regions {
                let labels = [("region", region.name.as_str())];
                // A region has 16 TiB at most.
                ConstGauge::new(value(region) as i64).encode(metric.encode_family(&labels)?)?;
            }
            Ok::<(), fmt::Error>(())
        };
        let bytes = Some(&Unit::Bytes);
        regions("region_size", "Size of the region", bytes, &|region| region.size)?;
        regions("region_present", "Memory that is here", bytes, &|region| region.present)?;
        regions("region_unreadable", "Memory that the source cannot read", bytes, &|region| {
            region.unreadable
        })?;
        regions("region_plain", "1 once it is plain memory", None, &|region| {
            (region.phase == Phase::Plain).into()
        })?;
        for (name, help, value) in [
            ("data_pages", "Pages filled with data", now.data / PAGE),
            ("zero_pages", "Pages that are zero", now.zero / PAGE),
            (
                "duplicate_pages",
                "Pages that came although they were here",
                now.duplicates / PAGE,
            ),
            ("known_pages", "Pages copied from a seed image", now.known / PAGE),
            ("same_pages", "Pages that came as the same as before", now.same / PAGE),
            (
                "backed_pages",
                "Pages that the kernel has read from the source's file by itself",
                now.backed / PAGE,
            ),
            (
                "wire_bytes",
                "Bytes that pages took on the network, compressed or not",
                now.wire,
            ),
            ("faults", "Requests of programs that wait for a page", now.faults),
            ("reconnects", "Connections to the source made again", now.reconnects),
        ] {
            count(&mut encoder, name, help, value)?;
        }
        let help = "From taking a request to filling its page";
        let mut metric = encoder.encode_descriptor("fault_service", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        if let Some(service) = &now.service {
            for (quantile, time) in [("0.5", service.p50), ("0.99", service.p99), ("1", service.max)] {
                ConstGauge::new(time.as_secs_f64()).encode(metric.encode_family(&[("quantile", quantile)])?)?;
            }
        }
        Ok(())
    }
}

/// What a source shows.
#[derive(Debug)]
struct Source(Arc<Totals>);

impl Collector for Source {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Totals {
            connections,
            data,
            zero,
            unreadable,
            known,
            same,
            released,
            bytes,
        } = &*self.0;
        for (name, help, value) in [
            ("connections", "Connections that were taken", connections),
            ("data_pages", "Pages sent with their bytes", data),
            ("zero_pages", "Pages sent as zero", zero),
            ("unreadable_pages", "Pages that could not be read", unreadable),
            ("known_pages", "Pages of which a digest was sent", known),
            ("same_pages", "Pages sent as the same as before", same),
            ("released_pages", "Pages given back", released),
            ("wire_bytes", "Bytes that pages took on the network, compressed or not", bytes),
        ] {
            count(&mut encoder, name, help, value.load(Ordering::Relaxed))?;
        }
        Ok(())
    }
}

/// Gives the figures of a source from now on, or from when that becomes possible.
pub(crate) fn listen_for_source(listener: Listener, totals: Arc<Totals>) {
    listener.answer("vmemd_serve", Box::new(Source(totals)));
}

fn count(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    ConstCounter::new(value).encode(metric)
}

/// Where figures are given, before there is a thread for it.
#[derive(Debug)]
pub(crate) struct Listener {
    address: SocketAddr,
    bound: Result<TcpListener, MetricsError>,
}

impl Listener {
    /// Listens on `address`.
    pub(crate) fn bind(address: SocketAddr, unless: Unbound) -> Result<Self, MetricsError> {
        let bound = TcpListener::bind(address).map_err(|source| MetricsError { address, source });
        match (bound, unless) {
            (Err(error), Unbound::Fails) => Err(error),
            (bound, _) => Ok(Self { address, bound }),
        }
    }

    /// Answers in a thread of its own, until the process ends.
    fn answer(self, prefix: &str, collector: Box<dyn Collector>) {
        const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        let mut registry = Registry::with_prefix(prefix);
        registry.register_collector(collector);
        let page = move || {
            let mut body = String::new();
            // Writing to a string does not fail.
            let _ = text::encode(&mut body, &registry);
            body
        };
        let Self { address, bound } = self;
        let answer = move || {
            let listener = bound.unwrap_or_else(|error| bind_later(address, &error));
            http::serve(&listener, "/metrics", KIND, page);
        };
        let thread = thread::Builder::new().name("metrics".to_owned());
        if let Err(source) = thread.spawn(answer) {
            tracing::warn!("{}", chain(&MetricsError { address, source }));
        }
    }
}

/// Listens as soon as that is possible, which may be never.
fn bind_later(address: SocketAddr, error: &MetricsError) -> TcpListener {
    tracing::warn!("{}; trying again every {} s", chain(error), PAUSE.as_secs());
    loop {
        thread::sleep(PAUSE);
        if let Ok(listener) = TcpListener::bind(address) {
            tracing::info!("figures are on {address} now");
            return listener;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Duration;

    use serde_json::Value;

    use vmem_engine::Service;

    fn free_port() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("its address")
    }

    fn get(address: SocketAddr, path: &str) -> String {
        let mut socket = TcpStream::connect(address).expect("a connection");
        write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("room");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("an answer");
        answer
    }

    /// The names of the figures on a page, as `# TYPE` lines have them, with what a counter's value has behind its name.
    fn names(page: &str) -> BTreeSet<String> {
        let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types
            .filter_map(|line| line.split_once(' '))
            .map(|(name, kind)| {
                if kind == "counter" {
                    format!("{name}_total")
                } else {
                    name.to_owned()
                }
            })
            .collect()
    }

    /// The names of figures in the queries of the panels.
    fn queried(panels: &Value) -> BTreeSet<String> {
        let list = |value: &'_ Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
        let targets = panels
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|panel| list(panel, "targets"));
        let queries = targets.map(|target| target["expr"].as_str().expect("a query").to_owned());
        let words = |query: String| {
            query
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .map(str::to_owned)
                .collect()
        };
        queries
            .flat_map::<Vec<String>, _>(words)
            .filter(|word| word.starts_with("vmemd_"))
            .collect()
    }

    #[test]
    fn dashboard_shows_each_figure_and_no_other() {
        let dashboard: Value = serde_json::from_str(include_str!("../grafana/vmem.json")).expect("a dashboard");
        let (near, far) = (free_port(), free_port());
        let _figures = Destination::listen(Listener::bind(near, Unbound::Fails).expect("a server"));
        listen_for_source(Listener::bind(far, Unbound::Fails).expect("a server"), Arc::default());
        let given: BTreeSet<_> = [near, far]
            .iter()
            .flat_map(|address| names(&get(*address, "/metrics")))
            .collect();
        assert_eq!(queried(&dashboard["panels"]), given);
    }

    #[test]
    fn a_destination_s_figures_are_the_latest() {
        let address = free_port();
        let figures = Destination::listen(Listener::bind(address, Unbound::Fails).expect("a server"));
        assert!(get(address, "/metrics").contains("vmemd_faults_total 0"));
        let millisecond = Duration::from_millis(1);
        figures.set(Status {
            faults: 7,
            data: 8192,
            backed: 12288,
            service: Some(Service {
                p50: millisecond,
                p99: millisecond * 2,
                max: millisecond * 3,
            }),
            regions: vec![RegionStatus {
                name: "ram".to_owned(),
                size: 1 << 20,
                present: 8192,
                unreadable: 0,
                phase: Phase::Filling,
            }],
            ..Status::default()
        });
        let answer = get(address, "/metrics");
        for line in [
            "HTTP/1.1 200 OK",
            "vmemd_faults_total 7",
            "vmemd_data_pages_total 2",
            "vmemd_backed_pages_total 3",
            "vmemd_region_present_bytes{region=\"ram\"} 8192",
            "vmemd_region_plain{region=\"ram\"} 0",
            "vmemd_fault_service_seconds{quantile=\"0.99\"} 0.002",
            "# EOF",
        ] {
            assert!(answer.contains(line), "{line:?} is not in {answer}");
        }
        assert!(get(address, "/").contains("404"));
    }

    #[test]
    fn a_source_s_figures_are_what_it_sent() {
        let address = free_port();
        let totals = Arc::new(Totals::default());
        listen_for_source(
            Listener::bind(address, Unbound::Retries).expect("a server"),
            Arc::clone(&totals),
        );
        totals.released.store(5, Ordering::Relaxed);
        assert!(get(address, "/metrics").contains("vmemd_serve_released_pages_total 5"));
    }

    #[test]
    fn a_taken_port_costs_figures_and_no_pages() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("its address");
        assert!(Listener::bind(address, Unbound::Fails).is_err(), "nothing has been begun");
        let _figures = Destination::listen(Listener::bind(address, Unbound::Retries).expect("pages come first"));
        drop(taken);
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(address).is_err() {
            assert!(std::time::Instant::now() < until, "it is not tried again");
            thread::sleep(PAUSE);
        }
        assert!(get(address, "/metrics").contains("vmemd_faults_total 0"));
    }
}
