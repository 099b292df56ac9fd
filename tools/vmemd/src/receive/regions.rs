// SPDX-License-Identifier: GPL-2.0-or-later
//! The regions that a run fills.

use std::sync::Arc;

use vmem::{Control, Error, Files, Name, Region, RegionBuilder};
use vmem_cli::chain;
use vmem_source::Export;

use crate::cli::{OnDeath, OnUnreadable, Receive};
use crate::failure::Failure;

use super::kept::KeptRegions;

/// Permission bits of nodes unless told otherwise.
const MODE: u32 = 0o600;

/// Those of a source's exports that there is to be a region of.
pub(super) fn taken(exports: &[Export], args: &Receive) -> Result<Vec<Export>, Failure> {
    let is = |export: &Export, name: &str| export.name.as_str() == name;
    if let Some((unknown, _)) = args
        .regions
        .iter()
        .find(|(of, _)| !exports.iter().any(|export| is(export, of)))
    {
        return Err(Failure::NoSuchExport(unknown.clone()));
    }
    let wanted = |export: &Export| !args.only || args.regions.iter().any(|(of, _)| is(export, of));
    let (taken, ignored): (Vec<_>, Vec<_>) = exports.iter().cloned().partition(wanted);
    for export in ignored {
        tracing::info!("the source's export {} is ignored: no --region names it", export.name);
    }
    // A region that exists is tracked already, and programs wait for its pages.
    if let Some(available) = vmem::available_memory().ok().filter(|_| !args.resume) {
        can_be_tracked(&taken, available >> 20)?;
    }
    Ok(taken)
}

/// Whether memory for as many pages can be kept track of, with so many MiB of memory: a page takes up to three bits. The source says how
/// large its memory is, and must not use up this machine's by it.
fn can_be_tracked(exports: &[Export], available: u64) -> Result<(), Failure> {
    const PAGES_PER_MIB: u64 = (8 << 20) / 3;
    // No overflow: 1024 exports of 2^32 pages at most.
    let pages: u64 = exports.iter().map(|export| export.pages.count()).sum();
    let need = pages.div_ceil(PAGES_PER_MIB);
    if need <= available / 2 {
        Ok(())
    } else {
        Err(Failure::TooMuch { pages, need, available })
    }
}

/// The name of each export's region.
pub(super) fn names(exports: &[Export], args: &Receive) -> Vec<String> {
    let name = |export: &Export| {
        let other = args.regions.iter().find(|(of, _)| of == export.name.as_str());
        other.map_or_else(|| export.name.to_string(), |(_, name)| name.clone())
    };
    exports.iter().map(name).collect()
}

/// A region for each export: a new one, one that has lost its daemon, or one that systemd has kept.
pub(super) fn open(
    control: &Control,
    files: &Files,
    exports: &[Export],
    args: &Receive,
    kept: &mut KeptRegions,
) -> Result<Vec<Arc<Region>>, Failure> {
    exports
        .iter()
        .zip(names(exports, args))
        .map(|(export, name)| {
            let kept = kept.region(&name, export)?;
            open_one(control, files, &name, export, args, kept).map(Arc::new)
        })
        .collect()
}

fn open_one(
    control: &Control,
    files: &Files,
    name: &str,
    export: &Export,
    args: &Receive,
    kept: Option<Region>,
) -> Result<Region, Failure> {
    let failed = || Failure::kernel(format!("cannot serve region {name}"));
    let is_kept = kept.is_some();
    let region = if let Some(region) = kept {
        Ok(region)
    } else if args.resume {
        control.attach(name)
    } else {
        match builder(name, export.length(), args).create(control) {
            Err(Error::NameTaken) if args.attach => control.attach(name),
            // The source chooses the name, and must not choose another program's region by it.
            Err(Error::NameTaken) => return Err(Failure::Exists(name.to_owned())),
            created => {
                let region = created.map_err(failed())?;
                files.check(name, region.id()).map_err(failed())?;
                return Ok(region);
            }
        }
    };
    let region = region.map_err(failed())?;
    for option in args.of_new_regions().into_iter().filter(|_| !args.resume && !is_kept) {
        tracing::warn!("{option} has no effect on region {name}, which exists");
    }
    if region.size() != export.size() {
        return Err(Failure::OtherSize {
            name: name.to_owned(),
            region: region.size(),
            export: export.size(),
        });
    }
    let node = region.check_node(Name::new(name).map_err(failed())?.path());
    for checked in [node, files.check(name, region.id())] {
        match checked {
            // A program that has the region mapped needs its pages, whatever has become of its paths.
            Err(error) if is_mapped(&region) => tracing::warn!("region {name}: {}", chain(&error)),
            checked => checked.map_err(failed())?,
        }
    }
    Ok(region)
}

