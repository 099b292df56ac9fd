// SPDX-License-Identifier: GPL-2.0-or-later
//! Restores a guest or memory from a checkpoint: at once, while its pages are still in the store.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vmem::{Files, FilesOption, node_path};
use vmem_cli::Signals;
use vmem_control::{Event, Phase, Region};
use vmem_qemu::command::Sharing;
use vmem_qemu::{Process, command, guest};
use vmem_store::{BackendKind, Manifest, UserKey};
use vmem_store_source::{Address, Location, Selector};

use crate::device_state::device_state;
use crate::error::Error;
use crate::filler::{self, Command, Filler, News, wait_ready};
use crate::freeze::FROZEN;
use crate::launch::{Launch, NO_GENERATION_ID, open_files, ran};
use crate::overlays;
use crate::recorder::Recorder;
use crate::wakeup::{self, Wakeup};

/// How often signals and processes are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What is to be restored, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The checkpoint.
    pub address: Address,
    /// Opens the store if it is encrypted.
    pub key: Option<UserKey>,
    /// The socket of the QEMU that `command` starts.
    pub qmp: Option<PathBuf>,
    /// The command that starts QEMU, with placeholders. Empty: only the regions are made.
    pub command: Vec<String>,
    /// QEMU's output goes to a file in this directory.
    pub logs: PathBuf,
    /// Without a command: regions for these memories only; for all if empty.
    pub memories: Vec<String>,
    /// The guest stays paused, also if it ran.
    pub paused: bool,
    /// The socket of the guest agent of the QEMU that `command` starts, and how long an answer may take.
    pub agent: Option<(PathBuf, Duration)>,
    /// Where the disks get new overlays, for `{disk:NAME}` in the command.
    pub disks: Option<PathBuf>,
    /// Where QEMU finds the regions.
    pub files: FilesOption,
    /// Record in which order pages are touched: while they come, and for so long after all of them are there.
    pub record: Option<Duration>,
    /// More arguments of vmemd, but for `--files`.
    pub vmemd: Vec<String>,
}

