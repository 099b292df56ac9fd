// SPDX-License-Identifier: GPL-2.0-or-later
//! Numbers and messages of the protocol (proto.md, "Values"). All integers are big-endian.

/// The first 16 bytes of a newstyle server.
pub(crate) const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// The second half of the greeting of an oldstyle server.
pub(crate) const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// Begins each option of a client, and is the second half of the server's greeting.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Begins each reply to an option.
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Begins each request.
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Begins a simple reply.
pub(crate) const SIMPLE_MAGIC: u32 = 0x6744_6698;
/// Begins a chunk of a structured reply.
pub(crate) const STRUCTURED_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags, which the client's have the same numbers as.
pub(crate) const FIXED_NEWSTYLE: u16 = 1;
/// No zeros after the answer to [`option::EXPORT_NAME`].
pub(crate) const NO_ZEROES: u16 = 2;

/// Options.
pub(crate) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const STARTTLS: u32 = 5;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
}

/// Replies to options. Errors have bit 31.
pub(crate) mod reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    pub(crate) const ERROR: u32 = 1 << 31;
    pub(crate) const UNSUP: u32 = ERROR + 1;
    pub(crate) const POLICY: u32 = ERROR + 2;
    pub(crate) const INVALID: u32 = ERROR + 3;
    pub(crate) const TLS_REQD: u32 = ERROR + 5;
    pub(crate) const UNKNOWN: u32 = ERROR + 6;
    pub(crate) const SHUTDOWN: u32 = ERROR + 7;
    pub(crate) const BLOCK_SIZE_REQD: u32 = ERROR + 8;
}

/// Kinds of information about an export.
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub(crate) mod flag {
    pub(crate) const HAS_FLAGS: u16 = 1;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Requests.
pub(crate) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;
    /// Flag of BLOCK_STATUS: one extent is enough.
    pub(crate) const FLAG_REQ_ONE: u16 = 1 << 3;
}

/// Chunks of structured replies. Errors have bit 15.
pub(crate) mod chunk {
    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const OFFSET_HOLE: u16 = 2;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    pub(crate) const ERROR_BIT: u16 = 1 << 15;
    pub(crate) const ERROR: u16 = ERROR_BIT + 1;
    pub(crate) const ERROR_OFFSET: u16 = ERROR_BIT + 2;
    /// Flag: the last one of its reply.
    pub(crate) const FLAG_DONE: u16 = 1;
}

/// Errors of requests.
pub(crate) mod errno {
    pub(crate) const EPERM: u32 = 1;
    pub(crate) const EIO: u32 = 5;
    pub(crate) const EINVAL: u32 = 22;
    pub(crate) const ESHUTDOWN: u32 = 108;
}

/// The name of the one metadata context, and its flags.
pub(crate) const ALLOCATION: &str = "base:allocation";
pub(crate) const STATE_HOLE: u32 = 1;
pub(crate) const STATE_ZERO: u32 = 2;

/// Most extents of one reply.
pub(crate) const MAX_EXTENTS: u32 = 1 << 20;

/// Longest string: names, queries, messages.
pub(crate) const MAX_STRING: usize = 4096;
/// Most bytes of an option, or of the reply to one, that either side reads.
pub(crate) const MAX_OPTION: u32 = 64 << 10;
/// Most bytes that one request reads.
pub(crate) const MAX_PAYLOAD: u32 = 32 << 20;

/// Reads big-endian integers and strings off the front of a message. [`None`] is a message that is too short.
#[derive(Debug)]
pub(crate) struct Parser<'a>(pub(crate) &'a [u8]);

impl<'a> Parser<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(front)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string with its length before it.
    pub(crate) fn string(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        if length > MAX_STRING {
            return None;
        }
        std::str::from_utf8(self.bytes(length)?).ok()
    }
}

/// A request of the transmission phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

impl Request {
    pub(crate) const SIZE: usize = 28;

    pub(crate) fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let parts: [&[u8]; 6] = [
            &REQUEST_MAGIC.to_be_bytes(),
            &self.flags.to_be_bytes(),
            &self.command.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.length.to_be_bytes(),
        ];
        bytes.copy_from_slice(&parts.concat());
        bytes
    }

    /// [`None`] if it does not begin with the magic number.
    pub(crate) fn decode(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let mut parser = Parser(bytes);
        parser.u32().filter(|magic| *magic == REQUEST_MAGIC)?;
        Some(Self {
            flags: parser.u16()?,
            command: parser.u16()?,
            cookie: parser.u64()?,
            offset: parser.u64()?,
            length: parser.u32()?,
        })
    }
}

/// The header of a simple reply.
pub(crate) fn simple_reply(error: u32, cookie: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&[&SIMPLE_MAGIC.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat());
    bytes
}

/// The header of a chunk of a structured reply.
pub(crate) fn chunk_header(flags: u16, kind: u16, cookie: u64, length: u32) -> [u8; 20] {
    let mut bytes = [0; 20];
    let parts: [&[u8]; 5] = [
        &STRUCTURED_MAGIC.to_be_bytes(),
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &length.to_be_bytes(),
    ];
    bytes.copy_from_slice(&parts.concat());
    bytes
}

/// An option of the client, with its header.
pub(crate) fn option_message(option: u32, data: &[u8]) -> Vec<u8> {
    let header = [
        &OPTION_MAGIC.to_be_bytes()[..],
        &option.to_be_bytes(),
        &(data.len() as u32).to_be_bytes(),
    ];
    [&header.concat(), data].concat()
}

/// The reply to an option, with its header.
pub(crate) fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let header = [
        &OPTION_REPLY_MAGIC.to_be_bytes()[..],
        &option.to_be_bytes(),
        &kind.to_be_bytes(),
        &(data.len() as u32).to_be_bytes(),
    ];
    [&header.concat(), data].concat()
}

/// A string with its length before it.
pub(crate) fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_has_the_bytes_of_the_protocol() {
        // 256 KiB at 1 MiB, as the protocol's "Request message" has it.
        let bytes = [
            0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 4, 0, 0,
        ];
        let request = Request {
            flags: 0,
            command: command::READ,
            cookie: 3,
            offset: 1 << 20,
            length: 256 << 10,
        };
        assert_eq!(request.encode(), bytes);
        assert_eq!(Request::decode(&bytes), Some(request));
        let mut other = bytes;
        other[0] = 0;
        assert_eq!(Request::decode(&other), None);
    }

    #[test]
    fn option_has_its_magic_number_and_length() {
        let message = option_message(option::LIST, b"ab");
        assert_eq!(message, b"IHAVEOPT\0\0\0\x03\0\0\0\x02ab");
        let reply = option_reply(option::LIST, reply::UNSUP, b"");
        assert_eq!(reply, b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x03\x80\0\0\x01\0\0\0\0");
    }

    #[test]
    fn parser_refuses_what_is_cut_off_or_too_long() {
        let text = string("export");
        assert_eq!(Parser(&text).string(), Some("export"));
        for end in 0..text.len() {
            assert_eq!(Parser(&text[..end]).string(), None, "{end}");
        }
        let longest = string(&"x".repeat(MAX_STRING));
        assert!(Parser(&longest).string().is_some());
        let long = string(&"x".repeat(MAX_STRING + 1));
        assert_eq!(Parser(&long).string(), None);
        assert_eq!(Parser(b"\xff\xff\xff\xffx").string(), None);
        assert_eq!(Parser(b"\0\0\0\x01\xff").string(), None, "no UTF-8");
    }
}
