// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl dirty-rate`: prints how fast a guest writes to its memory, and what a move of it would come to.

mod line;

use std::time::Duration;

use vmem::PAGE_SIZE;
use vmem_cli::output::out;
use vmem_cli::{Signals, bytes};
use vmem_migrate::dirty_rate::{Backend, End, Measurement, Options, TraceFile, forecasts, measure};
use vmem_migrate::report::{self, Report};
use vmem_migrate::{Cause, Error};
use vmem_precopy::{Forecast, Mode, Rates, WrittenMemory};

use self::line::{ForecastLine, MemoryRate};
use crate::cli::DirtyRate;

pub(crate) use self::line::DirtyRateLine;

/// Measures and prints. After a signal there is no forecast: the signal asks for the end.
pub(crate) fn run(args: &DirtyRate, json: bool) -> Result<(), Error> {
    let signals = Signals::catch().map_err(vmem_cli::Error::call("cannot catch signals"));
    let signals = signals.map_err(Cause::from)?;
    let report = Report::new(json);
    let file = args.record.as_deref().map(TraceFile::create).transpose()?;
    let options = Options {
        qmp: args.qmp.clone(),
        duration: args.seconds,
        interval: Duration::from_millis(args.interval.into()),
    };
    let measurement = measure(&options, &signals, &report)?;
    if let Some(text) = early(measurement.end) {
        report.note(text);
    }
    if let Some(file) = file {
        file.write(&measurement)?;
    }
    if !json {
        lines(&measurement).iter().for_each(|line| out(line));
    }
    let forecasts = match measurement.end {
        End::Signal => Vec::new(),
        _ => forecasts(measurement.recording.trace.clone(), args.bandwidth, &signals)?,
    };
    if json {
        report::print(&line(&measurement, args.bandwidth, &forecasts));
    } else {
        forecast_lines(args.bandwidth, &forecasts).iter().for_each(|line| out(line));
    }
    Ok(())
}

/// Why the measurement is shorter than it was to be.
fn early(end: End) -> Option<&'static str> {
    match end {
        End::Time => None,
        End::Signal => Some("a signal has ended the measurement: there is no forecast"),
        End::QemuEnded => Some("QEMU has ended, and with it the measurement"),
        End::Full => Some("the guest writes to so many places that no more of it is recorded: the measurement has ended"),
    }
}

fn lines(measurement: &Measurement) -> Vec<String> {
    let recording = &measurement.recording;
    let mut lines = vec![format!(
        "guest {} ({}), measured for {:.1} s",
        measurement.guest.escape_debug(),
        measurement.status.escape_debug(),
        recording.trace.elapsed().as_secs_f64(),
    )];
    for (backend, memory) in measurement.backends.iter().zip(&recording.memories) {
        lines.extend(memory_lines(backend, memory));
    }
    if recording.memories.len() > 1 {
        lines.push("all memory:".to_owned());
        lines.extend(rate_lines(&recording.rates));
    }
    lines
}

fn memory_lines(backend: &Backend, memory: &WrittenMemory) -> Vec<String> {
    let all = memory.pages.count();
    let mut lines = vec![format!(
        "{} ({}), {}:",
        backend.id.escape_debug(),
        backend.path.to_string_lossy().escape_debug(),
        size(all)
    )];
    lines.extend(rate_lines(&memory.rates));
    lines.push(format!(
        "written    {} pages, {}, {:.1} % of the memory",
        memory.written,
        size(memory.written),
        100.0 * memory.written as f64 / all as f64
    ));
    lines.push("pages written, by where in the memory they are:".to_owned());
    lines.extend(memory.histogram.to_string().lines().map(str::to_owned));
    lines
}

/// A line for each rate.
fn rate_lines(rates: &Rates) -> [String; 3] {
    [("mean", rates.mean), ("median", rates.median), ("highest", rates.highest)]
        .map(|(name, pages)| format!("{name:<9}{pages:>12.0} pages/s {:>10.2} MiB/s", mib(pages)))
}

fn mib(pages: f64) -> f64 {
    pages * PAGE_SIZE as f64 / f64::from(1 << 20)
}

fn size(pages: u64) -> String {
    bytes(pages.saturating_mul(PAGE_SIZE as u64))
}

