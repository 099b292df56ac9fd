// SPDX-License-Identifier: GPL-2.0-or-later
//! ERROR: why a side ends the connection.

use std::fmt;

use super::ProtocolError;
use super::fields::Fields;

const MAX_TEXT: usize = 512;

/// The longest payload in bytes.
pub(crate) const MAX_SIZE: usize = 4 + MAX_TEXT;

/// The code of an ERROR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ErrorCode {
    /// The peer violated the protocol, or its rounds cannot go on.
    Protocol,
    /// There are too many connections, or another one stages pages.
    Busy,
    /// A code that this side does not know.
    Other(u32),
}

impl From<u32> for ErrorCode {
    fn from(code: u32) -> Self {
        match code {
            1 => Self::Protocol,
            2 => Self::Busy,
            other => Self::Other(other),
        }
    }
}

impl From<ErrorCode> for u32 {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::Protocol => 1,
            ErrorCode::Busy => 2,
            ErrorCode::Other(other) => other,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol => f.write_str("protocol error"),
            Self::Busy => f.write_str("too many connections"),
            Self::Other(code) => write!(f, "code {code}"),
        }
    }
}

pub(crate) fn encode(code: ErrorCode, text: &str) -> Vec<u8> {
    let mut payload = u32::from(code).to_le_bytes().to_vec();
    let end = (0..=text.len().min(MAX_TEXT)).rev().find(|end| text.is_char_boundary(*end));
    payload.extend(&text.as_bytes()[..end.unwrap_or(0)]);
    payload
}

/// Decodes an ERROR. Its text comes from an untrusted peer and may be printed on a terminal: control characters are replaced.
pub(crate) fn decode(payload: &[u8]) -> Result<(ErrorCode, String), ProtocolError> {
    let mut fields = Fields::new("ERROR", payload);
    let code = fields.u32()?.into();
    let text = String::from_utf8_lossy(fields.rest());
    Ok((code, text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()))
}
