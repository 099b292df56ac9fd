// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl checkpoint squash`.

use std::str::FromStr;

use clap::Args;
use vmem_checkpoint::Error;
use vmem_cli::{output, size};
use vmem_migrate::report;
use vmem_store::{CheckpointName, GuestName, SquashOptions};
use vmem_store_source::Selector;

use super::in_store::InStore;
use super::line::CheckpointLine;
use super::note;

#[derive(Debug, Args)]
pub(crate) struct Squash {
    #[command(flatten)]
    store: InStore,
    /// Store pages of the last one again, close together: so many bytes of them at most, first those of packs of which it uses the smallest part
    #[arg(long, value_name = "SIZE", value_parser = size)]
    rewrite: Option<u64>,
    /// Store them again in the order in which restores have touched them; all of them, unless --rewrite says how many
    #[arg(long)]
    by_access: bool,
    /// Change nothing, and say what would be done
    #[arg(long)]
    dry_run: bool,
    /// The checkpoints, of which the last one stays
    #[arg(value_name = "GUEST@FIRST..LAST")]
    checkpoints: Range,
}

/// Checkpoints in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    guest: GuestName,
    first: u64,
    /// The one that stays. `None` is the latest.
    last: Option<u64>,
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form =
            || format!("{text:?} is no range of checkpoints: GUEST@FIRST..LAST is one, of which LAST is a number or latest");
        let (first, last) = text.split_once("..").ok_or_else(form)?;
        let Selector { guest, sequence } = first.parse()?;
        let last = format!("{guest}@{last}").parse::<Selector>()?.sequence;
        let first = sequence.ok_or_else(form)?;
        match last {
            Some(last) if last < first => Err(format!("{first} is after {last}")),
            last => Ok(Self { guest, first, last }),
        }
    }
}

pub(super) fn run(args: &Squash, json: bool) -> Result<(), Error> {
    let store = args.store.open()?;
    let Range { guest, first, last } = &args.checkpoints;
    let selector = Selector {
        guest: guest.clone(),
        sequence: *last,
    };
    let last = selector.find(&store)?;
    let mut options = SquashOptions::default();
    options.dry_run = args.dry_run;
    options.rewrite = args.rewrite.or(args.by_access.then_some(u64::MAX));
    let mut recorded = None;
    options.write.holder = format!("vmemctl checkpoint squash, process {}", std::process::id());
    if args.by_access {
        // A dry run reads a moment, and needs no lease.
        let image = match args.dry_run {
            true => store.image(&last)?,
            false => store.hold(&last, &options.write.holder)?,
        };
        let order = store.access_order(&image)?;
        (recorded, options.order) = (order.recorded, order.touches);
    }
    let recorded_of = recorded.as_ref().map(ToString::to_string);
    let done = store.squash(guest, *first, last.sequence, &options)?;
    if json {
        report::print(&CheckpointLine::Squashed {
            checkpoint: last.to_string(),
            dry_run: args.dry_run,
            report: done,
            order: args.by_access.then_some(recorded_of),
        });
        return Ok(());
    }
    if args.by_access {
        note(false, &order_note(&last, recorded.as_ref()));
    }
    let named = |sequence: &u64| CheckpointName {
        guest: guest.clone(),
        sequence: *sequence,
    };
    let [removed, again] = match args.dry_run {
        true => ["would be removed", "would be stored again"],
        false => ["removed", "stored again"],
    };
    for sequence in &done.removed {
        output::out(&format!("{}  {removed}", named(sequence)));
    }
    for sequence in &done.protected {
        output::out(&format!("{}  kept: it is protected, or being read", named(sequence)));
    }
    output::out(&format!("{last}  stays; {} of its pages {again}", done.rewritten));
    if done.damaged > 0 {
        output::out(&format!(
            "{last}  {} pages cannot be read, and stay where they are",
            done.damaged
        ));
    }
    Ok(())
}

