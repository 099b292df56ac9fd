// SPDX-License-Identifier: GPL-2.0-or-later
//! Access orders: merged, kept within bounds, encrypted, and never believed.

use std::time::Duration;

use super::model::*;
use crate::envelope::{Kind, Seal, wrap};
use crate::error::Error;
use crate::objects::{Faults, Put};
use crate::order::Order;
use crate::{Image, InitOptions, Touch, UserKey};

const PAGES: u64 = 800;

fn touches(runs: &[(u64, u64)]) -> Vec<Touch> {
    let touch = |(first, count): &(u64, u64)| Touch {
        backend: 0,
        pages: range(*first, *count),
    };
    runs.iter().map(touch).collect()
}

/// A store with one checkpoint, all of whose pages have contents.
fn image(place: &Place) -> Image {
    let mut guest = Guest::new(PAGES as usize);
    guest.pages.iter_mut().zip(1..).for_each(|(seed, at)| *seed = at);
    checkpoint(&place.store, &guest, None).unwrap();
    place.store.image(&name(1)).unwrap()
}

/// The order of the checkpoint's memory; what it wrote itself has a blob, too.
fn order_of_memory(place: &Place, image: &Image) -> Vec<Touch> {
    let mut order = place.store.order(image).unwrap();
    order.retain(|touch| touch.backend == 0);
    order
}

/// Puts a recording that no recorder has written.
fn forge(place: &Place, backends: &[&str], runs: Vec<Touch>) {
    let order = Order {
        backends: backends.iter().map(|name| (*name).to_owned()).collect(),
        runs,
    };
    let name = format!("orders/guest0/0000000001/{:013}-{:032x}.vord", 9_999_999_999_999_u64, 7);
    let object = wrap(Kind::Order, &name, &order.encode(), &Seal::Store(&place.store.base.crypto)).unwrap();
    place.store.base.put(&name, &object, Put::Replace).unwrap();
}

#[test]
fn pages_of_the_newest_recording_come_first_and_four_recordings_count() {
    let place = place();
    let image = image(&place);
    for at in 0..6 {
        place.time.pass(Duration::from_secs(1));
        // Each has a page that all have, one that it shares with the next, and one of its own.
        let runs = [(700, 1), (at * 10 + 10, 1), (at * 10, 1), (500 + at, 1)];
        place.store.record_order(&image, &touches(&runs)).unwrap();
    }
    let expected = [
        (700, 1),
        (60, 1),
        (50, 1),
        (505, 1),
        (40, 1),
        (504, 1),
        (30, 1),
        (503, 1),
        (20, 1),
        (502, 1),
    ];
    assert_eq!(place.store.order(&image).unwrap(), touches(&expected));
    assert_eq!(
        place.store.base.list("orders/").unwrap().len(),
        4,
        "older recordings are deleted"
    );
}

#[test]
fn order_that_names_pages_again_and_again_or_foreign_ones_is_cut() {
    let place = place();
    let image = image(&place);
    let all = Touch {
        backend: 1,
        pages: range(0, PAGES),
    };
    let foreign = Touch {
        backend: 0,
        pages: range(0, 1 << 40),
    };
    let beyond = Touch {
        backend: 1,
        pages: range(PAGES, 1 << 40),
    };
    let first = Touch {
        backend: 1,
        pages: range(790, 1 << 40),
    };
    let mut runs = vec![foreign, beyond, first];
    runs.extend(std::iter::repeat_n(all, 100_000));
    forge(&place, &["other", "ram"], runs);
    // Ten pages are used up, so that the next run is more than the checkpoint has.
    assert_eq!(place.store.order(&image).unwrap(), touches(&[(790, 10)]));
    let planned = image.plan(&place.store.order(&image).unwrap()).unwrap();
    let of_memory = planned.iter().filter(|touch| touch.backend == 0);
    assert_eq!(of_memory.map(|touch| touch.pages.count()).sum::<u64>(), PAGES);
}

#[test]
fn order_of_a_memory_that_the_checkpoint_does_not_have_is_passed_over() {
    let place = place();
    let image = image(&place);
    place.store.record_order(&image, &touches(&[(7, 2)])).unwrap();
    forge(&place, &["other"], touches(&[(1, 5)]));
    assert_eq!(place.store.order(&image).unwrap(), touches(&[(7, 2)]));
}

#[test]
fn order_that_does_not_parse_is_passed_over() {
    let place = place();
    let image = image(&place);
    place.store.record_order(&image, &touches(&[(7, 2)])).unwrap();
    for body in [&b""[..], b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\0\x05"] {
        let name = format!("orders/guest0/0000000001/{:013}-{:032x}.vord", 9_999_999_999_999_u64, 7);
        for object in [
            wrap(Kind::Order, &name, body, &Seal::Store(&place.store.base.crypto)).unwrap(),
            body.to_vec(),
        ] {
            place.store.base.put(&name, &object, Put::Replace).unwrap();
            assert_eq!(place.store.order(&image).unwrap(), touches(&[(7, 2)]));
        }
    }
}

#[test]
fn order_in_an_encrypted_store_shows_no_pages_and_cannot_be_forged() {
    let key = UserKey::from_bytes(&[7; 32]).unwrap();
    let place = place_with(&InitOptions {
        key: Some(key),
        ..small()
    });
    let image = image(&place);
    let touched = touches(&[(700, 1), (3, 40), (77, 5)]);
    place.store.record_order(&image, &touched).unwrap();
    let name = place.store.base.list("orders/").unwrap().remove(0).name;
    let plain = Order {
        backends: image.backends().iter().map(|backend| backend.name.clone()).collect(),
        runs: touched.clone(),
    };
    let runs = plain.encode().split_off(5);
    assert!(place.memory.tamper(&name, |object| {
        assert!(
            !object.windows(3).any(|bytes| bytes == b"ram"),
            "the name of the memory is there"
        );
        assert!(!object.windows(runs.len()).any(|bytes| bytes == runs), "the pages are there");
    }));
    assert_eq!(place.store.order(&image).unwrap(), touched);
    // What another writer puts there without the key is not an order.
    let forged = wrap(Kind::Order, &name, &plain.encode(), &Seal::Open).unwrap();
    assert!(place.memory.tamper(&name, |object| *object = forged));
    assert_eq!(
        order_of_memory(&place, &image),
        touches(&[(0, PAGES)]),
        "the pages that it wrote"
    );
}

#[test]
fn order_is_not_recorded_in_a_store_that_cannot_be_written_to() {
    let place = place();
    let image = image(&place);
    place.memory.set_faults(Faults {
        stop_after: Some(0),
        ..Faults::default()
    });
    let failed = place.store.record_order(&image, &touches(&[(7, 2)]));
    assert!(matches!(failed, Err(Error::Object { action: "write", .. })), "{failed:?}");
    assert_eq!(order_of_memory(&place, &image), touches(&[(0, PAGES)]));
}
