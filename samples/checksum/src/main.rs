// SPDX-License-Identifier: GPL-2.0
//! Hashes the memory of a region, which may still be on its way: each page is hashed when it is there.
//!
//! The checksum is the BLAKE3 hash of the pages' BLAKE3 hashes in page order. It does not depend on the order of the walk, and is the
//! same for a file of the same contents (the last page padded with zeros), so that a source can say what a destination must find.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, stdin};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use blake3::Hash;
use clap::Parser;
use vmem::{Access, Mapping, Name, PAGE_SIZE, PageRange, Sharing};

/// Hashes the memory of a region, or of a file
#[derive(Parser)]
struct Arguments {
    /// The region's name; with --file, the path of a file
    target: PathBuf,
    /// The target is a path
    #[arg(long)]
    file: bool,
    /// Wait this many seconds for it to appear
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    wait: u64,
    /// Touch the pages in an order made from this number
    #[arg(long, value_name = "SEED")]
    random: Option<u64>,
    /// Fail unless this is the checksum
    #[arg(long, value_name = "CHECKSUM")]
    expect: Option<Hash>,
    /// Keep the memory until standard input ends, and then hash it once more: it must be the same
    #[arg(long)]
    hold: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("checksum: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let (memory, pages) = map_memory(arguments)?;
    let since = Instant::now();
    let checksum = checksum(&memory, pages, arguments.random)?;
    println!(
        "{checksum} {} {} pages {} s",
        arguments.target.display(),
        pages.count(),
        since.elapsed().as_secs_f32()
    );
    if let Some(expected) = arguments.expect {
        if checksum != expected {
            bail!(
                "{}: the checksum is not {expected}",
                arguments.target.display()
            );
        }
    }
    if arguments.hold {
        stdin()
            .read_to_end(&mut Vec::new())
            .context("standard input")?;
        let again = self::checksum(&memory, pages, arguments.random)?;
        if again != checksum {
            bail!(
                "{}: the memory has changed: its checksum is {again}",
                arguments.target.display()
            );
        }
        println!("{again} {} again", arguments.target.display());
    }
    Ok(())
}

/// Where the file system of the module is mounted.
const FILES: &str = "/run/vmem";

/// Where the memory can be: a region is a file, and a node for those who have not mounted the file system.
fn places(arguments: &Arguments) -> Result<Vec<PathBuf>> {
    if arguments.file {
        return Ok(vec![arguments.target.clone()]);
    }
    let name = Name::new(&arguments.target.to_string_lossy())?;
    Ok(vec![Path::new(FILES).join(name.as_str()), name.path()])
}

/// Maps the memory as soon as it is at one of its places, and keeps no descriptor.
fn map_memory(arguments: &Arguments) -> Result<(Mapping, PageRange)> {
    let places = places(arguments)?;
    let until = Instant::now() + Duration::from_secs(arguments.wait);
    let path = loop {
        match places.iter().find(|path| path.exists()) {
            Some(path) => break path,
            None if Instant::now() < until => sleep(Duration::from_millis(50)),
            None => {
                let places: Vec<_> = places
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect();
                bail!("there is no {}", places.join(", and no "));
            }
        }
    };
    let what = || path.display().to_string();
    let mut file = File::open(path).with_context(what)?;
    // A node has no size in stat(), and this is right for both.
    let size = file.seek(SeekFrom::End(0)).with_context(what)?;
    let pages = PageRange::of_len(size).with_context(|| format!("{}: no pages", what()))?;
    let len = usize::try_from(pages.bytes().end).with_context(what)?;
    let memory =
        Mapping::new(&file, 0, len, Access::ReadOnly, Sharing::Shared).with_context(what)?;
    Ok((memory, pages))
}

fn checksum(memory: &Mapping, pages: PageRange, random: Option<u64>) -> Result<Hash> {
    let count = usize::try_from(pages.count())?;
    let mut order: Vec<usize> = (0..count).collect();
    if let Some(seed) = random {
        shuffle(&mut order, seed);
    }
    let mut hashes = vec![[0; 32]; count];
    let mut page = [0; PAGE_SIZE];
    for pgoff in order {
        memory.read_at(pgoff * PAGE_SIZE, &mut page)?;
        hashes[pgoff] = *blake3::hash(&page).as_bytes();
    }
    Ok(blake3::hash(hashes.as_flattened()))
}

/// Fisher and Yates' shuffle by splitmix64: the same seed gives the same walk everywhere.
fn shuffle(order: &mut [usize], seed: u64) {
    let mut state = seed;
    for last in (1..order.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        order.swap(last, ((mixed ^ (mixed >> 31)) % (last as u64 + 1)) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffle_loses_no_page() {
        let mut order: Vec<usize> = (0..1000).collect();
        shuffle(&mut order, 7);
        assert!(order.iter().enumerate().any(|(at, pgoff)| at != *pgoff));
        order.sort_unstable();
        assert!(order.iter().enumerate().all(|(at, pgoff)| at == *pgoff));
    }

    #[test]
    fn the_order_of_the_walk_does_not_change_the_checksum() -> Result<()> {
        let path = std::env::temp_dir().join(format!("checksum-{}", std::process::id()));
        std::fs::write(
            &path,
            (0..50_000u32)
                .flat_map(u32::to_le_bytes)
                .collect::<Vec<u8>>(),
        )?;
        let mapped = map_memory(&Arguments::parse_from([
            "checksum".into(),
            "--file".into(),
            path.clone(),
        ]));
        std::fs::remove_file(&path)?;
        let (memory, pages) = mapped?;
        let in_order = checksum(&memory, pages, None)?;
        assert_eq!(in_order, checksum(&memory, pages, Some(1))?);
        assert_eq!(in_order, checksum(&memory, pages, Some(2))?);
        Ok(())
    }
}
