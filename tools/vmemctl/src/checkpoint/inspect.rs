// SPDX-License-Identifier: GPL-2.0-or-later
//! The commands on what a store has.

use vmem_checkpoint::disks::{DISKS, Disk};
use vmem_checkpoint::{Error, RUN_STATE};
use vmem_cli::{bytes, chain, output};
use vmem_migrate::report;
use vmem_store::{BackendKind, CheckpointName, InitOptions, Manifest, OpenOptions, Store};

use super::args::{Init, List, Protect, Rm, Show};
use super::line::{CheckpointLine, Details, Summary};
use super::overlays::Before;

pub(super) fn init(args: &Init, json: bool) -> Result<(), Error> {
    let location = &args.store.store;
    let mut options = InitOptions::default();
    options.key = args.store.key.read()?;
    if args.encrypt != options.key.is_some() {
        let why = if args.encrypt {
            "--encrypt needs --key-file or --key-command (vmemctl checkpoint key generate FILE makes a key)"
        } else {
            "a key was given for a store that is not to be encrypted: add --encrypt"
        };
        return Err(vmem_cli::Error::other(why).into());
    }
    let store = Store::init(location.objects()?, &options, OpenOptions::default())?;
    let encrypted = store.config().encrypted;
    if json {
        report::print(&CheckpointLine::Store {
            store: location.to_string(),
            id: store.config().id.to_string(),
            encrypted,
        });
    } else {
        let kind = if encrypted { "an encrypted" } else { "a" };
        output::out(&format!("{location} is {kind} checkpoint store"));
    }
    Ok(())
}

pub(super) fn list(args: &List, json: bool) -> Result<(), Error> {
    let store = args.store.open()?;
    let encrypted = store.config().encrypted;
    for (guest, checkpoints) in store.list()? {
        if args.guest.as_ref().is_some_and(|wanted| *wanted != guest) {
            continue;
        }
        for listed in checkpoints {
            // Somebody may remove it at this moment.
            let manifest = match store.manifest(&listed.checkpoint) {
                Err(vmem_store::Error::NoCheckpoint(_)) => continue,
                manifest => manifest?,
            };
            if json {
                report::print(&CheckpointLine::Checkpoint(Box::new(summary(
                    &manifest,
                    listed.protected,
                    encrypted,
                ))));
            } else {
                output::out(&line(&manifest, listed.protected, encrypted));
            }
        }
    }
    Ok(())
}

pub(super) fn show(args: &Show, json: bool) -> Result<(), Error> {
    let store = args.store.open()?;
    let checkpoint = args.checkpoint.find(&store)?;
    let image = store.image(&checkpoint)?;
    let fragmentation = image.fragmentation()?;
    let manifest = image.manifest();
    let encrypted = store.config().encrypted;
    let listed = store.list()?;
    let is_protected = listed
        .get(&checkpoint.guest)
        .is_some_and(|all| all.iter().any(|one| one.checkpoint == checkpoint && one.protected));
    let disks = Disk::all_of(manifest)?;
    if json {
        let mut summary = summary(manifest, is_protected, encrypted);
        summary.details = Some(Details {
            disks: &disks,
            labels: &manifest.labels,
            statistics: manifest.statistics,
            fragmentation,
        });
        report::print(&CheckpointLine::Checkpoint(Box::new(summary)));
        return Ok(());
    }
    let parent = manifest
        .parent
        .as_ref()
        .map_or("none".to_owned(), |parent| parent.checkpoint.to_string());
    let statistics = &manifest.statistics;
    let mut lines = vec![
        format!(
            "checkpoint  {}{}",
            manifest.checkpoint,
            if is_protected { " (protected)" } else { "" }
        ),
        format!(
            "made        {} ms after 1970, in {} ms",
            manifest.created, statistics.milliseconds
        ),
        format!("parent      {parent}"),
        format!("encrypted   {}", if encrypted { "yes" } else { "no" }),
    ];
    lines.extend(manifest.backends.iter().map(|backend| {
        let kind = match backend.kind {
            BackendKind::Memory => "memory",
            BackendKind::Blob => "bytes",
        };
        format!("{kind:<11} {} ({})", backend.name, bytes(backend.bytes))
    }));
    lines.push(format!(
        "pages       {} put: {} stored, {} unchanged, {} duplicate, {} zero",
        statistics.put, statistics.stored, statistics.unchanged, statistics.duplicate, statistics.zero
    ));
    lines.push(format!(
        "stored      {} in {} packs",
        bytes(statistics.pack_bytes),
        statistics.packs
    ));
    lines.push(format!(
        "fragments   {} pages with contents in {} runs, in {} packs",
        fragmentation.pages, fragmentation.runs, fragmentation.packs
    ));
    lines.extend(disks.iter().map(|disk| {
        let (name, format) = (disk.name.escape_debug(), disk.format.escape_debug());
        let stands = disk
            .check()
            .err()
            .map_or(String::new(), |error| format!("; {}", chain(&error)));
        format!("disk        {name}: {} ({format}){stands}", disk.file.display())
    }));
    lines.extend(
        manifest
            .labels
            .iter()
            .filter(|(key, _)| *key != DISKS)
            .map(|(key, value)| format!("label       {} = {}", key.escape_debug(), value.escape_debug())),
    );
    lines.extend(manifest.tags.iter().map(|tag| format!("tag         {}", tag.escape_debug())));
    lines.iter().for_each(|line| output::out(line));
    Ok(())
}

pub(super) fn remove(args: &Rm, json: bool) -> Result<(), Error> {
    let store = args.store.open()?;
    let checkpoints = args.checkpoints.iter().map(|selector| selector.find(&store));
    let checkpoints: Vec<CheckpointName> = checkpoints.collect::<Result<_, _>>()?;
    let before = Before::of(&store, checkpoints.iter().cloned());
    let removed = checkpoints.iter().try_for_each(|checkpoint| store.remove(checkpoint));
    before.report(&store, json);
    Ok(removed?)
}

pub(super) fn protect(args: &Protect) -> Result<(), Error> {
    let store = args.store.open()?;
    for selector in &args.checkpoints {
        store.protect(&selector.find(&store)?, !args.off)?;
    }
    Ok(())
}

fn memory_bytes(manifest: &Manifest) -> u64 {
    let memories = manifest.backends.iter().filter(|backend| backend.kind == BackendKind::Memory);
    memories.map(|backend| backend.bytes).sum()
}

fn summary(manifest: &Manifest, protected: bool, encrypted: bool) -> Summary<'_> {
    Summary {
        checkpoint: manifest.checkpoint.to_string(),
        created_ms: manifest.created,
        parent: manifest.parent.as_ref().map(|parent| parent.checkpoint.to_string()),
        memory_bytes: memory_bytes(manifest),
        stored_pages: manifest.statistics.stored,
        pack_bytes: manifest.statistics.pack_bytes,
        run_state: manifest.labels.get(RUN_STATE).map(String::as_str),
        tags: &manifest.tags,
        protected,
        encrypted,
        details: None,
    }
}

fn line(manifest: &Manifest, protected: bool, encrypted: bool) -> String {
    let state = manifest
        .labels
        .get(RUN_STATE)
        .map_or(String::new(), |state| format!(", {}", state.escape_debug()));
    let protected = if protected { ", protected" } else { "" };
    let encrypted = if encrypted { ", encrypted" } else { "" };
    format!(
        "{}  memory {}, {} pages stored in {}{state}{protected}{encrypted}",
        manifest.checkpoint,
        bytes(memory_bytes(manifest)),
        manifest.statistics.stored,
        bytes(manifest.statistics.pack_bytes)
    )
}
