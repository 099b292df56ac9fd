// SPDX-License-Identifier: GPL-2.0-or-later
//! Answers the requests of a region with what a Python function returns.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use rustix::io::Errno;
use vmem::{Error, Fill, PageRange, Region};

use crate::error::{os_error, refused};

/// The most requests that are taken at once, and so the most pages that the function is asked for at once.
const BATCH: usize = 64;

/// For how long the loop waits without a look at signals and at whether it is to end.
const TICK: Duration = Duration::from_millis(100);

/// What outlives one run of the loop.
#[derive(Default)]
pub(crate) struct State {
    /// Whether a run is to end: the present one, or else the next one.
    stop: AtomicBool,
    /// Whether there is a run.
    serving: AtomicBool,
    /// Requests that were taken and not answered. The kernel gives a request to a daemon once.
    taken: Mutex<VecDeque<PageRange>>,
}

/// What the loop calls.
pub(crate) struct Functions<'py> {
    /// `read(offset, length)`.
    pub(crate) read: Bound<'py, PyAny>,
    /// An event of `threading`, or what has its `is_set()`.
    pub(crate) stop: Option<Bound<'py, PyAny>>,
    /// `on_error(offset, length, exception)`.
    pub(crate) on_error: Option<Bound<'py, PyAny>>,
    /// Whether a region whose pages are all present becomes plain memory, which ends the loop.
    pub(crate) finish: bool,
}

/// The contents of a run of pages.
enum Contents {
    Zeros,
    /// The very object that the function has returned.
    Object(PyBackedBytes),
    Copy(Vec<u8>),
}

impl State {
    /// Has the present run end, or else the next one.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<PageRange>> {
        self.taken.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Marks the end of a run.
struct Run<'a>(&'a State);

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.0.stop.store(false, Ordering::Release);
        self.0.serving.store(false, Ordering::Release);
    }
}

/// Serves `region` until it is plain memory, or is to end, or a function raises.
pub(crate) fn serve(py: Python<'_>, region: &Region, state: &State, functions: &Functions<'_>) -> PyResult<()> {
    if state.serving.swap(true, Ordering::AcqRel) {
        return Err(refused(Errno::BUSY, "another thread serves the region already"));
    }
    let run = Run(state);
    let mut queue = std::mem::take(&mut *state.lock());
    let result = answer_all(py, region, run.0, functions, &mut queue);
    // What is left is asked for again when this process serves the next time.
    state.lock().extend(queue);
    result
}

fn answer_all(
    py: Python<'_>,
    region: &Region,
    state: &State,
    functions: &Functions<'_>,
    queue: &mut VecDeque<PageRange>,
) -> PyResult<()> {
    region.ready().map_err(os_error)?;
    let length = region.info().map_err(os_error)?.length;
    loop {
        py.check_signals()?;
        if is_to_end(state, functions)? {
            return Ok(());
        }
        if let Some(pages) = queue.front().copied() {
            let parts = answer(py, region, functions, pages, length)?;
            // Only now: it is answered.
            queue.pop_front();
            parts.into_iter().rev().for_each(|part| queue.push_front(part));
            continue;
        }
        if functions.finish && is_finished(py, region)? {
            return Ok(());
        }
        match py.detach(|| region.next_requests_timeout(BATCH, TICK)) {
            Ok(mut wanted) => {
                wanted.sort_unstable();
                let mut runs = Vec::new();
                wanted.into_iter().for_each(|page| PageRange::from(page).append_to(&mut runs));
                queue.extend(runs);
            }
            Err(Error::Interrupted { .. }) => {}
            Err(Error::Plain) => return Ok(()),
            Err(error) => return Err(os_error(error)),
        }
    }
}

fn is_to_end(state: &State, functions: &Functions<'_>) -> PyResult<bool> {
    if state.stop.load(Ordering::Acquire) {
        return Ok(true);
    }
    match &functions.stop {
        Some(event) => event.call_method0("is_set")?.is_truthy(),
        None => Ok(false),
    }
}

