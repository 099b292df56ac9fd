// SPDX-License-Identifier: GPL-2.0-or-later
//! Records in which order a restored guest touches its pages.
//!
//! vmemd reports the pages that programs have waited for, in their order. A page that came before it was touched is found in the page tables
//! of programs, in steps of a second or more: [`page_tables`] says what that means. What is found in one step is in the order of
//! memory.

use std::time::{Duration, Instant};

use vmem::{PageRange, PageSet};
use vmem_control::{Event, Figures, Phase, Touched};
use vmem_store::{Image, Manifest, Store, Touch};

use crate::error::Error;
use crate::page_tables;

/// Most runs of pages that are recorded, which take 3 MiB in the store. What is touched later matters less.
const MAX_RUNS: usize = 1 << 18;

/// The least time between two looks at the page tables.
const STEP: Duration = Duration::from_secs(1);

/// Looking takes at most this part of the time of one processor.
const SHARE: u32 = 10;

/// What was touched so far.
pub(crate) struct Recorder {
    regions: Vec<Recorded>,
    touches: Vec<Touch>,
    /// Pages that vmemd has left out.
    missed: u64,
    /// How page tables are looked at. `None` from the completion on: then all pages are there.
    looks: Option<Looks>,
}

struct Recorded {
    name: String,
    /// The backend, by its place in the checkpoint.
    backend: usize,
    /// Pages that were not touched.
    rest: PageSet,
}

struct Looks {
    /// When vmemd was started, or before. Its clock began later.
    vmemd_began: Instant,
    next: Instant,
    /// What was found last, and when the look was over. It counts once it is known that vmemd had not put pages into page tables by then.
    found: Option<(Instant, Vec<PageSet>)>,
}

impl Recorder {
    /// For the regions of these memories of a checkpoint, of a vmemd that is started after `now`.
    pub(crate) fn new(manifest: &Manifest, regions: &[(String, String)], now: Instant) -> Self {
        let recorded = regions.iter().filter_map(|(memory, region)| {
            let (number, backend) = manifest.backend(memory)?;
            Some(Recorded {
                name: region.clone(),
                backend: number,
                rest: PageSet::all_of(PageRange::of_pages(backend.pages())?),
            })
        });
        Self {
            regions: recorded.collect(),
            touches: Vec::new(),
            missed: 0,
            looks: Some(Looks {
                vmemd_began: now,
                next: now + STEP,
                found: None,
            }),
        }
    }

    /// vmemd has said something.
    pub(crate) fn event(&mut self, event: &Event) {
        match event {
            Event::Touched(touched) => self.requested(touched),
            Event::Progress(figures) => self.progress(figures),
            Event::Region(region) if region.phase != Phase::Filling => self.looks = None,
            _ => {}
        }
    }

    /// Another vmemd was started. It is not known whether the one before has put pages into page tables.
    pub(crate) fn restarted(&mut self) {
        self.looks = None;
    }

    /// Looks at the page tables, if it is time for that.
    pub(crate) fn poll(&mut self) {
        let Some(looks) = &mut self.looks else { return };
        let began = Instant::now();
        if looks.found.is_some() || began < looks.next {
            return;
        }
        let regions: Vec<_> = self
            .regions
            .iter()
            .map(|region| (region.name.as_str(), &region.rest))
            .collect();
        match page_tables::touched(&regions) {
            Ok(found) => looks.found = Some((Instant::now(), found)),
            Err(error) => tracing::debug!("page tables cannot be looked at: {error}"),
        }
        looks.next = Instant::now() + STEP.max(began.elapsed() * SHARE);
    }

    /// Writes the order into the store. Returns its pages and runs, if any page was touched.
    ///
    /// # Errors
    ///
    /// Those of [`Store::record_order`].
    pub(crate) fn finish(self, store: &Store, image: &Image) -> Result<Option<(u64, usize)>, Error> {
        if self.missed > 0 {
            tracing::debug!("{} pages that were touched are not in the access order", self.missed);
        }
        if self.touches.is_empty() {
            return Ok(None);
        }
        store.record_order(image, &self.touches)?;
        let pages = self.touches.iter().map(|touch| touch.pages.count()).sum();
        Ok(Some((pages, self.touches.len())))
    }

