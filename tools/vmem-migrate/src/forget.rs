// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl forget`: removes the record of a received guest whose source cannot receive the final message any more.

use crate::Phase;
use crate::daemon::end_leftovers;
use crate::error::{Cause, Error};
use crate::options::{Common, Forget};
use crate::receive::needs_memory;
use crate::record::{Incoming, Outgoing, StateDir};
use crate::report::Report;

/// Removes a record that nothing needs.
pub fn run(cli: &Common, args: &Forget) -> Result<(), Error> {
    let (state_dir, record) = find(cli, args)?;
    check(&record, args.force)?;
    // Without the directory, nobody could find it.
    end_leftovers(&state_dir);
    state_dir.remove();
    Report::new(cli.json).note(&format!("the move of {} is forgotten", record.guest));
    Ok(())
}

fn find(cli: &Common, args: &Forget) -> Result<(StateDir, Incoming), Cause> {
    let state = cli.state.display();
    let mut found = StateDir::find(&cli.state, "in", |_: &Incoming| true)?;
    // Several guests may have the same name. The key then says which one is meant.
    found.retain(|(state_dir, record)| record.guest == args.guest || state_dir.key() == args.guest);
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => return Ok(only),
        (None, _) => {}
        (Some(last), false) => {
            found.push(last);
            let keys: Vec<_> = found.iter().map(|(state_dir, _)| state_dir.key()).collect();
            return Err(Cause::other(format!(
                "several guests {:?} are recorded in {state}: name one of {}",
                args.guest,
                keys.join(", ")
            )));
        }
    }
    let leaves = StateDir::find(&cli.state, "out", |record: &Outgoing| record.guest == args.guest)?;
    Err(Cause::other(if leaves.is_empty() {
        format!(
            "no guest {:?} is recorded as having come here in {state}, or another vmemctl is at work on it",
            args.guest
        )
    } else {
        format!(
            "guest {:?} leaves this host ({state}): 'vmemctl recover' goes on with that",
            args.guest
        )
    }))
}

/// Refuses a record that the guest or its source still needs.
fn check(record: &Incoming, force: bool) -> Result<(), Cause> {
    let guest = &record.guest;
    if record.phase == Phase::Complete {
        return Ok(());
    }
    // Not even --force allows this: the guest would wait for its missing pages for ever.
    if needs_memory(record) {
        return Err(Cause::other(format!(
            "guest {guest:?} is here and its memory is not complete: run 'vmemctl receive --resume' to continue, or end its QEMU first if the \
             guest is not needed any more"
        )));
    }
    if force {
        return Ok(());
    }
    let what = match record.phase {
        Phase::Prepared | Phase::Committed | Phase::Failed => "has not run here, and its source may be waiting to hear that",
        _ => "has ended here, and its source may be waiting to hear that",
    };
    Err(Cause::other(format!(
        "guest {guest:?} {what}: run 'vmemctl receive --resume' to tell it, or use --force to forget the guest nevertheless"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn record(phase: Phase) -> Incoming {
        Incoming {
            session: "0123456789abcdef0123456789abcdef".to_owned(),
            guest: "guest0".to_owned(),
            phase,
            qmp: "/nobody/qmp".into(),
            name: "guest0".to_owned(),
            memory: Vec::new(),
            regions: vec!["no-such-region".to_owned()],
            region_ids: vec![1],
            qemu: None,
            vmemd: Vec::new(),
            run: true,
            settings: None,
            reason: None,
        }
    }

    /// Runs `forget` for a guest with this phase whose QEMU has ended. Returns whether the record was removed.
    fn forgotten(phase: Phase, force: &[&str]) -> bool {
        let directory = tempfile::tempdir().expect("a directory");
        let state_dir = StateDir::new(directory.path(), "in", "guest0").expect("a state directory");
        state_dir.write(&record(phase)).expect("a record");
        drop(state_dir);
        let state = directory.path().to_str().expect("a path");
        let cli = crate::options::cli::Cli::parse_from(
            ["vmemctl", "--json", "--state", state, "forget", "guest0"]
                .iter()
                .chain(force),
        );
        let crate::options::cli::Command::Forget(args) = &cli.command else {
            panic!("not forget")
        };
        let done = run(&cli.common, args).is_ok();
        assert_eq!(done, !directory.path().join("in.guest0/record").exists());
        done
    }

    #[test]
    fn only_a_complete_record_is_removed_without_force() {
        assert!(forgotten(Phase::Complete, &[]));
        for phase in [
            Phase::Prepared,
            Phase::Committed,
            Phase::Starting,
            Phase::Running,
            Phase::Failed,
        ] {
            assert!(!forgotten(phase, &[]), "{phase:?}: the source has to hear");
            assert!(forgotten(phase, &["--force"]), "{phase:?}");
        }
    }

    #[test]
    fn force_does_not_remove_the_record_of_a_live_incomplete_guest() {
        let own = i32::try_from(std::process::id()).expect("a number");
        let lives = |phase| Incoming {
            qemu: Some(
                vmem_process::Process::open(own)
                    .and_then(|own| own.identity())
                    .expect("this process"),
            ),
            ..record(phase)
        };
        assert!(check(&lives(Phase::Running), true).is_err());
        assert!(check(&lives(Phase::Complete), false).is_ok(), "it needs nobody");
    }

    #[test]
    fn one_of_several_guests_of_a_name_is_named_by_its_key() {
        let directory = tempfile::tempdir().expect("a directory");
        for uuid in ["a", "b"] {
            let key = crate::key::Key::new(Some(uuid), None, String::new);
            let state_dir = StateDir::new(directory.path(), "in", key).expect("a state directory");
            state_dir.write(&record(Phase::Complete)).expect("a record");
        }
        let forget = |guest: &str| {
            let state = directory.path().to_str().expect("a path");
            let cli = crate::options::cli::Cli::parse_from(["vmemctl", "--state", state, "forget", guest]);
            let crate::options::cli::Command::Forget(args) = &cli.command else {
                panic!("not forget")
            };
            run(&cli.common, args).map_err(|failure| vmem_cli::chain(&failure))
        };
        let error = forget("guest0").expect_err("nobody knows which");
        assert!(error.contains("uuid=a") && error.contains("uuid=b"), "{error}");
        forget("uuid=b").expect("only one");
        forget("guest0").expect("only one is left");
        assert!(!directory.path().join("in.uuid=a").exists());
    }
}
