// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl checkpoint create`: one checkpoint, or one after the other.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vmem_checkpoint::{Checkpointer, Error, Made, Options, Step, Subject};
use vmem_cli::{Signals, bytes, chain, output};
use vmem_migrate::options::Common;
use vmem_migrate::report;
use vmem_store::{CheckpointName, GuestName, Rewritten, Store, WriteOptions};

use super::agent::deputy;
use super::args::Create;
use super::line::{CheckpointLine, CreateLine};
use super::paced::Paced;
use super::patience::Patience;
use super::{maintain, note};

/// How often a wait looks for a signal and for the end of the program.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

pub(super) fn run(args: &Create, signals: &Signals, common: &Common) -> Result<(), Error> {
    let json = common.json;
    let waiting = Patience {
        signals: signals.clone(),
        json,
    };
    let store = args.store.open_patiently(args.store_timeout, Arc::new(waiting))?;
    let subject = match (&args.qmp, &args.program) {
        (Some(qmp), _) => Subject::Guest { qmp: qmp.clone() },
        (None, Some(program)) => Subject::Program {
            pid: program.pid,
            memory: program.memory.clone(),
        },
        // clap asks for one of the two.
        (None, None) => return Err(vmem_cli::Error::other("neither --qmp nor --pid and --memory").into()),
    };
    if args.program.is_some() && args.freeze.socket.agent.is_some() {
        return Err(vmem_cli::Error::other("--agent: a program's memory has no guest agent").into());
    }
    let options = Options {
        name: args.name.clone(),
        copies: args.copies.unwrap_or(0),
        timeout: args.timeout,
        tags: args.words.iter().cloned().collect(),
        agent: args.freeze.options()?,
        disks: args.disks.clone(),
        continuer: match &args.qmp {
            Some(qmp) => deputy("continue", "--qmp", qmp)?,
            None => Vec::new(),
        },
        hooks: args.hooks.hooks(&args.store.store.to_string()),
        state: common.state.clone(),
    };
    let mut checkpointer = Checkpointer::begin(subject, store.clone(), options)?;
    let result = match args.every {
        None => checkpoint(&mut checkpointer, signals, &Paced::new(json)).map(|made| {
            print(&made, json);
            tidy(&store, args, &made.checkpoint, signals, json);
        }),
        Some(every) => repeat(&mut checkpointer, every, args, signals, json, &|made| {
            print(made, json);
            tidy(&store, args, &made.checkpoint, signals, json);
        }),
    };
    let ended = checkpointer.end();
    result.and(ended)
}

/// What is done in the store after a checkpoint, which is complete whatever comes of this.
fn tidy(store: &Store, args: &Create, made: &CheckpointName, signals: &Signals, json: bool) {
    if args.rewrite > 0 {
        rewrite(store, args.rewrite, made, signals, json);
    }
    prune(store, args, &made.guest, json);
}

/// Stores pages of the checkpoint again if they are scattered: a restore reads few packs, however many checkpoints came before.
fn rewrite(store: &Store, bytes: u64, made: &CheckpointName, signals: &Signals, json: bool) {
    let mut options = WriteOptions::default();
    options.holder = format!("vmemctl checkpoint create, process {}", std::process::id());
    match store.rewrite_scattered(made, bytes, &options, &|| signals.check().is_ok()) {
        Ok(None) => {}
        Ok(Some(done)) if json => {
            report::print(&CheckpointLine::Rewritten {
                checkpoint: made.to_string(),
                report: done,
            });
        }
        Ok(Some(done)) => {
            let Rewritten { pages, packs, .. } = done;
            note(
                json,
                &format!("{pages} pages of {made} were in {packs} packs, and are stored again close together"),
            );
        }
        Err(error) => tracing::error!("pages of {made} are not stored again: {}", chain(&error)),
    }
}

