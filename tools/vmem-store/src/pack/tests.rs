// SPDX-License-Identifier: GPL-2.0-or-later
//! Packs are read as they were written, and damage is found.

use proptest::prelude::*;

use super::*;
use crate::codec::{Compression, compress};
use crate::crypto::KeyRing;

fn id() -> PackId {
    PackId {
        writer: WriterId([7; 16]),
        number: 3,
    }
}

fn crypto(sealed: bool) -> Crypto {
    Crypto::new(sealed.then(|| KeyRing {
        hash: [1; 32],
        masters: vec![[2; 32]],
    }))
}

fn page(seed: u32) -> Vec<u8> {
    seed.to_le_bytes().repeat(PAGE_SIZE / 4)
}

fn build(frames: &[u32], crypto: &Crypto) -> (Vec<u8>, PackInfo) {
    let mut builder = PackBuilder::new(id(), crypto).unwrap();
    for count in frames {
        let first = builder.pages();
        let data: Vec<u8> = (first..first + count).flat_map(page).collect();
        let pages: Vec<_> = (first..first + count)
            .map(|number| {
                let origin = Origin {
                    backend: number / 5,
                    pgoff: u64::from(number * number),
                };
                (origin, crypto.hash16(&page(number)))
            })
            .collect();
        let (codec, stored) = compress(Compression::Zstd(1), data);
        assert_eq!(builder.append(codec, stored, &pages), first);
    }
    builder.finish(None, crypto)
}

fn open(object: &[u8], crypto: &Crypto) -> Result<Pack, Error> {
    match Pack::open(id(), 0, object, object.len() as u64, crypto)? {
        Opened::Pack(pack) => Ok(*pack),
        Opened::Needs(bytes) => Err(Error::damaged("pack", format!("{bytes} bytes of {}", object.len()))),
    }
}

fn read(pack: &Pack, object: &[u8], number: u32) -> Result<Vec<u8>, Error> {
    let (at, slot) = pack
        .footer
        .locate(number)
        .ok_or_else(|| Error::damaged("page", "given back"))?;
    let frame = pack.footer.frames[at];
    let stored = object[frame.offset as usize..][..frame.length as usize].to_vec();
    let data = pack.open_frame(at, stored)?;
    Ok(data[slot as usize * PAGE_SIZE..][..PAGE_SIZE].to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn pages_come_back_and_no_changed_byte_goes_unseen(
        frames in proptest::collection::vec(1..20_u32, 0..8), sealed: bool, at: prop::sample::Index, bit in 0..8_u8,
    ) {
        let crypto = crypto(sealed);
        let (object, info) = build(&frames, &crypto);
        let pack = open(&object, &crypto).unwrap();
        pack.check(&info, &crypto).unwrap();
        prop_assert_eq!(info.pages, frames.iter().sum::<u32>());
        for number in 0..info.pages {
            prop_assert_eq!(read(&pack, &object, number).unwrap(), page(number));
            prop_assert_eq!(pack.footer.pages.origin(number).unwrap().pgoff, u64::from(number * number));
        }
        prop_assert!(pack.footer.locate(info.pages).is_none());
        // A changed byte: every page is the right one or an error.
        let mut changed = object.clone();
        let at = at.index(changed.len());
        changed[at] ^= 1 << bit;
        if let Ok(pack) = open(&changed, &crypto) {
            pack.check(&info, &crypto).unwrap();
            for number in 0..info.pages {
                if let Ok(found) = read(&pack, &changed, number) {
                    prop_assert_eq!(found, page(number));
                }
            }
        }
    }

    #[test]
    fn trimmed_pack_has_its_live_pages_under_their_numbers_and_the_same_hash(
        frames in proptest::collection::vec(1..20_u32, 1..6), keep: u64, sealed: bool,
    ) {
        let crypto = crypto(sealed);
        let (object, info) = build(&frames, &crypto);
        let pack = open(&object, &crypto).unwrap();
        let live = Live::of(info.pages, |number| (keep >> (number % 64)) & 1 == 1);
        let mut builder = PackBuilder::trimmed(&pack, 1, &crypto).unwrap();
        for number in (0..info.pages).filter(|number| live.contains(*number)) {
            builder.append_frame(Codec::Raw, page(number), 1);
        }
        let (trimmed, again) = builder.finish(Some(live.clone()), &crypto);
        prop_assert_eq!(again, info);
        let Ok(Opened::Pack(pack)) = Pack::open(id(), 1, &trimmed, trimmed.len() as u64, &crypto) else { panic!("opens") };
        pack.check(&info, &crypto).unwrap();
        for number in 0..info.pages {
            match read(&pack, &trimmed, number) {
                Ok(found) => prop_assert!(live.contains(number) && found == page(number)),
                Err(_) => prop_assert!(!live.contains(number)),
            }
        }
        for (at, frame) in pack.footer.frames.iter().enumerate() {
            for (slot, number) in pack.footer.numbers(frame).into_iter().enumerate() {
                prop_assert_eq!(pack.footer.locate(number), Some((at, slot as u32)));
            }
        }
    }

    #[test]
    fn any_tail_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400), size: u64) {
        prop_assert!(Pack::open(id(), 0, &bytes, size, &crypto(false)).is_err());
    }

    #[test]
    fn any_table_is_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400), pages in 0..300_u32, frames in 0..60_u32) {
        if let Ok(table) = Pages::decode(&bytes) {
            prop_assert_eq!(table.encode().len(), bytes.len());
        }
        if let Ok((live, table)) = decode_frames(&bytes, pages, frames, bytes.len() as u64) {
            prop_assert_eq!(table.iter().map(|frame| frame.pages).sum::<u32>(), live.count());
        }
    }
}

#[test]
fn first_read_says_how_much_more_it_needs() {
    let crypto = crypto(false);
    let (object, info) = build(&[16; 16], &crypto);
    let size = object.len() as u64;
    let Ok(Opened::Needs(tail)) = Pack::open(id(), 0, &object[object.len() - 200..], size, &crypto) else {
        panic!("200 bytes are not enough");
    };
    let Ok(Opened::Pack(pack)) = Pack::open(id(), 0, &object[object.len() - tail as usize..], size, &crypto) else {
        panic!("{tail} bytes are enough");
    };
    assert_eq!(pack.footer.pages.hashes.len(), info.pages as usize);
    // 16 bytes a page for the hash, and here, where no page follows another, up to six for frames and origins.
    assert!(tail <= 22 * u64::from(info.pages) + TRAILER_BYTES as u64, "{tail}");
    assert!(Pack::open(id(), 1, &object, size, &crypto).is_err());
    assert!(Pack::open(id(), 0, &object, size + 1, &crypto).is_err());
}