/// Makes the region plain memory if all of its pages are present.
fn is_finished(py: Python<'_>, region: &Region) -> PyResult<bool> {
    if region.info().map_err(os_error)?.present < region.pages().count() {
        return Ok(false);
    }
    match py.detach(|| region.make_vma_anonymous()) {
        Ok(()) => Ok(true),
        Err(Error::Interrupted { .. }) => Ok(false),
        Err(error) => Err(os_error(error)),
    }
}

/// Answers the request for `pages`. Returns the parts of it for which the function is to be called again.
fn answer(py: Python<'_>, region: &Region, functions: &Functions<'_>, pages: PageRange, length: u64) -> PyResult<Vec<PageRange>> {
    let bytes = pages.bytes();
    let asked = bytes.end - bytes.start;
    // The rest of the last page is no part of the region's file.
    let least = length.min(bytes.end).saturating_sub(bytes.start);
    let contents = functions
        .read
        .call1((bytes.start, asked))
        .and_then(|returned| contents(&returned, least, asked));
    let error = match contents {
        Ok(contents) => {
            return match fill(py, region, pages, &contents) {
                Ok(_) => Ok(Vec::new()),
                // The machine, or the memory cgroup that is charged, has none now. The programs wait meanwhile.
                Err(Error::NoMemory { .. }) => {
                    py.detach(|| sleep(TICK));
                    Ok(vec![pages])
                }
                Err(error) => Err(os_error(error)),
            };
        }
        Err(error) => error,
    };
    // KeyboardInterrupt, SystemExit: they are not about these pages.
    if !error.is_instance_of::<PyException>(py) {
        return Err(error);
    }
    if pages.count() > 1 {
        return Ok(pages.iter().map(PageRange::from).collect());
    }
    py.detach(|| region.mark_unreadable(&[pages]).complete()).map_err(os_error)?;
    match &functions.on_error {
        Some(on_error) => on_error.call1((bytes.start, asked, error.value(py))).map(drop)?,
        None => error.write_unraisable(py, Some(&functions.read)),
    }
    Ok(Vec::new())
}

/// What the function has returned for `asked` bytes, of which `least` are in the region's file.
fn contents(returned: &Bound<'_, PyAny>, least: u64, asked: u64) -> PyResult<Contents> {
    if returned.is_none() {
        return Ok(Contents::Zeros);
    }
    let check = |len: usize| match len as u64 {
        len if len >= least && len <= asked => Ok(len == asked),
        len => Err(PyValueError::new_err(format!(
            "the function has returned {len} bytes, and was asked for {asked}"
        ))),
    };
    if let Ok(bytes) = returned.cast::<PyBytes>() {
        let bytes = PyBackedBytes::from(bytes.clone());
        return match check(bytes.len())? {
            true => Ok(Contents::Object(bytes)),
            false => Ok(Contents::Copy(padded(bytes.to_vec(), asked))),
        };
    }
    let copy = PyBuffer::<u8>::get(returned)?.to_vec(returned.py())?;
    check(copy.len())?;
    Ok(Contents::Copy(padded(copy, asked)))
}

fn padded(mut bytes: Vec<u8>, asked: u64) -> Vec<u8> {
    // `asked` is at most that of a batch.
    bytes.resize(asked as usize, 0);
    bytes
}

/// Fills pages with bytes. Without memory the caller waits, until there is some or a signal ends this.
pub(crate) fn fill_bytes(py: Python<'_>, region: &Region, pages: PageRange, bytes: &[u8]) -> PyResult<()> {
    loop {
        match py.detach(|| fill_once(region, pages, bytes)) {
            Err(Error::NoMemory { .. }) => py.detach(|| sleep(TICK)),
            filled => return filled.map(drop).map_err(os_error),
        }
        py.check_signals()?;
    }
}

fn fill_once(region: &Region, pages: PageRange, bytes: &[u8]) -> Result<u64, Error> {
    region.fill(&[Fill::new(pages.first(), bytes)?]).complete()
}

fn fill(py: Python<'_>, region: &Region, pages: PageRange, contents: &Contents) -> Result<u64, Error> {
    py.detach(|| match contents {
        Contents::Zeros => region.mark_zero(&[pages]).complete(),
        Contents::Object(bytes) => fill_once(region, pages, bytes),
        Contents::Copy(bytes) => fill_once(region, pages, bytes),
    })
}
