// SPDX-License-Identifier: GPL-2.0-or-later
//! The commands that keep a store in order.

use vmem_checkpoint::Error;
use vmem_cli::{bytes, output};
use vmem_migrate::report;
use vmem_store::{CheckpointName, GcOptions, GuestName, Policy, Store};

use super::args::{Diff, Gc, Prune, Verify};
use super::line::CheckpointLine;
use super::overlays::Before;

/// Removes what the policy does not keep, and counts it.
pub(super) fn apply(store: &Store, guest: &GuestName, policy: &Policy) -> Result<usize, vmem_store::Error> {
    let decisions = store.prune(guest, policy, false)?;
    Ok(decisions.iter().filter(|decision| !decision.is_kept()).count())
}

pub(super) fn prune(args: &Prune, json: bool) -> Result<(), Error> {
    let store = args.store.open()?;
    let before = match args.dry_run {
        true => None,
        false => Some(Before::of_guest(&store, &args.guest)?),
    };
    let decisions = store.prune(&args.guest, &args.keep.policy().unwrap_or_default(), args.dry_run)?;
    for decision in decisions {
        let checkpoint = CheckpointName {
            guest: args.guest.clone(),
            sequence: decision.sequence,
        };
        if json {
            report::print(&CheckpointLine::Decision {
                checkpoint: checkpoint.to_string(),
                kept: decision.is_kept(),
                reasons: &decision.reasons,
            });
        } else if decision.is_kept() {
            output::out(&format!("{checkpoint}  kept: {}", decision.reasons.join(", ")));
        } else {
            let what = if args.dry_run { "would be removed" } else { "removed" };
            output::out(&format!("{checkpoint}  {what}"));
        }
    }
    if let Some(before) = before {
        before.report(&store, json);
    }
    Ok(())
}

pub(super) fn verify(args: &Verify, json: bool) -> Result<(), Error> {
    let store = args.store.open()?;
    let mut bad = 0;
    for selector in &args.checkpoints {
        let checkpoint = selector.find(&store)?;
        let found = store.verify(&checkpoint, args.read_data)?;
        bad += u64::from(!found.is_right());
        if json {
            report::print(&CheckpointLine::Verified {
                checkpoint: checkpoint.to_string(),
                report: found,
            });
            continue;
        }
        output::out(&format!(
            "{checkpoint}  {} pages, {} of them read: {}",
            found.pages,
            found.read,
            match found.is_right() {
                true => "right".to_owned(),
                false => format!("{} cannot be restored", found.bad_pages),
            }
        ));
        for (problem, pages) in &found.problems {
            output::out(&format!("  {problem} ({pages} pages)"));
        }
    }
    match bad {
        0 => Ok(()),
        bad => Err(vmem_cli::Error::other(format!("{bad} checkpoints are damaged")).into()),
    }
}

pub(super) fn diff(args: &Diff, json: bool) -> Result<(), Error> {
    let store = args.store.open()?;
    let differences = store.diff(&args.before.find(&store)?, &args.after.find(&store)?)?;
    for backend in &differences {
        if json {
            let ranges = backend.changed.iter().map(|pages| [pages.first().get(), pages.count()]);
            report::print(&CheckpointLine::Difference {
                backend: &backend.name,
                before_bytes: backend.before,
                after_bytes: backend.after,
                pages: backend.pages(),
                ranges: ranges.collect(),
            });
        } else {
            let size = |bytes_of: Option<u64>| bytes_of.map_or("none".to_owned(), bytes);
            output::out(&format!(
                "{}: {} before, {} after; {} pages differ in {} runs",
                backend.name,
                size(backend.before),
                size(backend.after),
                backend.pages(),
                backend.changed.len()
            ));
        }
    }
    Ok(())
}

pub(super) fn gc(args: &Gc, json: bool) -> Result<(), Error> {
    let store = args.store.open()?;
    let mut options = GcOptions::default();
    options.dry_run = args.dry_run;
    if let Some(grace) = args.grace {
        options.grace = grace;
    }
    let found = store.gc(&options)?;
    if json {
        report::print(&CheckpointLine::Gc {
            dry_run: args.dry_run,
            report: found,
        });
        return Ok(());
    }
    let (deleted, trimmed) = if args.dry_run {
        ("to be deleted", "to be trimmed")
    } else {
        ("deleted", "trimmed")
    };
    for (what, objects, size) in [
        (deleted, found.deleted, found.deleted_bytes),
        (trimmed, found.trimmed, found.trimmed_bytes),
        ("waiting", found.waiting, found.waiting_bytes),
    ] {
        output::out(&format!("{what:<14} {objects} objects, {}", bytes(size)));
    }
    found
        .problems
        .iter()
        .for_each(|problem| output::out(&format!("not trimmed    {problem}")));
    Ok(())
}