    fn requested(&mut self, touched: &Touched) {
        self.missed = self.missed.saturating_add(touched.missed);
        let Some(region) = self.regions.iter().position(|region| region.name == touched.region) else {
            return;
        };
        for (first, count) in &touched.runs {
            if let Some(pages) = PageRange::from_pgoff(*first, *count) {
                self.add(region, pages);
            }
        }
    }

    fn progress(&mut self, figures: &Figures) {
        let Some(looks) = &mut self.looks else { return };
        if figures.regions.iter().any(|region| region.phase != Phase::Filling) {
            self.looks = None;
            return;
        }
        // At this time of vmemd's clock, no region was complete.
        let until = Duration::try_from_secs_f64(figures.seconds)
            .ok()
            .and_then(|passed| looks.vmemd_began.checked_add(passed));
        let is_known = looks
            .found
            .as_ref()
            .is_some_and(|(over, _)| until.is_some_and(|until| *over <= until));
        if let Some((_, found)) = looks.found.take_if(|_| is_known) {
            for (region, found) in found.iter().enumerate() {
                found.runs().for_each(|pages| self.add(region, pages));
            }
        }
    }

    /// Those of `pages` that are not recorded yet come next.
    fn add(&mut self, region: usize, pages: PageRange) {
        let Some(recorded) = self.regions.get_mut(region) else {
            return;
        };
        let room = MAX_RUNS.saturating_sub(self.touches.len());
        for pages in recorded.rest.take_of(pages, u64::MAX, room) {
            let backend = recorded.backend;
            Touch { backend, pages }.append_to(&mut self.touches);
        }
    }
}

#[cfg(test)]
mod tests {
    use vmem_control::Region;
    use vmem_store::objects::Directory;
    use vmem_store::{CommitOptions, InitOptions, OpenOptions, WriteOptions};

    use super::*;

    const PAGES: u64 = 100;

    /// A store with checkpoint guest0@1, all of whose pages are zero.
    fn store() -> (tempfile::TempDir, Store, Image) {
        let directory = tempfile::tempdir().expect("a directory");
        let place = std::sync::Arc::new(Directory::new(directory.path().join("store")));
        let store = Store::init(place, &InitOptions::default(), OpenOptions::default()).expect("a store");
        let guest = "guest0".parse().expect("a name");
        let memories = [("ram".to_owned(), PAGES * 4096)];
        let writer = store
            .begin(&guest, None, &memories, &WriteOptions::default())
            .expect("a writer");
        let zeros = vec![0; PAGES as usize * 4096];
        writer
            .put_pages(0, vmem::PageIndex::new(0).expect("a page"), &zeros)
            .expect("room");
        let name = writer.commit(CommitOptions::default()).expect("a checkpoint").checkpoint;
        let image = store.image(&name).expect("a checkpoint");
        (directory, store, image)
    }

    fn recorder(image: &Image) -> Recorder {
        let regions = [("ram".to_owned(), "guest0.ram".to_owned())];
        Recorder::new(image.manifest(), &regions, Instant::now())
    }

    fn requests(region: &str, runs: &[(u64, u64)]) -> Event {
        Event::Touched(Touched {
            region: region.to_owned(),
            runs: runs.to_vec(),
            missed: 0,
        })
    }

    fn progress(seconds: f64, phase: Phase) -> Event {
        let region = Region {
            name: "guest0.ram".to_owned(),
            phase,
            ..Region::default()
        };
        Event::Progress(Figures {
            seconds,
            regions: vec![region],
            ..Figures::default()
        })
    }