/// Removes the checkpoints that are not to be kept. One that cannot be removed is no reason to make no more.
fn prune(store: &Store, args: &Create, guest: &GuestName, json: bool) {
    let Some(policy) = args.keep.policy() else { return };
    match maintain::apply(store, guest, &policy) {
        Ok(0) => {}
        Ok(removed) => note(json, &format!("{removed} checkpoints of {guest} were removed")),
        Err(error) => tracing::error!("checkpoints of {guest} are not removed: {}", chain(&error)),
    }
}

/// Makes one, and says how far it is.
fn checkpoint(checkpointer: &mut Checkpointer, signals: &Signals, paced: &Paced) -> Result<Made, Error> {
    paced.restart();
    let guest = checkpointer.guest().clone();
    let made = checkpointer.checkpoint(signals, &|step| match step {
        Step::Absent {
            referred,
            origin,
            awaited,
        } => report_absent(&guest, referred, origin, awaited, paced.json()),
        Step::Written(progress) => paced.show(progress),
        Step::Waiting { progress, pages } => paced.wait(progress, pages),
    });
    paced.end();
    made
}

/// Says that pages were absent at the instant, and what becomes of them.
fn report_absent(guest: &GuestName, referred: u64, origin: Option<&CheckpointName>, awaited: u64, json: bool) {
    if json {
        report::print(&CheckpointLine::Absent {
            guest: guest.as_str(),
            referred_pages: referred,
            origin: origin.map(ToString::to_string),
            awaited_pages: awaited,
        });
        return;
    }
    if let Some(origin) = origin.filter(|_| referred > 0) {
        note(
            json,
            &format!("{referred} pages of {guest} are absent: they are as in {origin}, from which its memory is filled"),
        );
    }
    if awaited > 0 {
        note(
            json,
            &format!(
                "{awaited} pages of {guest} are absent, and it is not proven that a checkpoint of this store has them: the checkpoint waits until \
                 they come (a signal ends it)"
            ),
        );
    }
}

/// Makes checkpoints until a signal arrives, the program has ended, or there are enough.
fn repeat(
    checkpointer: &mut Checkpointer,
    every: Duration,
    args: &Create,
    signals: &Signals,
    json: bool,
    each: &dyn Fn(&Made),
) -> Result<(), Error> {
    let mut left = args.count;
    let mut next = Instant::now();
    let paced = Paced::new(json);
    while left != Some(0) {
        if !wait(next, checkpointer, signals) {
            break;
        }
        // After a checkpoint that took longer, the next one begins at once.
        next = (next + every).max(Instant::now());
        let pending = checkpointer.pending()?;
        if pending < args.min_pages {
            report_skipped(checkpointer, pending, json);
            continue;
        }
        match checkpoint(checkpointer, signals, &paced) {
            Ok(made) => {
                each(&made);
                left = left.map(|left| left - 1);
            }
            Err(error) if error.is_signal() => {
                note(json, &format!("{error}: the checkpoint that was being made is given up"));
                break;
            }
            Err(_) if checkpointer.has_ended() => break,
            Err(error) if error.is_passing() => report_failed(checkpointer, &error, json),
            Err(error) => return Err(error),
        }
    }
    if checkpointer.has_ended() {
        note(json, "the program has ended, and with it the checkpoints");
    }
    Ok(())
}

/// Waits until it is time. False if there is to be no more.
fn wait(next: Instant, checkpointer: &Checkpointer, signals: &Signals) -> bool {
    loop {
        if signals.check().is_err() || checkpointer.has_ended() {
            return false;
        }
        let left = next.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        thread::sleep(left.min(POLL_INTERVAL));
    }
}

fn report_skipped(checkpointer: &Checkpointer, pending: u64, json: bool) {
    if json {
        report::print(&CheckpointLine::Skipped {
            guest: checkpointer.guest().as_str(),
            pages: pending,
        });
    } else {
        note(
            json,
            &format!("no checkpoint of {}: {pending} pages were written", checkpointer.guest()),
        );
    }
}

fn report_failed(checkpointer: &Checkpointer, error: &Error, json: bool) {
    let why = chain(error);
    if json {
        report::print(&CheckpointLine::CheckpointFailed {
            guest: checkpointer.guest().as_str(),
            error: &why,
        });
    }
    tracing::error!("no checkpoint of {}: {why}", checkpointer.guest());
}

