// SPDX-License-Identifier: GPL-2.0-or-later
//! The start of a QEMU that takes a guest from a checkpoint.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmem::{DIRECTORY, Files, FilesOption};
use vmem_cli::Signals;
use vmem_qemu::command::Sharing;
use vmem_qemu::{BackendFile, Process, Qemu, Qmp, command, guest};
use vmem_store::Manifest;

use crate::RUN_STATE;
use crate::error::Error;
use crate::incoming;

/// What a guest without the device lacks.
pub(crate) const NO_GENERATION_ID: &str = "the guest is not told that it was restored, and may use the same random numbers as before: \
                                QEMU has no device vmgenid (start the guest, and this QEMU, with -device vmgenid,guid=auto)";

/// Whether a checkpoint's guest ran at the instant.
pub(crate) fn ran(manifest: &Manifest) -> bool {
    manifest.labels.get(RUN_STATE).is_some_and(|state| state == "running")
}

/// Where programs find regions. If they were to be files and are not, `note` says why.
pub(crate) fn open_files(option: &FilesOption, note: &mut dyn FnMut(&str)) -> Files {
    let files = Files::open(option);
    if let Some(error) = files.error() {
        note(&format!("{}; programs find regions in {DIRECTORY}", vmem_cli::chain(error)));
    }
    files
}

/// A QEMU that is to be started, and the guest that it takes.
pub(crate) struct Launch<'a> {
    /// The command, with the placeholders for the socket and the memory.
    pub(crate) command: &'a [String],
    /// QEMU's socket.
    pub(crate) qmp: &'a Path,
    /// The directory of QEMU's log.
    pub(crate) logs: &'a Path,
    /// The name of the log, and a part of the name of QEMU's scope.
    pub(crate) name: String,
    /// Each memory of the guest, and its region.
    pub(crate) regions: &'a [(String, String)],
    /// Where QEMU finds the regions.
    pub(crate) files: &'a Files,
    /// How QEMU maps the regions.
    pub(crate) sharing: Sharing,
    /// The device state.
    pub(crate) state: Vec<u8>,
    /// The guest runs when QEMU has the state.
    pub(crate) runs: bool,
}

impl Launch<'_> {
    /// Starts QEMU, and has it load the state: waits for pages as long as `is_wanted` says so. Returns also whether the guest gets a new
    /// generation ID.
    ///
    /// # Errors
    ///
    /// QEMU has ended, cannot load the state, or has other memory; it is killed. A signal.
    pub(crate) fn start(self, signals: &Signals, is_wanted: &dyn Fn() -> bool) -> Result<(Process, bool), Error> {
        let path = |(id, region): &(String, String)| (id.clone(), self.files.path(region));
        let paths: Vec<_> = self.regions.iter().map(path).collect();
        let words = command::fill_in(self.command, self.qmp, &paths)?;
        let logs = self.logs;
        fs::create_dir_all(logs).map_err(vmem_cli::Error::call(format!("cannot make {}", logs.display())))?;
        let log = logs.join(format!("{}.qemu.log", self.name));
        let mut qemu = Qemu::start(&words, &log, &self.name)?;
        let loaded = qemu
            .connect(self.qmp, || signals.check().is_ok() && is_wanted())
            .map_err(Error::from)
            .and_then(|mut qmp| {
                check_memory(&mut qmp, self.regions, self.files, self.sharing)?;
                qemu.set_changed();
                let has_id = guest::has_generation_id(&mut qmp)?;
                let process = guest::process(&mut qmp)?;
                for (_, path) in &paths {
                    check_open(&process, path, self.sharing)?;
                }
                let is_wanted = || !process.wait(Duration::ZERO) && is_wanted();
                incoming::load(&mut qmp, self.state, self.runs, signals, &is_wanted)?;
                Ok((process, has_id))
            });
        loaded.map_err(|error| {
            let failure = qemu.failure();
            let left = !qemu.end();
            let stopped = signals.check().err().map(Error::from);
            match (stopped, failure) {
                (Some(stopped), _) => stopped,
                (None, Some(failure)) => Error::other(format!("{}; {failure} (see {})", vmem_cli::chain(&error), log.display())),
                (None, None) if left => Error::other(format!(
                    "{}; QEMU still runs, since it has become a daemon: end it",
                    vmem_cli::chain(&error)
                )),
                (None, None) => error,
            }
        })
    }
}

/// Checks that QEMU has the regions as its memory.
fn check_memory(qmp: &mut Qmp, regions: &[(String, String)], files: &Files, sharing: Sharing) -> Result<(), Error> {
    let backends = match sharing {
        Sharing::Shared => guest::memory_backends(qmp)?,
        Sharing::Private => guest::private_backends(qmp)?,
    };
    let found: Vec<_> = backends.into_iter().map(|backend| (backend.id, backend.path)).collect();
    let is = |of: &(String, PathBuf), (id, region): &(String, String)| of.0 == *id && files.is_path_of(&of.1, region);
    let has = |region: &(String, String)| found.iter().any(|found| is(found, region));
    if found.len() == regions.len() && regions.iter().all(has) {
        return Ok(());
    }
    let wanted: Vec<_> = regions.iter().map(|(id, region)| (id, files.path(region))).collect();
    Err(Error::other(format!(
        "the memory backends of QEMU are {found:?}, and those of the checkpoint {wanted:?}: use {{memory:ID}} as the mem-path of each backend"
    )))
}

/// Checks that QEMU has opened the region, and not another file that is at this path where QEMU runs. It cannot change a base through its
/// descriptor: not by a discard of the guest's memory either, which would be one of the file's.
fn check_open(qemu: &Process, path: &Path, sharing: Sharing) -> Result<(), Error> {
    let opened = BackendFile::find(qemu, path)?;
    match sharing == Sharing::Shared || opened.is_read_only(qemu)? {
        true => Ok(()),
        false => Err(Error::other(format!(
            "QEMU has opened {} for writing, and could change the base for all of its clones: give the backend \
             share=off,readonly=on,rom=off",
            path.display()
        ))),
    }
}
