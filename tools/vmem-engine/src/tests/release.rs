// SPDX-License-Identifier: GPL-2.0-or-later
//! The source gives back what has arrived.

use std::os::unix::fs::MetadataExt;

use vmem_source::memory::Memory as Exported;

use super::source::spec;
use super::*;

/// How much memory a file takes.
fn blocks(file: &NamedTempFile) -> u64 {
    file.as_file().metadata().expect("metadata").blocks()
}

#[test]
fn source_releases_arrived_pages_once_permitted() {
    let records = tempfile::tempdir().expect("a directory");
    let file = source_file(3000, 17);
    let wanted = std::fs::read(file.path()).expect("the source");
    let exported = Exported::open_releasable(&spec("ram", &file), records.path()).expect("memory");
    let source = Source::of(([127, 0, 0, 1], 0).into(), vec![exported]);
    let memory = Arc::new(Memory::new(3000));
    let release = Arc::new(Release::new(Permission::Pending));
    let (mut engine, _) = start_releasing(&[Arc::clone(&memory)], to(source.address), OPTIONS, Arc::clone(&release));
    wait_until(|| memory.present() == 3000);
    assert!(!engine.is_release_complete());
    assert!(
        std::fs::read(file.path()).expect("the source") == wanted,
        "nothing is given back yet"
    );
    release.set(Permission::Given);
    finish(&mut engine).expect("a good end");
    assert!(engine.is_release_complete());
    // What was said last is on its way.
    wait_until(|| blocks(&file) == 0);
    assert!(memory.contents().0 == wanted);
    engine.stop();
}

#[test]
fn pages_of_an_unmapped_region_are_not_released() {
    let records = tempfile::tempdir().expect("a directory");
    let files = [source_file(300, 18), source_file(300, 19)];
    let exported =
        |name: &str, file: &NamedTempFile| Exported::open_releasable(&spec(name, file), records.path()).expect("memory");
    let memories = vec![exported("a", &files[0]), exported("b", &files[1])];
    let source = Source::of(([127, 0, 0, 1], 0).into(), memories);
    let regions = [300, 300].map(|pages| Arc::new(Memory::new(pages)));
    regions[1].set_mapped(false);
    let release = Arc::new(Release::new(Permission::Given));
    let (mut engine, _) = start_releasing(&regions, to(source.address), OPTIONS, Arc::clone(&release));
    wait_until(|| blocks(&files[0]) == 0);
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(check(&regions[1], &files[1]), 300, "nothing of it is given back");
    assert!(!engine.is_release_complete());
    regions[1].set_mapped(true);
    finish(&mut engine).expect("a good end");
    assert!(engine.is_release_complete());
    wait_until(|| blocks(&files[1]) == 0);
    engine.stop();
}
