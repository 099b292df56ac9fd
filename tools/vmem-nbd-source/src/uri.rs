// SPDX-License-Identifier: GPL-2.0-or-later
//! NBD URIs (`doc/uri.md` of github.com/NetworkBlockDevice/nbd).

use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use url::Url;

/// The port of NBD servers.
const DEFAULT_PORT: u16 = 10809;

/// The longest name of an export, in bytes, as the protocol has it.
const LONGEST_NAME: usize = 4096;

/// Where a server is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// On the network: `HOST:PORT`.
    Tcp(String),
    /// At the path of a socket of this host. One that begins with a NUL byte is in the abstract namespace.
    Unix(PathBuf),
}

/// How the connection to a server is protected by TLS.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tls {
    /// `tls-hostname`: the name that the server's certificate must have, instead of that of the host, or of `localhost` for a socket.
    pub hostname: Option<String>,
    /// `tls-certificates`: the directory with the certificates, unless the user gives another.
    pub certificates: Option<PathBuf>,
}

/// An export of a server: `nbd://HOST[:PORT]/EXPORT` or `nbd+unix:///EXPORT?socket=PATH`, or with `nbds` instead of `nbd`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uri {
    /// The server.
    pub place: Place,
    /// Whether, and how, it is used over TLS: that is `nbds` or `nbds+unix`.
    pub tls: Option<Tls>,
    /// The name of the export. The empty name is that of the server's default export.
    pub export: String,
}

/// Why a text is no URI of an export.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// It is something else.
    #[error("not nbd[s]://HOST[:PORT]/EXPORT or nbd[s]+unix:///EXPORT?socket=PATH: {0}")]
    Invalid(String),
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let invalid = |why: &str| UriError::Invalid(why.to_owned());
        let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        let is_protected = match scheme.as_deref() {
            Some("nbd" | "nbd+unix") => false,
            Some("nbds" | "nbds+unix") => true,
            _ => return Err(invalid("another scheme")),
        };
        // A URI is of visible ASCII characters. The parser, which is for browsers, drops some others.
        if let Some(c) = text.chars().find(|c| !c.is_ascii_graphic()) {
            return Err(invalid(&format!("{c:?} must be written as %XX")));
        }
        let url = Url::parse(text).map_err(|error| invalid(&error.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid(
                "a user is for TLS with keys that both sides know, which vmem does not have",
            ));
        }
        if url.fragment().is_some() {
            return Err(invalid("# must be written as %23"));
        }
        // Not that of `url`, which would have removed "." and ".." as those of a path.
        let export = decode(path_of(text).strip_prefix('/').unwrap_or_default())?;
        if export.len() > LONGEST_NAME || export.contains('\0') {
            return Err(invalid("a name of an export has at most 4096 bytes, none of them NUL"));
        }
        let mut parameters = parameters(&url)?;
        let tls = is_protected.then(|| tls(&mut parameters)).transpose()?;
        let place = match url.scheme() {
            "nbd" | "nbds" => tcp(&url, &parameters)?,
            _ => unix(&url, &parameters)?,
        };
        Ok(Self { place, tls, export })
    }
}

/// The path of a URI with an authority, which may be empty.
fn path_of(text: &str) -> &str {
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    let path = rest.find(['/', '?']).map_or("", |at| &rest[at..]);
    path.split('?').next().unwrap_or_default()
}

/// Takes the parameters that are for TLS.
fn tls(parameters: &mut Vec<(String, String)>) -> Result<Tls, UriError> {
    let mut tls = Tls::default();
    let (own, others) = parameters.drain(..).partition(|(name, _)| name.starts_with("tls-"));
    *parameters = others;
    let own: Vec<(String, String)> = own;
    for (name, value) in own {
        let is_new = match name.as_str() {
            "tls-type" if value == "x509" => true,
            "tls-type" => return Err(UriError::Invalid(format!("vmem has no TLS of the type {value:?}, only x509"))),
            "tls-hostname" if !value.is_empty() => tls.hostname.replace(value).is_none(),
            "tls-certificates" if !value.is_empty() => tls.certificates.replace(value.into()).is_none(),
            _ => {
                return Err(UriError::Invalid(format!(
                    "parameter {name:?} is not known, or has no such value"
                )));
            }
        };
        if !is_new {
            return Err(UriError::Invalid(format!("parameter {name:?} is there twice")));
        }
    }
    Ok(tls)
}

fn tcp(url: &Url, parameters: &[(String, String)]) -> Result<Place, UriError> {
    let invalid = |why: &str| UriError::Invalid(why.to_owned());
    let host = url
        .host_str()
        .filter(|host| !host.is_empty())
        .ok_or_else(|| invalid("no host"))?;
    if host.contains('%') {
        return Err(invalid("no name of a host has such characters"));
    }
    if let Some((name, _)) = parameters.first() {
        return Err(invalid(&format!("parameter {name:?} is not known with {}://", url.scheme())));
    }
    let port = url.port().unwrap_or(DEFAULT_PORT);
    if port == 0 {
        return Err(invalid("there is no port 0"));
    }
    Ok(Place::Tcp(format!("{host}:{port}")))
}

fn unix(url: &Url, parameters: &[(String, String)]) -> Result<Place, UriError> {
    let invalid = |why: &str| UriError::Invalid(why.to_owned());
    if url.host_str().is_some_and(|host| !host.is_empty()) {
        return Err(invalid("a socket has no host: three slashes follow nbd+unix:"));
    }
    if let Some((name, _)) = parameters.iter().find(|(name, _)| name != "socket") {
        return Err(invalid(&format!("parameter {name:?} is not known")));
    }
    match parameters {
        [(_, path)] if !path.is_empty() => Ok(Place::Unix(path.into())),
        _ => Err(invalid("?socket=PATH is not there once")),
    }
}