fn is_mapped(region: &Region) -> bool {
    region.info().is_ok_and(|info| info.mappings > 0)
}

fn builder(name: &str, length: u64, args: &Receive) -> RegionBuilder {
    let mut builder = RegionBuilder::new(length).name(name).mode(args.mode.unwrap_or(MODE));
    if let Some(owner) = args.owner {
        builder = owner.uid.into_iter().fold(builder, RegionBuilder::uid);
        builder = owner.gid.into_iter().fold(builder, RegionBuilder::gid);
    }
    if args.huge {
        builder = builder.huge();
    }
    if args.on_death == Some(OnDeath::Sigbus) {
        builder = builder.sigbus_without_daemon();
    }
    if args.on_unreadable == Some(OnUnreadable::Poison) {
        builder = builder.poison_unreadable();
    }
    if let Some(timeout) = args.fault_timeout {
        builder = builder.fault_timeout(timeout);
    }
    builder
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use vmem::PageRange;

    use super::*;
    use crate::cli::Cli;

    fn args(line: &str) -> Receive {
        Cli::parse_from(line.split(' ')).receive.expect("a destination")
    }

    fn exports(names: &[&str]) -> Vec<Export> {
        let export = |name: &&str| Export {
            name: Name::new(name).expect("a name"),
            pages: PageRange::of_pages(1).expect("a page"),
            padding: 0,
            identity: 0,
        };
        names.iter().map(export).collect()
    }

    #[test]
    fn all_are_taken_or_those_that_are_named() {
        let offered = exports(&["a", "b", "c"]);
        let taken = |line| taken(&offered, &args(line)).map(|taken| names(&taken, &args(line)));
        let all = taken("vmemd --source x --region b=other").expect("exports");
        assert_eq!(all, ["a", "other", "c"]);
        let some = taken("vmemd --source x --only --region b=other --region c=c").expect("exports");
        assert_eq!(some, ["other", "c"]);
    }

    #[test]
    fn a_source_cannot_use_up_memory_by_what_it_says() {
        let large = |count: usize| {
            let mut exports = vec![exports(&["a"]).remove(0); count];
            exports
                .iter_mut()
                .for_each(|export| export.pages = PageRange::of_pages(1 << 32).expect("pages"));
            exports
        };
        assert!(can_be_tracked(&exports(&["a", "b"]), 2).is_ok());
        assert!(can_be_tracked(&large(1), 4096).is_ok());
        assert!(matches!(
            can_be_tracked(&large(1), 3000),
            Err(Failure::TooMuch { need: 1537, .. })
        ));
        assert!(can_be_tracked(&large(1024), 1 << 20).is_err());
        // Regions that exist are tracked already; their programs wait.
        let resumed = args("vmemd --source x --resume --only --region a=a");
        assert!(taken(&large(1024), &resumed).is_ok());
    }

    #[test]
    fn what_is_named_must_be_there() {
        for line in [
            "vmemd --source x --region d=e",
            "vmemd --source x --only --region a=a --region d=e",
        ] {
            let refused = taken(&exports(&["a", "b"]), &args(line));
            assert!(matches!(refused, Err(Failure::NoSuchExport(name)) if name == "d"), "{line}");
        }
    }
}
