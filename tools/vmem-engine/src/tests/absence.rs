// SPDX-License-Identifier: GPL-2.0-or-later
//! Pages that cannot be filled for a while.

use super::*;

#[test]
fn region_without_memory_does_not_delay_others() {
    let files = [source_file(2000, 20), source_file(2000, 21)];
    let source = Source::new(&[("a", &files[0]), ("b", &files[1])]);
    for background in [true, false] {
        let regions = [2000, 2000].map(|pages| Arc::new(Memory::new(pages)));
        regions[0].set_room(100);
        // Programs want more than there is memory for, of the region that comes first.
        (0..500).for_each(|pgoff| regions[0].want(pgoff * 3));
        let options = Options { background, ..OPTIONS };
        let (mut engine, _) = start(&regions, to(source.address), options);
        wait_until(|| regions[0].present() == 100);
        for pgoff in [1999, 3, 1000, 77] {
            assert!(regions[1].touch(pgoff).is_some(), "page {pgoff}, background: {background}");
        }
        if background {
            wait_until(|| regions[1].present() == 2000);
        }
        let event = engine.next_event(Duration::from_secs(1));
        assert!(matches!(&event, Some(Event::NoMemory { name }) if name == "a"), "{event:?}");
        assert_eq!((regions[0].present(), engine.is_idle()), (100, false));
        // Little by little, and in the end enough.
        for room in [101, 150, u64::MAX] {
            thread::sleep(Duration::from_millis(300));
            regions[0].set_room(room);
        }
        for pgoff in 0..500 {
            assert!(
                regions[0].touch(pgoff * 3).is_some(),
                "page {pgoff}, background: {background}"
            );
        }
        finish(&mut engine).expect("a good end");
        assert_eq!(check(&regions[0], &files[0]), if background { 2000 } else { 500 });
        check(&regions[1], &files[1]);
        engine.stop();
    }
}

#[test]
fn page_whose_touch_timed_out_is_fetched_before_it_counts_as_unreadable() {
    let files = [source_file(300, 22), source_file(300, 23)];
    let source = Source::new(&[("a", &files[0]), ("b", &files[1])]);
    let regions = [300, 300].map(|pages| Arc::new(Memory::new(pages)));
    (10..300).for_each(|pgoff| regions[0].time_out(pgoff));
    let options = Options {
        background: false,
        ..OPTIONS
    };
    let (mut engine, _) = start(&regions, to(source.address), options);
    (0..10).for_each(|pgoff| assert!(regions[0].touch(pgoff).is_some()));
    wait_until(|| engine.is_idle());
    assert!(!engine.fetch_unreadable(0).expect("a thread"));
    assert!(!engine.is_idle(), "they are on their way");
    finish(&mut engine).expect("a good end");
    assert!(engine.fetch_unreadable(0).expect("no thread"));
    assert_eq!(check(&regions[0], &files[0]), 300);
    assert_eq!(regions[1].present(), 0, "nothing of the other");
    engine.stop();
}
