// SPDX-License-Identifier: GPL-2.0-or-later
//! The end of QEMU's migration stream: the state of the devices, and how to know that all of it is there.

/// The byte that ends the devices' state in QEMU's stream, and the byte that begins their description (QEMU's `migration/savevm.h`).
const END_AND_DESCRIPTION: [u8; 2] = [0x00, 0x06];

/// The length of those two bytes and of the description's length, which is big endian.
const HEADER: usize = 6;

/// What QEMU has written of its stream so far, or of the last part of it.
///
/// QEMU writes a description of the devices last, and writes to the guest's memory no more when the description is there. A machine with
/// `suppress-vmdesc` has no description ([`obstacles`](crate::obstacles)).
#[derive(Debug, Default)]
pub struct DeviceState {
    bytes: Vec<u8>,
    /// The position of the last byte that is 0. A description has no such byte.
    last_zero: Option<usize>,
    /// The bytes end with a whole description, so QEMU has written everything.
    is_complete: bool,
}

impl DeviceState {
    /// Adds what QEMU has written next.
    pub fn push(&mut self, bytes: &[u8]) {
        let zero = bytes.iter().rposition(|byte| *byte == 0);
        self.last_zero = zero.map(|at| self.bytes.len().saturating_add(at)).or(self.last_zero);
        self.bytes.extend_from_slice(bytes);
        self.is_complete = self.ends_with_description();
    }

    /// Whether QEMU has written everything.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Whether the bytes end with QEMU_VM_EOF and a whole description: its length in bytes, and as many bytes of JSON.
    fn ends_with_description(&self) -> bool {
        let Some(last_zero) = self.last_zero.filter(|_| self.bytes.last() == Some(&b'}')) else {
            return false;
        };
        // The last 0 is a byte of the header: the first one, or one of the length.
        let first = last_zero.saturating_sub(HEADER - 1);
        (first..=last_zero).any(|at| self.bytes.get(at..).is_some_and(is_description))
    }
}

/// Whether `bytes` are QEMU_VM_EOF and a whole description, and nothing else.
fn is_description(bytes: &[u8]) -> bool {
    let Some((header, text)) = bytes.split_first_chunk::<HEADER>() else {
        return false;
    };
    let [end, description, length @ ..] = *header;
    [end, description] == END_AND_DESCRIPTION
        && usize::try_from(u32::from_be_bytes(length)) == Ok(text.len())
        && text.first() == Some(&b'{')
        && text.last() == Some(&b'}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorded::END;

    /// Whether a stream that arrives in these pieces is complete.
    fn is_complete(pieces: &[&[u8]]) -> bool {
        let mut stored = DeviceState::default();
        pieces.iter().for_each(|piece| stored.push(piece));
        stored.is_complete()
    }

    /// QEMU_VM_EOF and a description of this length.
    fn description(length: usize) -> Vec<u8> {
        let mut bytes = vec![0, 6];
        bytes.extend_from_slice(&u32::try_from(length).expect("a length").to_be_bytes());
        bytes.push(b'{');
        bytes.resize(HEADER + length - 1, b'x');
        bytes.push(b'}');
        bytes
    }

    #[test]
    fn recorded_stream_is_complete_at_its_last_byte_and_not_before() {
        for at in 0..END.len() {
            assert!(!is_complete(&[&END[..at]]), "{at} bytes");
            assert!(is_complete(&[&END[..at], &END[at..]]), "cut at {at}");
        }
        assert!(!is_complete(&[END, b"x"]), "more follows");
        assert!(!is_complete(&[END, b"}"]), "more follows");
        let mut stored = DeviceState::default();
        END.iter().for_each(|byte| stored.push(&[*byte]));
        assert!(stored.is_complete(), "byte by byte");
    }

    #[test]
    fn description_of_any_length_is_recognised() {
        for length in [2, 0x7f, 0x100, 0x101, 0x1_0000, 0x1_0001, 0x1_0100, 0x101_0101] {
            let bytes = description(length);
            assert!(is_complete(&[b"state", &bytes]), "{length}");
            assert!(is_complete(&[&[0, 0, 0, 6, 6], &bytes]), "{length} after zeros");
        }
    }

    #[test]
    fn stream_without_a_description_is_never_complete() {
        let without = END.len() - 1024 - HEADER + 1;
        assert!(!is_complete(&[&END[..without]]), "suppressed");
        assert!(!is_complete(&[b"}"]));
        assert!(!is_complete(&[&[0], b"}"]));
        let mut no_text = description(8);
        no_text[HEADER] = b'[';
        assert!(!is_complete(&[&no_text]));
        let mut no_end = description(8);
        no_end[0] = 1;
        assert!(!is_complete(&[&no_end]));
        let mut other = description(8);
        other[1] = 7;
        assert!(!is_complete(&[&other]));
    }
}
