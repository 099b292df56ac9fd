// SPDX-License-Identifier: GPL-2.0-or-later
//! The number of a session, as far as others may know it.

/// The mark in the names of all exports of one move. `None` if `session` is not a session number.
pub(crate) fn session_mark(session: &str) -> Option<&str> {
    let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    session.bytes().all(hex).then(|| session.get(..16)).flatten()
}

/// As much of a session's number as others on this host may know.
pub(crate) fn public_session(session: &str) -> &str {
    session_mark(session).unwrap_or(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_requires_a_session_number() {
        assert_eq!(session_mark("0123456789abcdef0123456789abcdef"), Some("0123456789abcdef"));
        for bad in ["", "0123456789abcde", "0123456789abcdeX0", "\u{e9}123456789abcdef0"] {
            assert_eq!(session_mark(bad), None, "{bad}");
        }
    }
}
