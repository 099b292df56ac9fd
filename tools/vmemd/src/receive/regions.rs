// SPDX-License-Identifier: GPL-2.0
//! The regions that a run fills.

use std::sync::Arc;

use vmem::{Control, Error, PAGE_SIZE, Region, RegionBuilder};
use vmem_source::Export;

use crate::cli::{OnDeath, Receive};
use crate::failure::Failure;

/// The name of each export's region.
pub(super) fn names(exports: &[Export], args: &Receive) -> Vec<String> {
    let name = |export: &Export| {
        let other = args.regions.iter().find(|(of, _)| of == export.name.as_str());
        other.map_or_else(|| export.name.to_string(), |(_, name)| name.clone())
    };
    exports.iter().map(name).collect()
}

/// A region for each export: a new one, or one that has lost its daemon.
pub(super) fn open(control: &Control, exports: &[Export], args: &Receive) -> Result<Vec<Arc<Region>>, Failure> {
    if let Some((unknown, _)) = args
        .regions
        .iter()
        .find(|(of, _)| exports.iter().all(|export| export.name.as_str() != of))
    {
        return Err(Failure::NoSuchExport(unknown.clone()));
    }
    exports
        .iter()
        .zip(names(exports, args))
        .map(|(export, name)| open_one(control, &name, export.pages * PAGE_SIZE as u64, args).map(Arc::new))
        .collect()
}

fn open_one(control: &Control, name: &str, size: u64, args: &Receive) -> Result<Region, Failure> {
    let region = if args.resume {
        control.attach(name)
    } else {
        match builder(name, size, args).create(control) {
            Err(Error::NameTaken) => control.attach(name),
            other => other,
        }
    };
    let region = region.map_err(Failure::kernel(format!("cannot serve region {name}")))?;
    if region.size() == size {
        Ok(region)
    } else {
        Err(Failure::OtherSize {
            name: name.to_owned(),
            region: region.size(),
            export: size,
        })
    }
}

fn builder(name: &str, size: u64, args: &Receive) -> RegionBuilder {
    let mut builder = RegionBuilder::new(size).name(name).mode(args.mode);
    if let Some((uid, gid)) = args.owner {
        builder = builder.uid(uid);
        builder = gid.into_iter().fold(builder, RegionBuilder::gid);
    }
    if args.huge {
        builder = builder.huge();
    }
    if args.on_death == OnDeath::Sigbus {
        builder = builder.sigbus_without_daemon();
    }
    if let Some(timeout) = args.fault_timeout {
        builder = builder.fault_timeout(timeout);
    }
    builder
}
