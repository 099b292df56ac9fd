// SPDX-License-Identifier: GPL-2.0-or-later
//! Pages of an answer whose contents are on this host already.

use vmem::{PAGE_SIZE, PageIndex, PageRange};
use vmem_source::digest::{DIGEST_SIZE, Digest};
use vmem_source::{Answer, Contents};

use crate::error::Error;
use crate::seed::Seed;

/// Pages that are copied at once (256 KiB).
const COPY_PAGES: u64 = 64;

/// Copies the known pages of an answer from their images, and gives them to `put` with their ranges, some at a time. Returns those that no image
/// has any more: they have not arrived.
pub(crate) fn copy_known(
    seed: Option<&Seed>,
    answer: &Answer<'_>,
    mut put: impl FnMut(&[(PageIndex, &[u8])], &[PageRange]) -> Result<(), Error>,
) -> Result<Vec<PageRange>, Error> {
    let (mut buffer, mut missing) = (Vec::new(), Vec::new());
    for (range, contents) in answer.contents() {
        let Contents::Known(digests) = contents else { continue };
        let mut digests = digests.chunks_exact(DIGEST_SIZE);
        let mut rest = Some(range);
        while let Some((Some(piece), after)) = rest.map(|rest| rest.split_at(COPY_PAGES)) {
            rest = after;
            buffer.resize(COPY_PAGES as usize * PAGE_SIZE, 0);
            let (mut copied, mut used) = (Vec::new(), 0);
            for page in piece.iter() {
                let digest = digests
                    .next()
                    .and_then(|digest| digest.try_into().ok())
                    .map(Digest::from_bytes);
                let to = &mut buffer[used..used + PAGE_SIZE];
                match (seed, digest) {
                    (Some(seed), Some(digest)) if seed.copy(digest, to) => {
                        used += PAGE_SIZE;
                        PageRange::from(page).append_to(&mut copied);
                    }
                    _ => PageRange::from(page).append_to(&mut missing),
                }
            }
            let mut bytes = &buffer[..used];
            let mut fills = Vec::with_capacity(copied.len());
            for range in &copied {
                let (front, back) = bytes.split_at(range.count() as usize * PAGE_SIZE);
                fills.push((range.first(), front));
                bytes = back;
            }
            if !fills.is_empty() {
                put(&fills, &copied)?;
            }
        }
    }
    Ok(missing)
}
