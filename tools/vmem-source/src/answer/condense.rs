// SPDX-License-Identifier: GPL-2.0-or-later
//! Leaves out of an answer what the destination has already.

use vmem::{PAGE_SIZE, PageIndex};

use super::{Chunk, Kind, Run};
use crate::digest::{DIGEST_SIZE, Digest};

/// What is sent of a page with contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sent {
    /// Its contents.
    Data,
    /// Its digest: the destination has the contents somewhere.
    Known(Digest),
    /// Nothing: the destination has staged the page with these contents.
    Same,
}

impl Sent {
    fn kind(self) -> Kind {
        match self {
            Self::Data => Kind::Data,
            Self::Known(_) => Kind::Known,
            Self::Same => Kind::Same,
        }
    }
}

impl Chunk {
    /// Sends of each page with contents what `choose` says, which is called once for each of them, in order. If the answer would have more runs
    /// than fit, all contents are sent.
    pub(crate) fn condense(&mut self, mut choose: impl FnMut(PageIndex, &[u8]) -> Sent) {
        let mut pages = self.buffer.chunks_exact(PAGE_SIZE);
        let mut choices = Vec::new();
        let mut runs: Vec<Run> = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            if run.kind != Kind::Data {
                runs.push(*run);
                continue;
            }
            for (page, contents) in run.range.iter().zip(&mut pages) {
                let choice = choose(page, contents);
                choices.push(choice);
                let run = Run {
                    range: page.into(),
                    kind: choice.kind(),
                };
                match runs.last_mut().and_then(|last| last.join(&run).map(|both| (last, both))) {
                    Some((last, both)) => *last = both,
                    None => runs.push(run),
                }
            }
        }
        if runs.len() > Self::MAX_RUNS || choices.iter().all(|choice| *choice == Sent::Data) {
            return;
        }
        self.runs = runs;
        let mut to = 0;
        for (number, choice) in choices.iter().enumerate() {
            let from = number * PAGE_SIZE;
            match choice {
                Sent::Data => {
                    self.buffer.copy_within(from..from + PAGE_SIZE, to);
                    to += PAGE_SIZE;
                }
                // It is never longer than the page, so it does not overwrite one that comes later.
                Sent::Known(digest) => {
                    self.buffer[to..to + DIGEST_SIZE].copy_from_slice(digest.bytes());
                    to += DIGEST_SIZE;
                }
                Sent::Same => {}
            }
        }
        self.used = to;
    }
}

#[cfg(test)]
mod tests {
    use vmem::PageRange;

    use super::*;
    use crate::answer::{Answer, Contents};
    use crate::digest::Key;

    fn range(first: u64, count: u64) -> PageRange {
        PageRange::from_pgoff(first, count).expect("a range")
    }

    fn chunk() -> Chunk {
        let mut chunk = Chunk::new();
        for (page, byte) in chunk.spare().chunks_mut(PAGE_SIZE).zip([1, 2, 0, 3, 4, 5, 6]) {
            page.fill(byte);
        }
        chunk.commit(range(10, 7));
        chunk.push_unreadable(range(17, 2));
        chunk
    }

    #[test]
    fn condensed_answer_has_the_digests_and_the_other_contents_in_order() {
        let key = Key::random().expect("a key");
        let mut chunk = chunk();
        let mut asked = Vec::new();
        chunk.condense(|page, contents| {
            assert_eq!(contents.len(), PAGE_SIZE);
            asked.push((page.get(), contents[0]));
            match contents[0] {
                2 | 3 | 5 => Sent::Known(key.digest(contents)),
                4 => Sent::Same,
                _ => Sent::Data,
            }
        });
        assert_eq!(asked, [(10, 1), (11, 2), (13, 3), (14, 4), (15, 5), (16, 6)]);
        let answer = Answer::new(0, chunk.runs(), chunk.data()).expect("as many bytes as the runs say");
        let found: Vec<_> = answer
            .contents()
            .map(|(range, contents)| {
                let what = match contents {
                    Contents::Data(data) => format!("data {}", data[0]),
                    Contents::Zero => "zero".to_owned(),
                    Contents::Unreadable => "unreadable".to_owned(),
                    Contents::Known(digests) => {
                        let byte = (1..7_u8).find(|byte| key.digest(&[*byte; PAGE_SIZE]).bytes()[..] == digests[..16]);
                        format!("known {}", byte.expect("a page"))
                    }
                    Contents::Same => "same".to_owned(),
                };
                (range.first().get(), range.count(), what)
            })
            .collect();
        let expected = [
            (10, 1, "data 1"),
            (11, 1, "known 2"),
            (12, 1, "zero"),
            (13, 1, "known 3"),
            (14, 1, "same"),
            (15, 1, "known 5"),
            (16, 1, "data 6"),
            (17, 2, "unreadable"),
        ];
        assert_eq!(found, expected.map(|(first, count, what)| (first, count, what.to_owned())));
    }

    #[test]
    fn answer_with_too_many_runs_keeps_its_contents() {
        let mut chunk = Chunk::new();
        for number in 0..Chunk::MAX_RUNS as u64 - 2 {
            match number % 2 {
                0 => chunk.push_zero(range(number, 1)),
                _ => chunk.push_unreadable(range(number, 1)),
            }
        }
        chunk.spare()[..2 * PAGE_SIZE].fill(7);
        chunk.commit(range(2000, 2));
        let (runs, mut asked) = (chunk.runs().to_vec(), 0);
        assert_eq!(runs.len(), Chunk::MAX_RUNS - 1);
        chunk.spare();
        let mut alternating = |_: PageIndex, _: &[u8]| {
            asked += 1;
            if asked % 2 == 0 { Sent::Same } else { Sent::Data }
        };
        chunk.condense(&mut alternating);
        assert_eq!(chunk.runs().len(), Chunk::MAX_RUNS, "two runs where there was one");
        let mut chunk = Chunk::new();
        for number in 0..Chunk::MAX_RUNS as u64 - 1 {
            match number % 2 {
                0 => chunk.push_zero(range(number, 1)),
                _ => chunk.push_unreadable(range(number, 1)),
            }
        }
        chunk.spare()[..PAGE_SIZE].fill(7);
        chunk.commit(range(2000, 1));
        chunk.buffer[PAGE_SIZE..2 * PAGE_SIZE].fill(8);
        chunk.runs[Chunk::MAX_RUNS - 1].range = range(2000, 2);
        chunk.used = 2 * PAGE_SIZE;
        let runs = chunk.runs().to_vec();
        chunk.condense(&mut alternating);
        assert_eq!((chunk.runs(), chunk.data().len()), (&runs[..], 2 * PAGE_SIZE));
    }
}