/// What happens in a restore.
#[derive(Debug)]
pub enum Step<'a> {
    /// The regions exist; pages that are touched are fetched.
    Ready {
        /// The checkpoint.
        manifest: &'a Manifest,
        /// Each memory, and its region.
        regions: &'a [(String, String)],
        /// Where programs find the regions.
        files: &'a Files,
    },
    /// QEMU has the device state, and the guest runs, unless it is paused.
    Restored {
        /// Whether the guest runs.
        runs: bool,
        /// Since the restore began.
        after: Duration,
    },
    /// An event of vmemd, other than those that are recorded.
    Pages(&'a Event),
    /// The order in which pages were touched is in the store.
    Recorded {
        /// Pages that were touched.
        pages: u64,
        /// Runs of them.
        runs: usize,
    },
    /// Something that is worth knowing.
    Note(&'a str),
}

/// Restores, and returns when all memory is there.
///
/// # Errors
///
/// Before the guest runs, nothing is left of it. After that: if the guest ends early, or pages cannot be had; a signal ends only this
/// program, and vmemd goes on.
pub fn restore(options: &Options, signals: &Signals, report: &mut dyn FnMut(Step<'_>)) -> Result<(), Error> {
    let began = Instant::now();
    command::check(&options.command, Sharing::Shared)?;
    let store = options.address.store.open(options.key.clone())?;
    let checkpoint = options.address.checkpoint.find(&store)?;
    // vmemd has a lease of its own, but gives it back when the store is away, and may be started again.
    let image = match check_owner(&options.address.store) {
        Ok(()) => store.hold(
            &checkpoint,
            &format!("vmemctl checkpoint restore, process {}", std::process::id()),
        )?,
        Err(_) => store.image(&checkpoint)?,
    };
    // From here on it means this checkpoint, also if there is a later one meanwhile.
    let address = Address {
        store: options.address.store.clone(),
        checkpoint: Selector::from(&checkpoint),
    };
    let state = match options.command.as_slice() {
        [] => None,
        _ => Some(device_state(&image)?),
    };
    let runs = !options.paused && ran(image.manifest());
    let regions = regions_of(image.manifest(), &options.memories)?;
    let note = &mut |text: &str| report(Step::Note(text));
    let (overlays, command) = overlays::of(image.manifest(), options.disks.as_deref(), &options.command, signals, note)?;
    let mut recorder = options
        .record
        .map(|_| Recorder::new(image.manifest(), &regions, Instant::now()));
    let files = open_files(&options.files, note);
    let mut filler = Filler::start(Command {
        program: vmem_process::vmemd(),
        arguments: arguments(&address, &regions, options),
        of_new_regions: filler::of_new_regions(),
        key: options.key.clone(),
        name: checkpoint.to_string(),
    })?;
    let started = wait_ready(&mut filler, signals).and_then(|()| {
        report(Step::Ready {
            manifest: image.manifest(),
            regions: &regions,
            files: &files,
        });
        match (&options.qmp, &state) {
            (Some(qmp), Some(state)) => {
                let launch = Launch {
                    command: &command,
                    qmp,
                    logs: &options.logs,
                    name: format!("restore-{}", checkpoint.guest),
                    regions: &regions,
                    files: &files,
                    sharing: Sharing::Shared,
                    state: state.clone(),
                    runs,
                };
                launch.start(signals, &|| true).map(|(qemu, has_id)| {
                    if !has_id {
                        report(Step::Note(NO_GENERATION_ID));
                    }
                    Some(qemu)
                })
            }
            _ => Ok(None),
        }
    });
    let qemu = match started {
        Ok(qemu) => qemu,
        Err(error) => {
            filler.stop();
            return Err(error);
        }
    };
    overlays.keep();
    if qemu.is_some() {
        let after = began.elapsed();
        report(Step::Restored { runs, after });
    }
    let frozen = image.manifest().labels.get(FROZEN).map(String::as_str);
    if qemu.is_some() && options.agent.is_none() {
        note_frozen(frozen, &mut |text| report(Step::Note(text)));
    }
    let agent = options.agent.as_ref().filter(|_| qemu.is_some() && runs);
    if qemu.is_some() && !runs && options.agent.is_some() {
        report(Step::Note(wakeup::NOT_ASKED));
    }
    let wakeup = agent
        .map(|(socket, limit)| Wakeup::start(socket, *limit, frozen.is_some()))
        .transpose()?;
    watch(filler, qemu.as_ref(), wakeup, recorder.as_mut(), signals, report)?;
    // The restore is over. An order is only a hint, and a store that others may not write to has none.
    let recorded = recorder.map(|recorder| {
        check_owner(&options.address.store)?;
        recorder.finish(&store, &image)
    });
    match recorded {
        Some(Ok(Some((pages, runs)))) => report(Step::Recorded { pages, runs }),
        Some(Ok(None)) | None => {}
        Some(Err(error)) => report(Step::Note(&format!(
            "the order in which pages were touched is not recorded: {}",
            vmem_cli::chain(&error)
        ))),
    }
    Ok(())
}

/// Root writes nothing into a directory of another user: that user could not delete it, and may have put a link in the way.
fn check_owner(store: &Location) -> Result<(), Error> {
    match store {
        Location::Directory(path) => {
            let owner = fs::metadata(path)
                .map_err(vmem_cli::Error::call(format!("cannot look at {}", path.display())))?
                .uid();
            match owner == rustix::process::geteuid().as_raw() {
                true => Ok(()),
                false => Err(Error::other(format!(
                    "the store belongs to user {owner}: restore as this user to record it"
                ))),
            }
        }
        #[allow(unreachable_patterns, reason = "without the feature s3 there is no other kind")]
        _ => Ok(()),
    }
}

/// What is to be done with file systems that were frozen at the instant, if nobody asks the guest's agent.
pub(crate) fn note_frozen(frozen: Option<&str>, note: &mut dyn FnMut(&str)) {
    if let Some(count) = frozen {
        note(&format!(
            "{count} file systems of the guest are frozen, as they were at the instant: have its agent execute guest-fsfreeze-thaw \
             (--agent does it)"
        ));
    }
}

/// A name for the region of each memory, or of those that are wanted, that no other region has.
pub(crate) fn regions_of(manifest: &Manifest, wanted: &[String]) -> Result<Vec<(String, String)>, Error> {
    let guest = manifest.checkpoint.guest.as_str();
    let memories: Vec<_> = manifest
        .backends
        .iter()
        .filter(|backend| backend.kind == BackendKind::Memory)
        .collect();
    if let Some(unknown) = wanted.iter().find(|name| memories.iter().all(|memory| memory.name != **name)) {
        let names: Vec<&str> = memories.iter().map(|memory| memory.name.as_str()).collect();
        return Err(Error::other(format!(
            "checkpoint {} has no memory {unknown:?}; it has: {}",
            manifest.checkpoint,
            names.join(", ")
        )));
    }
    let memories = memories
        .into_iter()
        .filter(|memory| wanted.is_empty() || wanted.contains(&memory.name));
    let mut regions: Vec<(String, String)> = Vec::new();
    for memory in memories {
        let is_free = |name: &String| !node_path(name).exists() && !regions.iter().any(|(_, taken)| taken == name);
        let name = guest::region_names(guest, &memory.name).find(is_free);
        let name = name.ok_or_else(|| {
            Error::other(format!(
                "guest {guest}: all names for the region of memory {:?} are taken: end guests that are not needed any more",
                memory.name
            ))
        })?;
        regions.push((memory.name.clone(), name));
    }
    Ok(regions)
}

fn arguments(address: &Address, regions: &[(String, String)], options: &Options) -> Vec<String> {
    let mut all = filler::arguments(address, regions, options.key.is_some());
    if !options.memories.is_empty() {
        all.push("--only".to_owned());
    }
    if let Some(time) = options.record {
        all.push("--report-touches".to_owned());
        if !time.is_zero() {
            all.extend(["--complete-after".to_owned(), time.as_secs_f64().to_string()]);
        }
    }
    all.extend(filler::files(&options.files));
    all.extend_from_slice(&options.vmemd);
    all
}

/// Waits until all memory is there.
fn watch(
    mut filler: Filler,
    qemu: Option<&Process>,
    mut wakeup: Option<Wakeup>,
    mut recorder: Option<&mut Recorder>,
    signals: &Signals,
    report: &mut dyn FnMut(Step<'_>),
) -> Result<(), Error> {
    let (mut is_complete, mut is_unmapped, mut woken) = (false, false, Ok(()));
    loop {
        if let Some(result) = wakeup.as_ref().and_then(Wakeup::result) {
            wakeup = None;
            woken = wakeup::told(result, &mut |text| report(Step::Note(text)));
            if let Err(error) = &woken {
                report(Step::Note(&vmem_cli::chain(error)));
            }
        }
        if is_complete {
            let has_ended = qemu.is_some_and(|qemu| qemu.wait(Duration::ZERO));
            if wakeup.is_none() || has_ended {
                return woken;
            }
            signals.check()?;
            std::thread::sleep(POLL_INTERVAL);
            continue;
        }
        if let Err(stopped) = signals.check() {
            let what = match is_unmapped {
                true => "keeps the memory until a program maps it; SIGTERM ends vmemd, and then the memory is gone",
                false => "goes on and brings the rest of the memory",
            };
            report(Step::Note(&format!("vmemd (process {}) {what}", filler.pid())));
            return Err(stopped.into());
        }
        match filler.news(POLL_INTERVAL)? {
            Some(News::Event(event)) => {
                if let Some(recorder) = &mut recorder {
                    recorder.event(&event);
                }
                if let Event::Region(region) = &event {
                    is_unmapped = region.phase == Phase::Waiting;
                    if is_unmapped {
                        report(Step::Note(&unmapped(region, filler.pid())));
                    }
                }
                if !matches!(event, Event::Touched(_)) {
                    report(Step::Pages(&event));
                }
            }
            Some(News::Restarted(why)) => {
                if let Some(recorder) = &mut recorder {
                    recorder.restarted();
                }
                report(Step::Note(&format!("{why}; another one goes on")));
            }
            Some(News::NotRestarted(why)) => report(Step::Note(&format!("{why}; it is tried again"))),
            Some(News::Complete) => is_complete = true,
            Some(News::Failed(why)) => return Err(Error::other(why)),
            None => {}
        }
        if let Some(recorder) = &mut recorder {
            recorder.poll();
        }
        if qemu.is_some_and(|qemu| qemu.wait(Duration::ZERO)) {
            filler.stop();
            return Err(Error::other("the guest's QEMU has ended before its memory was complete"));
        }
    }
}

/// What the restore of a region waits for that is complete, and how to go on.
fn unmapped(region: &Region, vmemd: i32) -> String {
    let node = || node_path(&region.name).display().to_string();
    let path = region.path.clone().unwrap_or_else(node);
    format!(
        "region {}: all pages are present. The restore ends when a program maps {path}, and vmemd keeps the memory until then. To give it \
         up, end this command, and then vmemd (process {vmemd})",
        region.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_written_into_a_directory_of_the_same_user_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Location::Directory(directory.path().to_owned());
        check_owner(&store).expect("it is of this user");
        // All machines have a directory of root, and tests that root runs can give one away.
        let error = if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(directory.path(), Some(4711), None).expect("root may");
            check_owner(&store).expect_err("it is of another user")
        } else {
            check_owner(&Location::Directory("/".into())).expect_err("it is of root")
        };
        assert!(error.to_string().contains("belongs to user"), "{error}");
    }

    #[test]
    fn vmemd_gets_the_number_of_the_checkpoint_and_a_region_for_each_memory() {
        let address: Address = "/srv/ckpt#guest0@7".parse().expect("an address");
        let regions = [("ram".to_owned(), "guest0.ram".to_owned())];
        let mut options = Options {
            address: address.clone(),
            key: None,
            qmp: None,
            memories: Vec::new(),
            command: Vec::new(),
            logs: PathBuf::new(),
            paused: false,
            agent: None,
            disks: None,
            files: FilesOption::Nowhere,
            record: None,
            vmemd: vec!["--no-background".to_owned()],
        };
        let plain = arguments(&address, &regions, &options).join(" ");
        assert!(
            !plain.contains("--report-touches") && !plain.contains("--key-file"),
            "{plain}"
        );
        options.memories = vec!["ram".to_owned()];
        let one = arguments(&address, &regions, &options).join(" ");
        assert!(one.contains("--region ram=guest0.ram --only"), "{one}");
        options.memories.clear();
        options.record = Some(Duration::from_millis(2500));
        let arguments = arguments(&address, &regions, &options).join(" ");
        assert!(arguments.contains("--report-touches --complete-after 2.5"), "{arguments}");
        assert!(
            arguments.starts_with("--source checkpoint:/srv/ckpt#guest0@7 --region ram=guest0.ram"),
            "{arguments}"
        );
        assert!(
            arguments.ends_with("--no-background") && !arguments.contains("--only"),
            "{arguments}"
        );
    }
}
