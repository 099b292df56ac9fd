// SPDX-License-Identifier: GPL-2.0-or-later
//! The names in a certificate.

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;
use std::str::FromStr;

use rcgen::SanType;
use x509_parser::extensions::GeneralName;

use crate::error::Error;

/// The most bytes of a name, and of a label of it (RFC 1035, section 2.3.4).
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// The name of a host in the DNS, or its address: a subject alternative name (RFC 5280, section 4.2.1.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostName {
    /// A name, of letters, digits, hyphens and underscores, in labels between dots.
    Dns(String),
    /// An address of IPv4 or IPv6.
    Address(IpAddr),
}

impl HostName {
    /// For a certificate that is made.
    pub(crate) fn to_san(&self) -> Result<SanType, Error> {
        Ok(match self {
            Self::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
            Self::Address(address) => SanType::IpAddress(*address),
        })
    }

    /// Of a certificate. Names of other kinds are left out.
    pub(crate) fn from_general_name(name: &GeneralName<'_>) -> Option<Self> {
        match name {
            GeneralName::DNSName(name) => Some(Self::Dns((*name).to_owned())),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from))
                    .ok()
                    .map(Self::Address)
            }
            _ => None,
        }
    }
}

impl FromStr for HostName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let is_label = |label: &str| {
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            (1..=LABEL_MAX).contains(&label.len())
                && label.chars().all(is_allowed)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // Verifiers take a name that ends with a number for an address.
        let is_number = |label: &str| label.chars().all(|c| c.is_ascii_digit());
        let is_name = text.len() <= NAME_MAX && text.split('.').all(is_label) && !text.rsplit('.').next().is_some_and(is_number);
        match is_name {
            true => Ok(Self::Dns(text.to_owned())),
            false => Err(Error::Name(text.to_owned())),
        }
    }
}

impl Display for HostName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}
