// SPDX-License-Identifier: GPL-2.0-or-later
//! The Python module `vmem`, on the library of the same name. `vmem/__init__.pyi` is its reference; this crate is `vmem._vmem`.
#![forbid(unsafe_code)]

mod error;
mod info;
mod ranges;
mod region;
mod serve;
mod snapshot;
mod tracking;

use pyo3::prelude::*;

/// Memory that can start empty: serve a region from a function, log the writes to memory, read it as it was at one instant.
#[pymodule]
fn _vmem(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("PAGE_SIZE", vmem::PAGE_SIZE)?;
    module.add_class::<region::Region>()?;
    module.add_class::<info::Info>()?;
    module.add_class::<tracking::Tracking>()?;
    module.add_class::<snapshot::Snapshot>()
}