    /// What a look has found, and has ended `after` vmemd was started.
    fn look(recorder: &mut Recorder, after: f64, pages: (u64, u64)) {
        let looks = recorder.looks.as_mut().expect("page tables are looked at");
        let mut found = PageSet::none_of(PageRange::of_pages(PAGES).expect("pages"));
        found.insert(PageRange::from_pgoff(pages.0, pages.1).expect("pages"));
        looks.found = Some((looks.vmemd_began + Duration::from_secs_f64(after), vec![found]));
    }

    fn recorded(recorder: Recorder, store: &Store, image: &Image) -> Vec<(u64, u64)> {
        recorder.finish(store, image).expect("room").expect("something is touched");
        let order = store.order(image).expect("an order");
        order
            .iter()
            .map(|touch| (touch.pages.first().get(), touch.pages.count()))
            .collect()
    }

    #[test]
    fn requests_are_recorded_in_their_order_and_each_page_once() {
        let (_directory, store, image) = store();
        let mut recorder = recorder(&image);
        recorder.event(&requests("guest0.ram", &[(50, 2), (7, 1), (49, 4)]));
        recorder.event(&requests("other", &[(1, 1)]));
        recorder.event(&requests(
            "guest0.ram",
            &[(PAGES - 1, 1 << 40), (u64::MAX, u64::MAX), (0, 0), (3, 1)],
        ));
        let expected = [(50, 2), (7, 1), (49, 1), (52, 1), (PAGES - 1, 1), (3, 1)];
        assert_eq!(recorded(recorder, &store, &image), expected);
    }

    #[test]
    fn page_tables_count_once_no_region_was_complete_after_the_look() {
        let (_directory, store, image) = store();
        let mut recorder = recorder(&image);
        recorder.event(&requests("guest0.ram", &[(50, 2)]));
        look(&mut recorder, 1.5, (48, 4));
        // vmemd may have sent this before the look, and may have completed the region after that.
        recorder.event(&progress(1.4, Phase::Filling));
        assert_eq!(recorder.touches.len(), 1);
        recorder.event(&progress(1.6, Phase::Filling));
        look(&mut recorder, 2.5, (0, PAGES));
        recorder.event(&progress(2.6, Phase::Populating));
        assert_eq!(recorded(recorder, &store, &image), [(50, 2), (48, 2)]);
    }

    #[test]
    fn page_tables_do_not_count_after_a_region_is_complete_or_vmemd_was_started_again() {
        let (_directory, _store, image) = store();
        for restarts in [false, true] {
            let mut recorder = recorder(&image);
            look(&mut recorder, 1.5, (0, PAGES));
            match restarts {
                true => recorder.restarted(),
                false => recorder.event(&Event::Region(Region {
                    phase: Phase::Populating,
                    ..Region::default()
                })),
            }
            recorder.event(&progress(9.0, Phase::Filling));
            assert!(recorder.touches.is_empty());
        }
    }

    #[test]
    fn strange_clock_of_vmemd_is_no_proof() {
        let (_directory, _store, image) = store();
        let mut recorder = recorder(&image);
        look(&mut recorder, 1.5, (0, PAGES));
        for seconds in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            recorder.event(&progress(seconds, Phase::Filling));
        }
        assert!(recorder.touches.is_empty());
    }

    #[test]
    fn runs_are_bounded() {
        let mut recorder = recorder(&store().2);
        let pages = PageRange::of_pages(MAX_RUNS as u64 * 2 + 100).expect("pages");
        recorder.regions[0].rest = PageSet::all_of(pages);
        for page in 0..MAX_RUNS as u64 + 50 {
            recorder.event(&requests("guest0.ram", &[(page * 2, 1)]));
        }
        assert_eq!(recorder.touches.len(), MAX_RUNS);
    }

    #[test]
    fn nothing_touched_writes_nothing() {
        let (_directory, store, image) = store();
        assert_eq!(recorder(&image).finish(&store, &image).expect("no error"), None);
    }
}
