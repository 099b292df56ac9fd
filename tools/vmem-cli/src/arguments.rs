// SPDX-License-Identifier: GPL-2.0-or-later
//! Parsers of arguments.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Parses an address to listen on: `PORT` (of loopback), or `HOST:PORT` with a numeric host.
///
/// # Errors
///
/// The message for any other text.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    let port = text.parse().map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    port.or_else(|_| text.parse())
        .map_err(|_| "not PORT or HOST:PORT with a numeric host".to_owned())
}

/// Parses a time limit in seconds, which may have a fraction.
///
/// # Errors
///
/// The message for a text that is not a number from 0.001 to 1000000.
pub fn seconds(text: &str) -> Result<Duration, String> {
    const LONGEST: f64 = 1e6;
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if (0.001..=LONGEST).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("not between 0.001 and 1000000 seconds".to_owned())
    }
}

/// Checks a source: `file:NAME=PATH`, `checkpoint:STORE#GUEST[@N]`, or `HOST[:PORT]`. Returns it unchanged. The URIs of NBD are checked by
/// `vmemd`, which has their parser.
///
/// # Errors
///
/// The message for any other text.
pub fn source(text: &str) -> Result<String, String> {
    if let Some(spec) = text.strip_prefix("file:") {
        return match spec.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok(text.to_owned()),
            _ => Err("not file:NAME=PATH".to_owned()),
        };
    }
    if let Some(address) = text.strip_prefix("checkpoint:") {
        return match address.rsplit_once('#') {
            Some((store, guest)) if !store.is_empty() && !guest.is_empty() => Ok(text.to_owned()),
            _ => Err("not checkpoint:STORE#GUEST or checkpoint:STORE#GUEST@N".to_owned()),
        };
    }
    const FORMS: &str = "not HOST, HOST:PORT, [ADDRESS]:PORT, file:NAME=PATH, checkpoint:STORE#GUEST@N, nbd://HOST/EXPORT or \
                         nbd+unix:///EXPORT?socket=PATH";
    let bad = || Err(FORMS.to_owned());
    let whole = with_port(text, 1);
    let Some((host, port)) = whole.rsplit_once(':') else {
        return bad();
    };
    let is_host = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
        Some(address) => {
            address.is_some_and(|address| address.split('%').next().is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok()))
        }
        None => !host.is_empty() && !host.starts_with('-') && host.chars().all(|c| c.is_alphanumeric() || ".-_".contains(c)),
    };
    match port.parse::<u16>() {
        Ok(1..) if is_host => Ok(text.to_owned()),
        _ => bad(),
    }
}

/// Adds the port `default` to `HOST[:PORT]` if it has none.
pub fn with_port(host: &str, default: u16) -> String {
    let bare_ipv6 = host.parse::<Ipv6Addr>().is_ok();
    if bare_ipv6 {
        format!("[{host}]:{default}")
    } else if host.ends_with(']') || !host.contains(':') {
        format!("{host}:{default}")
    } else {
        host.to_owned()
    }
}

/// Bytes of memory, not zero: a number, with K, M, G or T for powers of 1024.
///
/// # Errors
///
/// A text that says what is wrong with it.
pub fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.char_indices().last() {
        Some((at, unit @ ('K' | 'M' | 'G' | 'T'))) => (&text[..at], unit),
        _ => (text, ' '),
    };
    let shift = match unit {
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        _ => 0,
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "no number of bytes (K, M, G and T are known)".to_owned())?;
    let bytes = number.checked_mul(1 << shift).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "no size of memory".to_owned())
}