fn forecast_lines(bandwidth: u64, forecasts: &[(&str, Forecast)]) -> Vec<String> {
    let Some((_, first)) = forecasts.first() else {
        return Vec::new();
    };
    let megabits = bandwidth as f64 * 8.0 / 1e6;
    let mut lines = vec![format!(
        "a move over a link of {megabits:.0} Mbit/s, all memory as one, in the mode auto:"
    )];
    if forecasts.iter().all(|(_, forecast)| forecast == first) {
        lines.extend(forecast_of("", first));
    } else {
        for (name, forecast) in forecasts {
            lines.extend(forecast_of(&format!("limits of {name}: "), forecast));
        }
    }
    lines
}

fn forecast_of(prefix: &str, forecast: &Forecast) -> [String; 2] {
    let milliseconds = forecast.downtime.as_secs_f64() * 1e3;
    let left = size(forecast.pages_left);
    let end = match forecast.mode {
        Mode::Precopy => {
            format!("the guest stops for {milliseconds:.0} ms and the time for its devices, in which {left} are sent")
        }
        _ => format!("the guest stops for the time for its devices, and post-copy brings {left} in {milliseconds:.0} ms"),
    };
    [
        format!(
            "  {prefix}{}: {} {}, {} in {:.1} s; {end}",
            forecast.mode,
            forecast.rounds,
            if forecast.rounds == 1 { "round" } else { "rounds" },
            bytes(forecast.bytes),
            forecast.total.as_secs_f64()
        ),
        format!("    {}", forecast.decision),
    ]
}

fn line<'a>(measurement: &'a Measurement, bandwidth: u64, forecasts: &[(&'a str, Forecast)]) -> DirtyRateLine<'a> {
    let recording = &measurement.recording;
    let memories = measurement.backends.iter().zip(&recording.memories);
    DirtyRateLine::DirtyRate {
        guest: &measurement.guest,
        status: &measurement.status,
        seconds: recording.trace.elapsed().as_secs_f64(),
        memories: memories.map(|(backend, memory)| MemoryRate::of(backend, memory)).collect(),
        pages_per_second: (&recording.rates).into(),
        bandwidth,
        forecasts: forecasts
            .iter()
            .map(|(limits, forecast)| ForecastLine::of(limits, forecast))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use vmem::PageRange;
    use vmem_precopy::{Limits, Trace, predict};

    use super::*;

    fn forecast(limits: Limits, dirty: u64) -> Forecast {
        let mut trace = Trace::new(4096).expect("a trace");
        let dirty = PageRange::from_pgoff(0, dirty).into_iter().collect();
        trace.push(Duration::from_millis(100), dirty).expect("a sample");
        predict(&trace, 10 << 20, limits).expect("a forecast")
    }

    #[test]
    fn limits_are_named_only_if_their_forecasts_differ() {
        let (one, other) = (forecast(Limits::XEN, 0), forecast(Limits::XEN, 4000));
        let same = forecast_lines(125_000_000, &[("xen", one), ("palacios", one)]);
        assert_eq!(
            same[0],
            "a move over a link of 1000 Mbit/s, all memory as one, in the mode auto:"
        );
        assert!(same.len() == 3 && !same.concat().contains("xen"), "{same:?}");
        let two = forecast_lines(125_000_000, &[("xen", one), ("palacios", other)]);
        assert!(two[1].starts_with("  limits of xen: precopy: ") && two[3].starts_with("  limits of palacios: hybrid: "));
        assert_eq!(forecast_lines(125_000_000, &[]), [""; 0]);
    }

    #[test]
    fn pages_of_hybrid_are_not_sent_while_the_guest_stands_still() {
        let lines = |dirty| forecast_of("", &forecast(Limits::XEN, dirty)).concat();
        assert!(lines(0).contains("0 B are sent"), "{}", lines(0));
        assert!(lines(4000).contains("post-copy brings"), "{}", lines(4000));
    }

    #[test]
    fn rates_are_in_pages_and_mib() {
        let rates = Rates {
            mean: 256.0,
            median: 0.0,
            highest: 512.0,
        };
        assert_eq!(rate_lines(&rates)[0], "mean              256 pages/s       1.00 MiB/s");
    }
}
