// SPDX-License-Identifier: GPL-2.0-or-later
//! Failures on demand: the kernel's fault injection, for one call of one thread.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::failure::Outcome;

/// What can be made to fail, as debugfs calls it (small allocations, pages, copies from and to user memory), and how: those that may wait, too. A
/// trace for each failure would be taken for a complaint of the kernel.
const SETTINGS: [(&str, &str); 7] = [
    ("failslab/verbose", "0"),
    ("failslab/ignore-gfp-wait", "N"),
    ("fail_page_alloc/verbose", "0"),
    ("fail_page_alloc/ignore-gfp-wait", "N"),
    ("fail_page_alloc/ignore-gfp-highmem", "N"),
    ("fail_page_alloc/min-order", "0"),
    ("fail_usercopy/verbose", "0"),
];

/// Whether this kernel can (a debug kernel).
pub(crate) fn available() -> bool {
    Path::new("/proc/thread-self/fail-nth").exists()
}

/// Says in the kernel's log between which lines of it failures are on demand: what the kernel says of them there is no complaint (vm/klog).
pub(crate) struct Announcement;

impl Announcement {
    /// From here on.
    pub(crate) fn new() -> Self {
        Self::say("begin");
        Self
    }

    fn say(what: &str) {
        // Without it the log is taken for unclean, which is seen.
        let _ = fs::write("/dev/kmsg", format!("vmem: failures on demand: {what}\n"));
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        Self::say("end");
    }
}

/// Makes one failure happen in the thread that made it.
pub(crate) struct Injector(File);

impl Injector {
    /// Nothing fails yet.
    pub(crate) fn new() -> Outcome<Self> {
        for (file, value) in SETTINGS {
            let path = Path::new("/sys/kernel/debug").join(file);
            // Without one of these less would fail, and nobody would see it.
            fs::write(&path, value).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(Self(
            File::options().read(true).write(true).open("/proc/thread-self/fail-nth")?,
        ))
    }

    /// The `nth` thing from now on that can fail in this thread, does. The first is 1.
    pub(crate) fn arm(&self, nth: u32) -> Outcome {
        Ok(self.0.write_all_at(nth.to_string().as_bytes(), 0)?)
    }

    /// Nothing fails any more. Whether something has.
    pub(crate) fn disarm(&self) -> Outcome<bool> {
        let mut left = [0; 16];
        // This very read can be what fails; then nothing did before.
        let Ok(len) = self.0.read_at(&mut left, 0) else {
            return Ok(false);
        };
        let failed = left[..len].trim_ascii() == b"0";
        if !failed && self.0.write_all_at(b"0", 0).is_err() {
            // It was this write; now nothing is left to fail.
            return Ok(false);
        }
        Ok(failed)
    }
}