/// The parameters of the query. A plus sign is one, as in all URIs that are not forms of HTML.
fn parameters(url: &Url) -> Result<Vec<(String, String)>, UriError> {
    let query = url.query().unwrap_or_default();
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            Ok((decode(name)?, decode(value)?))
        })
        .collect()
}

fn decode(text: &str) -> Result<String, UriError> {
    let is_escape = |part: &str| part.len() >= 2 && part.as_bytes().iter().take(2).all(u8::is_ascii_hexdigit);
    let decoded = percent_decode_str(text).decode_utf8();
    match decoded {
        Ok(decoded) if text.split('%').skip(1).all(is_escape) => Ok(decoded.into_owned()),
        _ => Err(UriError::Invalid(format!(
            "{text:?} has a % without two hexadecimal digits, or is no UTF-8"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(address: &str, export: &str) -> Uri {
        Uri {
            place: Place::Tcp(address.to_owned()),
            tls: None,
            export: export.to_owned(),
        }
    }

    fn unix(path: &str, export: &str) -> Uri {
        Uri {
            place: Place::Unix(path.into()),
            tls: None,
            export: export.to_owned(),
        }
    }

    #[test]
    fn uris_are_those_of_the_nbd_project() {
        for (text, uri) in [
            ("nbd://example.com/disk", tcp("example.com:10809", "disk")),
            ("nbd+unix:///disk?socket=sock", unix("sock", "disk")),
            ("nbd://example.com/", tcp("example.com:10809", "")),
            ("nbd://example.com", tcp("example.com:10809", "")),
            ("nbd://example.com//disk", tcp("example.com:10809", "/disk")),
            ("nbd://example.com/hello%20world", tcp("example.com:10809", "hello world")),
            ("NBD://example.com:1/a/../b", tcp("example.com:1", "a/../b")),
            ("nbd://[::1]:7/%C3%BC", tcp("[::1]:7", "ü")),
            ("nbd://192.0.2.1/x", tcp("192.0.2.1:10809", "x")),
            ("nbd+unix://?socket=/run/a+b%20c", unix("/run/a+b c", "")),
            ("nbd+unix:///?socket=%00/abstract", unix("\0/abstract", "")),
        ] {
            assert_eq!(text.parse(), Ok(uri), "{text}");
        }
    }

    #[test]
    fn protected_ones_have_their_own_parameters() {
        let tls = |hostname: Option<&str>, certificates: Option<&str>| Tls {
            hostname: hostname.map(str::to_owned),
            certificates: certificates.map(Into::into),
        };
        for (text, uri, tls) in [
            ("nbds://example.com/disk", tcp("example.com:10809", "disk"), tls(None, None)),
            ("nbds://[::1]:7/disk?tls-type=x509", tcp("[::1]:7", "disk"), tls(None, None)),
            (
                "nbds+unix:///disk?tls-certificates=/etc/a%20b&socket=s&tls-hostname=host1",
                unix("s", "disk"),
                tls(Some("host1"), Some("/etc/a b")),
            ),
        ] {
            assert_eq!(text.parse(), Ok(Uri { tls: Some(tls), ..uri }), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused_and_why_is_said() {
        for (text, why) in [
            ("nbds://example.com/disk?tls-type=psk", "\"psk\""),
            ("nbds://example.com/disk?socket=s", "\"socket\" is not known"),
            ("nbds://example.com/disk?tls-hostname=", "no such value"),
            ("nbds://example.com/disk?tls-psk-file=k", "\"tls-psk-file\" is not known"),
            ("nbds+unix:///disk?socket=s&tls-hostname=a&tls-hostname=b", "twice"),
            ("nbds+unix:///disk", "?socket=PATH"),
            ("nbds://alice@example.com/disk", "a user is for TLS"),
            ("nbd://example.com/disk?tls-type=x509", "\"tls-type\" is not known"),
            ("nbd+unix:///disk?socket=s&tls-hostname=a", "\"tls-hostname\" is not known"),
            ("nbd://user@example.com/disk", "a user is for TLS"),
            ("nbd:///disk", "no host"),
            ("nbd://example.com:x/disk", "port"),
            ("nbd://example.com:0/disk", "port 0"),
            ("nbd://a%20b/disk", "name of a host"),
            ("nbd://example.com/a#b", "%23"),
            ("nbd://example.com/a b", "%XX"),
            ("nbd://example.com/a\tb", "%XX"),
            ("nbd://example.com/%zz", "hexadecimal"),
            ("nbd://example.com/%4", "hexadecimal"),
            ("nbd://example.com/%ff", "UTF-8"),
            ("nbd://example.com/%00", "NUL"),
            ("nbd+unix://host/disk?socket=s", "no host"),
            ("nbd+unix:///disk", "?socket=PATH"),
            ("nbd+unix:///disk?socket=", "?socket=PATH"),
            ("nbd+unix:///disk?socket=a&socket=b", "?socket=PATH"),
            ("http://example.com/disk", "another scheme"),
            ("nbd:example.com:10809", "another scheme"),
        ] {
            let refused = text.parse::<Uri>().expect_err(text).to_string();
            assert!(refused.contains(why), "{text}: {refused}");
        }
        assert!(format!("nbd://a/{}", "x".repeat(4096)).parse::<Uri>().is_ok());
        assert!(format!("nbd://a/{}", "x".repeat(4097)).parse::<Uri>().is_err());
    }
}