/// Says by what the pages are laid out, unless that is what was asked for.
fn order_note(last: &CheckpointName, recorded: Option<&CheckpointName>) -> String {
    match recorded {
        Some(of) if of == last => format!("pages are laid out by the access order of {last}"),
        Some(of) => format!(
            "no access order was recorded for {last}: pages are laid out by that of {of}, the nearest checkpoint that has one"
        ),
        None => format!(
            "no access order was recorded for any checkpoint of {}: pages are laid out by what {last} has written itself, then the others as they \
             lie in the store (a restore records an order)",
            last.guest
        ),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use vmem_store::{CommitOptions, InitOptions, OpenOptions, Store, WriteOptions};
    use vmem_store_source::Location;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        squash: Squash,
    }

    #[test]
    fn ranges_have_a_first_number_and_a_last_one_that_is_not_before() {
        let range = |text: &str| text.parse::<Range>().ok().map(|range| (range.first, range.last));
        assert_eq!(range("guest0@2..7"), Some((2, Some(7))));
        assert_eq!(range("guest0@2..latest"), Some((2, None)));
        for bad in [
            "guest0",
            "guest0@2",
            "guest0..3",
            "guest0@3..2",
            "guest0@1..",
            "@1..2",
            "guest0@0..2",
        ] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }

    #[test]
    fn missing_access_order_is_said() {
        let name = |sequence| CheckpointName {
            guest: "guest0".parse().expect("a name"),
            sequence,
        };
        let none = order_note(&name(7), None);
        assert!(
            none.starts_with("no access order was recorded for any checkpoint of guest0"),
            "{none}"
        );
        let near = order_note(&name(7), Some(&name(5)));
        assert!(
            near.contains("recorded for guest0@7") && near.contains("that of guest0@5"),
            "{near}"
        );
        let own = order_note(&name(7), Some(&name(7)));
        assert_eq!(own, "pages are laid out by the access order of guest0@7");
    }

    #[test]
    fn last_checkpoint_stays_as_it_was_and_the_others_go() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().join("store").display().to_string();
        let location: Location = place.parse().expect("a place");
        let objects = location.objects().expect("a place");
        let store = Store::init(objects, &InitOptions::default(), OpenOptions::default()).expect("a store");
        let guest: GuestName = "guest0".parse().expect("a name");
        let pages = |round: u8| vec![round; 100 * vmem::PAGE_SIZE];
        let mut parent = None;
        for round in 1..=4 {
            let memories = [("ram".to_owned(), 100 * vmem::PAGE_SIZE as u64)];
            let writer = store.begin(&guest, parent.as_ref(), &memories, &WriteOptions::default());
            let writer = writer.expect("a writer");
            let first = vmem::PageIndex::new(u64::from(round) * 10).expect("a page");
            let contents = if round == 1 { pages(1) } else { vec![round; vmem::PAGE_SIZE] };
            let first = if round == 1 {
                vmem::PageIndex::new(0).expect("a page")
            } else {
                first
            };
            writer.put_pages(0, first, &contents).expect("room");
            parent = Some(writer.commit(CommitOptions::default()).expect("a checkpoint").checkpoint);
        }
        let squash = |arguments: &str| {
            let line = format!("squash --store {place} {arguments}");
            run(&Line::try_parse_from(line.split(' ')).expect("a command line").squash, false)
        };
        let there = || -> Vec<u64> {
            let listed = store.list().expect("a list");
            listed.values().flatten().map(|listed| listed.checkpoint.sequence).collect()
        };
        squash("--dry-run --by-access guest0@1..latest").expect("a success");
        assert_eq!(there(), [1, 2, 3, 4]);
        squash("--by-access guest0@1..3").expect("a success");
        assert_eq!(there(), [3, 4]);
        for sequence in [3, 4] {
            let name = CheckpointName {
                guest: guest.clone(),
                sequence,
            };
            assert!(store.verify(&name, 100).expect("a checkpoint").is_right(), "{name}");
            let image = store.image(&name).expect("a checkpoint");
            let mut page = [0; vmem::PAGE_SIZE];
            for (pgoff, expected) in [(0, 1), (20, 2), (30, 3), (40, if sequence == 4 { 4 } else { 1 })] {
                let pgoff = vmem::PageIndex::new(pgoff).expect("a page");
                image.read_page(0, pgoff, &mut page).expect("a page");
                assert_eq!(page, [expected; vmem::PAGE_SIZE], "page {pgoff} of {name}");
            }
        }
        assert!(squash("guest0@1..9").is_err());
    }
}