fn print(made: &Made, json: bool) {
    if json {
        report::print(&CreateLine::Checkpoint(made));
    } else {
        output::out(&line(made));
    }
}

/// One line for a person.
fn line(made: &Made) -> String {
    let parent = made
        .parent
        .as_ref()
        .map_or("full".to_owned(), |parent| format!("after {parent}"));
    let ms = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
    let pause = match (made.pause_seconds, made.running) {
        (Some(pause), _) => {
            let part = |part: Option<f64>| ms(part.unwrap_or(0.0));
            format!(
                "stood still {} (devices {}, arming {}, resuming {})",
                ms(pause),
                part(made.pause_devices_seconds),
                part(made.pause_arming_seconds),
                part(made.pause_resuming_seconds)
            )
        }
        (None, Some(false)) => "was paused".to_owned(),
        (None, _) => format!("writers were held up for {}", ms(made.closed_seconds)),
    };
    let frozen = match (made.frozen_file_systems, made.frozen_seconds, &made.not_frozen) {
        (0, _, Some(why)) => format!("; file systems not frozen: {why}"),
        (0, ..) => String::new(),
        (count, Some(time), _) => format!("; {count} file systems frozen for {}", ms(time)),
        (count, None, _) => format!("; {count} file systems frozen, and NOT thawed"),
    };
    let disks = match made.disks.len() {
        0 => String::new(),
        count => format!("; {count} disks kept"),
    };
    format!(
        "{}  {parent}: {} of {} pages stored in {} ({:.2} of their size), {} unchanged, {} zero; {pause}{frozen}{disks}; {} pages copied; {:.1} s",
        made.checkpoint,
        made.stored_pages,
        made.pages,
        bytes(made.stored_bytes),
        made.ratio,
        made.unchanged_pages,
        made.zero_pages,
        made.copied_pages,
        made.seconds
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use vmem::{PAGE_SIZE, PageIndex};
    use vmem_store::{CommitOptions, InitOptions, OpenOptions};
    use vmem_store_source::Location;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }

    #[test]
    fn scattered_checkpoint_is_stored_again_unless_nothing_is_to_be() {
        const CHECKPOINTS: u64 = 140;
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().join("store").display().to_string();
        let objects = place.parse::<Location>().expect("a place").objects().expect("a place");
        let store = Store::init(objects, &InitOptions::default(), OpenOptions::default()).expect("a store");
        let guest: GuestName = "guest0".parse().expect("a name");
        let memories = [("ram".to_owned(), CHECKPOINTS * PAGE_SIZE as u64)];
        let mut last: Option<CheckpointName> = None;
        for round in 0..CHECKPOINTS {
            let writer = store.begin(&guest, last.as_ref(), &memories, &WriteOptions::default());
            let writer = writer.expect("a writer");
            let (first, pages) = if round == 0 { (0, CHECKPOINTS) } else { (round, 1) };
            let contents: Vec<u8> = (first..first + pages)
                .flat_map(|page| vec![(page + round) as u8 | 1; PAGE_SIZE])
                .collect();
            let first = PageIndex::new(first).expect("a page");
            writer.put_pages(0, first, &contents).expect("room");
            last = Some(writer.commit(CommitOptions::default()).expect("a checkpoint").checkpoint);
        }
        let last = last.expect("a checkpoint");
        let signals = Signals::catch().expect("signals");
        let packs = |options: &str| {
            let line = format!("create --store {place} --qmp /none {options}");
            let args = Line::try_parse_from(line.split_whitespace()).expect("a command line").create;
            tidy(&store, &args, &last, &signals, false);
            assert!(store.verify(&last, 100).expect("a checkpoint").is_right());
            store
                .image(&last)
                .expect("a checkpoint")
                .fragmentation()
                .expect("an index")
                .packs
        };
        assert_eq!(packs("--rewrite 0"), CHECKPOINTS);
        assert!(packs("") < 80);
    }
}
