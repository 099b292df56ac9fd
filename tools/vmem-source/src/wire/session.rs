// SPDX-License-Identifier: GPL-2.0-or-later
//! SESSION and JOIN: several connections that take part in the rounds of one destination.

use std::fmt;

use super::ProtocolError;
use super::fields::Fields;

pub(crate) const SESSION_SIZE: usize = 24;
pub(crate) const JOIN_SIZE: usize = Token::SIZE;

/// The most connections that take part in one destination's rounds.
pub(crate) const MAX_CONNECTIONS: usize = 16;

/// What a connection shows to take part in the rounds of another one: 128 random bits that only the destination of that connection was told.
#[derive(Clone, Copy)]
pub(crate) struct Token([u8; Self::SIZE]);

impl Token {
    const SIZE: usize = 16;

    /// A token that nobody can guess.
    pub(crate) fn random() -> std::io::Result<Self> {
        let mut bytes = [0; Self::SIZE];
        match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
            Ok(Self::SIZE) => Ok(Self(bytes)),
            Ok(_) => Err(std::io::Error::other("too few random numbers")),
            Err(error) => Err(error.into()),
        }
    }

    /// A token of these bits.
    #[cfg(test)]
    pub(crate) fn from_bits(bits: u128) -> Self {
        Self(bits.to_le_bytes())
    }
}

impl PartialEq for Token {
    /// Looks at all bytes, whichever differ: how long it takes says nothing of the token.
    fn eq(&self, other: &Self) -> bool {
        let pairs = self.0.iter().zip(&other.0);
        pairs.fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    /// A token is a secret: it must not get into a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// A SESSION.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Session {
    /// The token of the session.
    pub(crate) token: Token,
    /// The most connections of the session, with the first one.
    pub(crate) connections: usize,
}

pub(crate) fn encode_session(session: Session) -> [u8; SESSION_SIZE] {
    let mut payload = [0; SESSION_SIZE];
    payload[0..16].copy_from_slice(&session.token.0);
    payload[16..20].copy_from_slice(&(session.connections as u32).to_le_bytes());
    payload
}

pub(crate) fn decode_session(payload: &[u8]) -> Result<Session, ProtocolError> {
    let mut fields = Fields::new("SESSION", payload);
    let token = Token(fields.bytes()?);
    let connections = fields.count(MAX_CONNECTIONS)?;
    fields.reserved()?;
    fields.end()?;
    Ok(Session { token, connections })
}

pub(crate) fn encode_join(token: Token) -> [u8; JOIN_SIZE] {
    token.0
}

pub(crate) fn decode_join(payload: &[u8]) -> Result<Token, ProtocolError> {
    let mut fields = Fields::new("JOIN", payload);
    let token = Token(fields.bytes()?);
    fields.end()?;
    Ok(token)
}
