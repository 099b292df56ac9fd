// SPDX-License-Identifier: GPL-2.0-or-later
//! SESSION, JOIN and ENDED.

use super::*;
use crate::wire::session::{MAX_CONNECTIONS, Session, Token, decode_join, decode_session, encode_join, encode_session};

proptest! {
    #[test]
    fn session_round_trip(bits: u128, connections in 1..=MAX_CONNECTIONS) {
        let session = Session { token: Token::from_bits(bits), connections };
        prop_assert_eq!(decode_session(&encode_session(session)), Ok(session));
        prop_assert_eq!(decode_join(&encode_join(session.token)), Ok(session.token));
    }

    #[test]
    fn tokens_that_differ_in_a_bit_differ(bits: u128, bit in 0..128_u32) {
        prop_assert_ne!(Token::from_bits(bits), Token::from_bits(bits ^ (1 << bit)));
    }

    /// No decoder panics or takes much memory, whatever it is given.
    #[test]
    fn garbage_is_refused_or_means_something(bytes in vec(any::<u8>(), 0..40)) {
        let _ = decode_session(&bytes);
        let _ = decode_join(&bytes);
    }
}

#[test]
fn session_with_invalid_fields_is_refused() {
    let session = |connections: u32, reserved: u32| {
        let fields = [7, 7, 7, 7, connections, reserved].map(u32::to_le_bytes);
        decode_session(fields.as_flattened())
    };
    assert!(session(1, 0).is_ok() && session(16, 0).is_ok());
    for count in [0, 17, u32::MAX] {
        let (what, limit) = ("SESSION", 16);
        assert_eq!(session(count, 0), Err(ProtocolError::Count { what, count, limit }));
    }
    assert_eq!(session(1, 1), Err(ProtocolError::Reserved("SESSION")));
    assert_eq!(
        decode_session(&[1; 20]),
        Err(ProtocolError::Count {
            what: "SESSION",
            count: 0x0101_0101,
            limit: 16
        })
    );
    assert_eq!(decode_session(&[0; 15]), Err(ProtocolError::Short("SESSION")));
    assert_eq!(decode_join(&[0; 15]), Err(ProtocolError::Short("JOIN")));
    assert_eq!(decode_join(&[0; 17]), Err(ProtocolError::Trailing { what: "JOIN", extra: 1 }));
}

#[test]
fn token_does_not_get_into_a_log() {
    assert_eq!(format!("{:?}", Token::from_bits(0x1234_5678)), "Token(..)");
}

#[test]
fn header_with_a_length_beyond_that_of_its_type_is_refused() {
    for (kind, what, limit) in [(14, "SESSION", 24), (15, "JOIN", 16), (16, "ENDED", 0)] {
        assert!(Header::decode(&header(limit, kind, 0)).is_ok(), "{what}");
        let length = limit + 1;
        assert_eq!(
            Header::decode(&header(length, kind, 0)),
            Err(ProtocolError::TooLong { what, length, limit })
        );
    }
}
