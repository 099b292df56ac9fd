// SPDX-License-Identifier: GPL-2.0-or-later
//! A file that is truncated while the module reads it.

use std::fs::{self, OpenOptions};
use std::hint::spin_loop;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::thread;

use rustix::fs::OFlags;
use rustix::io::Errno;
use vmem::PAGE_SIZE;

use super::all_of;
use crate::failure::{Outcome, ensure};
use crate::setting::{Setting, bytes_of, contents};
use crate::suite::files::{Mount, region};
use crate::world::run_command;

crate::tests![file_that_is_truncated_meanwhile_gives_no_zeros];

/// A tmpfs whose files have large folios, mounted until it is dropped.
struct Tmpfs;

impl Tmpfs {
    const PATH: &str = "/mnt/large";

    fn new() -> Outcome<Self> {
        fs::create_dir_all(Self::PATH)?;
        run_command("mount", &["-t", "tmpfs", "-o", "huge=always", "tmpfs", Self::PATH])?;
        Ok(Self)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = run_command("umount", &["--lazy", Self::PATH]);
    }
}

/// What a large folio loses by a truncation is zeros in it, as long as somebody holds it.
fn file_that_is_truncated_meanwhile_gives_no_zeros() -> Outcome {
    const PAGES: usize = 512;
    const ROUNDS: usize = 50;
    let (mount, tmpfs) = (Mount::new("a")?, Tmpfs::new()?);
    let all: Vec<u8> = (0..PAGES as u64).flat_map(|pgoff| bytes_of(&contents(pgoff))).collect();
    let (mut kept, mut lost) = (0, 0);
    for round in 0..ROUNDS {
        let setting = Setting::create(region("one", PAGES))?;
        let mut source = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(format!("{}/source", Tmpfs::PATH))?;
        source.write_all(&all)?;
        setting.region.set_backing(setting.region.pages(), all_of(&source, 64))?;
        // Pages that the file has lost are requested, and nobody brings them.
        let file = mount.open_with("one", OFlags::NONBLOCK)?;
        thread::scope(|scope| -> Outcome {
            let reader = scope.spawn(|| -> Outcome<usize> {
                let mut page = vec![0; PAGE_SIZE];
                let mut read = 0;
                for pgoff in (0..PAGES).map(|step| step * 67 % PAGES) {
                    match file.read_at(&mut page, (pgoff * PAGE_SIZE) as u64) {
                        Ok(_) => read += 1,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                        Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => continue,
                        Err(error) => return Err(error.into()),
                    }
                    ensure!(
                        page == bytes_of(&contents(pgoff as u64)),
                        "page {pgoff}, which the file has lost, has other contents (round {round})"
                    );
                }
                Ok(read)
            });
            (0..round * 2000).for_each(|_| spin_loop());
            source.set_len(PAGE_SIZE as u64)?;
            let read = reader.join().map_err(|_| "a thread has panicked")??;
            kept += read;
            lost += PAGES - read;
            Ok(())
        })?;
    }
    drop(tmpfs);
    ensure!(kept > ROUNDS && lost > ROUNDS, "{kept} pages were read, {lost} were not");
    Ok(())
}
