// SPDX-License-Identifier: GPL-2.0-or-later
//! A source leaves out contents that this side has announced or staged, and no others.

use super::*;
use crate::digest::Key;
use crate::endpoint::{Endpoint, Security};
use crate::staging::{StagingEvent, StagingSource};

/// A PAGES with one page, left out.
fn left_out(kind: Kind) -> Vec<u8> {
    let runs = [Run {
        range: PageRange::from_pgoff(3, 1).expect("a range"),
        kind,
    }];
    let mut payload = Vec::new();
    pages::encode_head(0, &runs, &mut payload);
    payload.resize(payload.len() + kind.bytes(), 7);
    frame(Type::Pages, 1, &payload)
}

fn key() -> Key {
    Key::from_bytes([1; 32])
}

/// What a page is answered with, for a connection with these features that has announced contents, or none.
fn fetched(features: u64, announces: bool, kind: Kind) -> Result<String, Error> {
    let bytes = [hello_with(Lane::Stream, features), left_out(kind)].concat();
    let mut peer = Peer::connect(&sender(bytes).to_string(), Lane::Stream, TIMEOUT)?;
    if announces {
        peer.announce(&key(), &[5])?;
    }
    peer.fetch(0, &[PageRange::from_pgoff(3, 1).expect("a range")])?;
    let answer = peer.next_answer()?;
    let contents: Vec<_> = answer.contents().map(|(_, contents)| contents).collect();
    Ok(format!("{contents:?}"))
}

#[test]
fn digests_come_only_for_contents_that_were_announced() {
    let known = fetched(FEATURE_HASHES, true, Kind::Known).expect("an answer");
    assert_eq!(known, format!("[Known({:?})]", [7; 16]));
    assert_eq!(
        protocol_error(fetched(FEATURE_HASHES, false, Kind::Known)),
        ProtocolError::Kind(3)
    );
    // Nothing is announced to a source that has not accepted it.
    assert_eq!(protocol_error(fetched(0, true, Kind::Known)), ProtocolError::Kind(3));
}

#[test]
fn same_pages_come_only_in_rounds() {
    assert_eq!(
        protocol_error(fetched(FEATURE_HASHES, true, Kind::Same)),
        ProtocolError::Kind(4)
    );
    let staged = |features| {
        let bytes = [hello_with(Lane::Stream, features | FEATURE_ROUNDS), left_out(Kind::Same)].concat();
        let endpoint = Endpoint::new(&sender(bytes).to_string(), Security::Loopback, TIMEOUT);
        let mut peer = endpoint.connect_staging()?;
        peer.next(1)?;
        match peer.next_event()? {
            StagingEvent::Pages(answer) => Ok(answer.pages()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(staged(FEATURE_HASHES).expect("an answer"), 1);
    assert_eq!(protocol_error(staged(0)), ProtocolError::Kind(4));
}

#[test]
fn announcement_is_split_into_valid_frames_and_withdrawn_by_an_empty_one() {
    let (said, heard) = std::sync::mpsc::channel();
    let address = server(move |mut socket| {
        socket
            .write_all(&hello_with(Lane::Stream, FEATURE_HASHES))
            .expect("somebody who listens");
        let mut all = Vec::new();
        socket.read_to_end(&mut all).expect("everything");
        said.send(all).expect("the test");
    });
    let mut peer = Peer::connect(&address.to_string(), Lane::Stream, TIMEOUT).expect("a good greeting");
    assert!(peer.can_hash());
    let prefixes: Vec<u64> = (0..10_000).collect();
    peer.announce(&key(), &prefixes).expect("room");
    peer.announce(&key(), &[]).expect("room");
    drop(peer);
    let all = heard.recv().expect("an answer");
    let mut rest = &all[greeting::SIZE..];
    let mut found = Vec::new();
    while let Some((header, after)) = rest.split_first_chunk::<24>() {
        let header = crate::wire::frame::Header::decode(header).expect("a header");
        let (payload, after) = after.split_at(header.length as usize);
        if header.kind == Type::Digests {
            found.push(crate::wire::digests::decode(payload).expect("a payload"));
        }
        rest = after;
    }
    let counts: Vec<_> = found.iter().map(|digests| digests.prefixes.len()).collect();
    assert_eq!(counts, [8192, 10_000 - 8192, 0]);
    let all: Vec<u64> = found.iter().flat_map(|digests| digests.prefixes.clone()).collect();
    assert_eq!(all, prefixes);
}
