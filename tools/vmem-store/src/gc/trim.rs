// SPDX-License-Identifier: GPL-2.0-or-later
//! Gives back pages that nothing refers to, of packs with others that something does.

use std::sync::Arc;

use vmem_pages::PAGE_SIZE;

use super::{GcOptions, GcReport, mark::Marked, mark::Used};
use crate::base::Base;
use crate::codec::compress;
use crate::error::Error;
use crate::image::open_generation;
use crate::objects::{ObjectError, Part, Put};
use crate::pack::{Pack, PackBuilder};

pub(super) fn trim(base: &Arc<Base>, options: &GcOptions, marked: &mut Marked, report: &mut GcReport) -> Result<(), Error> {
    let mut read = 0_u64;
    let mut added = Vec::new();
    for (id, used) in &marked.used {
        let Some((generation, size)) = marked.packs.get(id).and_then(|generations| generations.last_key_value()) else {
            report
                .problems
                .push(format!("{} is referred to, and it is not there", id.object(0)));
            continue;
        };
        let live = used.live();
        if u64::from(live.count()) * 100 >= u64::from(used.info.pages) * u64::from(options.trim_below)
            || read.saturating_add(*size) > options.max_bytes
        {
            continue;
        }
        let pack = match open_generation(base, &used.info, *generation) {
            Ok(pack) => pack,
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                report.problems.push(error.to_string());
                continue;
            }
        };
        // What is there already may have been trimmed before.
        if u64::from(live.count()) * 100 >= u64::from(pack.footer.live.count()) * u64::from(options.trim_below) {
            continue;
        }
        read += size;
        let rewritten = match rewrite(base, &pack, used) {
            Ok(rewritten) => rewritten,
            Err(error) if error.is_transient() => return Err(error),
            // A page that is damaged is not copied. It stays where it is, for whoever repairs it.
            Err(error) => {
                report.problems.push(error.to_string());
                continue;
            }
        };
        report.trimmed += 1;
        report.trimmed_bytes += size.saturating_sub(rewritten.len() as u64);
        if options.dry_run {
            continue;
        }
        let next = generation + 1;
        match base.put(&id.object(next), &rewritten, Put::New) {
            // Another collection was faster. What it kept is at least what is referred to now.
            Ok(())
            | Err(Error::Object {
                cause: ObjectError::AlreadyExists,
                ..
            }) => added.push((*id, next, rewritten.len() as u64)),
            Err(error) => return Err(error),
        }
    }
    for (id, generation, size) in added {
        marked.packs.entry(id).or_default().insert(generation, size);
    }
    Ok(())
}

/// The next generation of a pack, with the pages that are referred to. Each is verified.
fn rewrite(base: &Base, pack: &Pack, used: &Used) -> Result<Vec<u8>, Error> {
    let live = used.live();
    let mut builder = PackBuilder::trimmed(pack, pack.generation + 1, &base.crypto)?;
    let mut pages = 0_u32;
    let mut data = Vec::new();
    let mut flush = |pages: &mut u32, data: &mut Vec<u8>| {
        if *pages > 0 {
            let (codec, stored) = compress(base.config.compression, std::mem::take(data));
            builder.append_frame(codec, stored, std::mem::take(pages));
        }
    };
    let mut found = 0;
    for (at, frame) in pack.footer.frames.iter().enumerate() {
        let numbers = pack.footer.numbers(frame);
        if !numbers.iter().any(|number| live.contains(*number)) {
            continue;
        }
        let bytes = frame.offset..frame.offset + u64::from(frame.length);
        let contents = pack.open_frame(at, base.get(&pack.name, Part::Bytes(bytes))?.bytes)?;
        for (number, page) in numbers
            .iter()
            .zip(contents.chunks_exact(PAGE_SIZE))
            .filter(|(number, _)| live.contains(**number))
        {
            if pack.footer.pages.hashes.get(*number as usize) != Some(&base.crypto.hash16(page)) {
                return Err(Error::damaged(
                    &pack.name,
                    format!("the hash of page {number} is not that of its contents"),
                ));
            }
            data.extend_from_slice(page);
            pages += 1;
            found += 1;
            if pages == base.config.frame_pages {
                flush(&mut pages, &mut data);
            }
        }
    }
    flush(&mut pages, &mut data);
    if found != live.count() {
        return Err(Error::damaged(
            &pack.name,
            format!("{} of its pages are referred to, and it has {found} of them", live.count()),
        ));
    }
    Ok(builder.finish(Some(live), &base.crypto).0)
}