/// Parses the bandwidth of a link, in bytes a second: a number of bytes, with K, M, G or T for powers of 1024; or a number of bits with kbit,
/// Mbit, Gbit or Tbit, for powers of 1000.
///
/// # Errors
///
/// The message for any other text, and for less than 1 KiB a second.
pub fn bandwidth(text: &str) -> Result<u64, String> {
    const LEAST: u64 = 1 << 10;
    let units = [("kbit", 3), ("Mbit", 6), ("Gbit", 9), ("Tbit", 12)];
    let bits = units
        .iter()
        .find_map(|(unit, power)| Some((text.strip_suffix(unit)?, 10u64.pow(*power))));
    let unknown =
        || "no bandwidth: bytes/s (K, M, G and T are known), or bits/s (kbit, Mbit, Gbit and Tbit are known)".to_owned();
    let bytes = match bits {
        Some((number, unit)) => {
            let number: u64 = number.parse().map_err(|_| unknown())?;
            number.checked_mul(unit).map(|bits| bits / 8)
        }
        None => Some(size(text).map_err(|_| unknown())?),
    };
    let bytes = bytes.ok_or_else(unknown)?;
    match bytes >= LEAST {
        true => Ok(bytes),
        false => Err("less than 1 KiB/s".to_owned()),
    }
}

/// Parses a limit of the bandwidth in bytes a second, `least` at least; 0 for `unlimited`.
///
/// # Errors
///
/// The message for any other text.
pub fn bandwidth_limit(text: &str, least: u64) -> Result<u64, String> {
    match text {
        "unlimited" => Ok(0),
        _ => match bandwidth(text).map_err(|error| format!("{error}; or \"unlimited\""))? {
            rate if rate >= least => Ok(rate),
            _ => Err(format!("less than {} KiB/s", least >> 10)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_port_is_the_default() {
        for (given, meant) in [
            ("host", "host:8636"),
            ("host:1", "host:1"),
            ("::1", "[::1]:8636"),
            ("[::1]", "[::1]:8636"),
            ("[::1]:1", "[::1]:1"),
        ] {
            assert_eq!(with_port(given, 8636), meant);
        }
    }

    #[test]
    fn source_is_a_host_or_a_file() {
        for good in [
            "localhost",
            "localhost:8636",
            "a-b.example:1",
            "192.0.2.1",
            "::1",
            "[::1]:1",
            "[fe80::1%eth0]:1",
            "file:a=/b",
            "checkpoint:/srv/ckpt#guest0@7",
        ] {
            assert_eq!(source(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "checkpoint:/srv/ckpt",
            "checkpoint:#guest0",
            "localhost:abc",
            "localhost:",
            "localhost:0",
            "localhost:65536",
            ":1",
            "a b",
            "-x",
            "[x]:1",
            "[::1",
            "file:a",
            "file:=b",
            "http://a/b",
        ] {
            assert!(source(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn bandwidth_is_bytes_or_bits() {
        for (given, meant) in [
            ("125000000", 125_000_000),
            ("100M", 100 << 20),
            ("1Gbit", 125_000_000),
            ("300Mbit", 37_500_000),
            ("9kbit", 1_125),
        ] {
            assert_eq!(bandwidth(given), Ok(meant), "{given}");
        }
        for bad in [
            "",
            "bit",
            "Gbit",
            "0",
            "1",
            "8kbit",
            "1gbit",
            "-1M",
            "1.5G",
            "99999999999999999Tbit",
        ] {
            assert!(bandwidth(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for bad in ["0", "-1", "nan", "inf", "1e9", ""] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
        assert!(address("8636").is_ok() && address("[::1]:1").is_ok() && address("localhost:1").is_err());
    }

    #[test]
    fn limit_is_a_bandwidth_or_none() {
        for (text, limit) in [
            ("unlimited", 0),
            ("100M", 100 << 20),
            ("8Mbit", 1_000_000),
            ("256K", 256 << 10),
        ] {
            assert_eq!(bandwidth_limit(text, 256 << 10), Ok(limit), "{text}");
        }
        for bad in ["", "0", "fast", "255K", "-1", "Unlimited", "100 M"] {
            assert!(bandwidth_limit(bad, 256 << 10).is_err(), "{bad}");
        }
    }
}
