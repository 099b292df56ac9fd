// SPDX-License-Identifier: GPL-2.0-or-later
//! Regions that are filled from a checkpoint once, and mapped privately by any number of guests: its clones.
//!
//! The process that holds a base maps the regions, so that they stay when they are complete and no clone maps them. It holds a lease on the
//! checkpoint, whose device state each clone loads, and a locked record by which `clone` finds all of this.

use std::path::PathBuf;
use std::time::Duration;

use vmem::{Access, Files, FilesOption, MapHandle, Mapping, Sharing};
use vmem_cli::Signals;
use vmem_control::Event;
use vmem_store::{Manifest, UserKey};
use vmem_store_source::{Address, Selector};

use crate::base_record::{BaseName, BaseRecord, HeldRecord, Memory};
use crate::error::Error;
use crate::filler::{self, Command, Filler, News, wait_ready};
use crate::launch::open_files;
use crate::restore::regions_of;

/// How often signals are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The permission bits of the files and nodes: nobody needs to write to them.
const MODE: &str = "440";

/// For so many seconds, regions that are complete stay without a mapping.
const TIME_TO_MAP: &str = "5";

/// What a base is made of, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name; that of the guest unless given.
    pub name: Option<BaseName>,
    /// The checkpoint.
    pub address: Address,
    /// Opens the store if it is encrypted.
    pub key: Option<UserKey>,
    /// The directory of records.
    pub state: PathBuf,
    /// Where programs find the regions.
    pub files: FilesOption,
    /// More arguments of vmemd, but for `--files`.
    pub vmemd: Vec<String>,
}

/// What happens with a base.
#[derive(Debug)]
pub enum Step<'a> {
    /// Clones can be started; pages that they touch are fetched.
    Ready {
        /// The name.
        name: &'a BaseName,
        /// The checkpoint.
        manifest: &'a Manifest,
        /// Each memory, and its region.
        regions: &'a [(String, String)],
        /// Where programs find the regions.
        files: &'a Files,
    },
    /// An event of vmemd.
    Pages(&'a Event),
    /// All pages are present. Nothing is fetched any more.
    Complete,
    /// Something that is worth knowing.
    Note(&'a str),
}

/// A region, kept by a mapping.
struct Kept {
    handle: MapHandle,
    _mapping: Mapping,
}

impl Kept {
    fn new(region: &str) -> Result<Self, Error> {
        let failed = || Error::memory(format!("cannot map region {region}"));
        let handle = MapHandle::open(region, Access::ReadOnly).map_err(failed())?;
        let mapping = handle.map(Access::ReadOnly, Sharing::Private).map_err(failed())?;
        Ok(Self {
            handle,
            _mapping: mapping,
        })
    }

    /// Whether another process maps the region, while it is not plain.
    fn is_shared(&self) -> bool {
        self.handle.info().is_ok_and(|info| info.mappings > 1)
    }
}

/// Makes a base, and holds it until a signal. Clones that run by then live on, and so does vmemd as long as they need pages.
///
/// # Errors
///
/// There is a base of this name, the checkpoint cannot be read, the regions cannot be made; pages of it are lost.
pub fn hold(options: &Options, signals: &Signals, report: &mut dyn FnMut(Step<'_>)) -> Result<(), Error> {
    let store = options.address.store.open(options.key.clone())?;
    let checkpoint = options.address.checkpoint.find(&store)?;
    let name = match &options.name {
        Some(name) => name.clone(),
        None => BaseName::of_guest(&checkpoint.guest),
    };
    let mut record = HeldRecord::lock(&options.state, &name)?;
    // Also when all pages are present: a clone loads the device state, and refers to this checkpoint if it is checkpointed.
    let holder = format!("vmemctl checkpoint base {name}, process {}", std::process::id());
    let image = store.hold(&checkpoint, &holder)?;
    let address = Address {
        store: options.address.store.clone(),
        checkpoint: Selector::from(&checkpoint),
    };
    let regions = regions_of(image.manifest(), &[])?;
    let mut arguments = filler::arguments(&address, &regions, options.key.is_some());
    // Page tables of clones need not have pages that they do not touch. A vmemd that nobody needs any more, after the death of this process,
    // ends when it has brought all pages, and leaves this process time to map the regions first.
    arguments.extend(["--no-populate", "--detach-unmapped", "--complete-after", TIME_TO_MAP].map(str::to_owned));
    let files = open_files(&options.files, &mut |text| report(Step::Note(text)));
    arguments.extend(filler::files(&options.files));
    arguments.extend_from_slice(&options.vmemd);
    let mut of_new_regions = filler::of_new_regions();
    of_new_regions.extend(["--mode", MODE].map(str::to_owned));
    let mut filler = Filler::start(Command {
        program: vmem_process::vmemd(),
        arguments,
        of_new_regions,
        key: options.key.clone(),
        name: format!("base-{name}"),
    })?;
    let made = wait_ready(&mut filler, signals).and_then(|()| {
        let kept = regions
            .iter()
            .map(|(_, region)| Kept::new(region))
            .collect::<Result<Vec<_>, _>>()?;
        let mut memories = Vec::new();
        for ((memory, region), kept) in regions.iter().zip(&kept) {
            let info = kept
                .handle
                .info()
                .map_err(Error::memory(format!("cannot look at region {region}")))?;
            memories.push(Memory {
                memory: memory.clone(),
                region: region.clone(),
                number: info.id,
                bytes: info.size,
            });
        }
        record.write(&BaseRecord::new(
            &address,
            &store.config().id.to_string(),
            &checkpoint,
            memories,
        ))?;
        Ok(kept)
    });
    let kept = match made {
        Ok(kept) => kept,
        Err(error) => {
            filler.stop();
            return Err(error);
        }
    };
    report(Step::Ready {
        name: &name,
        manifest: image.manifest(),
        regions: &regions,
        files: &files,
    });
    let filler = fill(filler, signals, report)?;
    if filler.is_none() {
        report(Step::Complete);
    }
    while filler.is_none() && signals.check().is_ok() {
        std::thread::sleep(POLL_INTERVAL);
    }
    // A clone that is being started and has not mapped the regions yet finds that the base is gone, and is given up.
    record.remove();
    match filler {
        Some(filler) if kept.iter().any(Kept::is_shared) => report(Step::Note(&format!(
            "clones need pages: vmemd (process {}) goes on and brings the rest of the memory",
            filler.pid()
        ))),
        Some(filler) => {
            // Nobody needs the regions when vmemd ends.
            drop(kept);
            filler.stop();
        }
        None => {}
    }
    Ok(())
}

/// Waits until all pages are present. Returns vmemd if a signal has come before.
fn fill(mut filler: Filler, signals: &Signals, report: &mut dyn FnMut(Step<'_>)) -> Result<Option<Filler>, Error> {
    loop {
        if signals.check().is_err() {
            return Ok(Some(filler));
        }
        match filler.news(POLL_INTERVAL)? {
            Some(News::Event(event)) => report(Step::Pages(&event)),
            Some(News::Restarted(why)) => report(Step::Note(&format!("{why}; another one goes on"))),
            Some(News::NotRestarted(why)) => report(Step::Note(&format!("{why}; it is tried again"))),
            Some(News::Complete) => return Ok(None),
            Some(News::Failed(why)) => return Err(Error::other(why)),
            None => {}
        }
    }
}
