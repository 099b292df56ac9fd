// SPDX-License-Identifier: GPL-2.0-or-later
//! Cuts of a stand-in for QEMU, which does with its guest what QEMU does: it stops the guest at the end of a migration, and continues it
//! when the migration is cancelled or its stream is closed.

pub(crate) mod fake;

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use fake::{FakeQemu, Habit};
use vmem_qemu::recorded::END;

const LIMITS: Limits = Limits {
    timeout: Duration::from_secs(20),
    device_state: 1 << 20,
};

fn cut_of<T>(qemu: &FakeQemu, limits: Limits, arm: impl FnOnce() -> Result<T, Error>) -> Result<Cut<T>, Error> {
    let socket = qemu.socket();
    cut(
        qemu.connect(),
        socket,
        limits,
        &Signals::default(),
        |_| Ok(()),
        |_| arm(),
        || (),
    )
}

fn armed() -> Result<(), Error> {
    Ok(())
}

#[test]
fn snapshot_is_armed_while_the_guest_stands_still_and_the_guest_runs_again() {
    let qemu = FakeQemu::start("running", Habit::default());
    let mut prepared_at = String::new();
    let prepare = |runs: bool| {
        assert!(runs);
        assert_eq!(
            qemu.capabilities_on(),
            Vec::<String>::new(),
            "another client may still use QEMU's migration"
        );
        prepared_at = qemu.status();
        Ok(())
    };
    let arm = |_: &mut Qmp| Ok(qemu.status());
    let mut resumed_at = (String::new(), Vec::new());
    let resumed = || resumed_at = (qemu.status(), qemu.capabilities_on());
    let made = cut(
        qemu.connect(),
        qemu.socket(),
        LIMITS,
        &Signals::default(),
        prepare,
        arm,
        resumed,
    )
    .expect("a cut");
    assert_eq!(resumed_at.0, "running");
    assert_eq!(
        resumed_at.1.len(),
        3,
        "file systems are thawed before settings are restored, which can take long"
    );
    assert_eq!((made.armed.as_str(), prepared_at.as_str()), ("finish-migrate", "running"));
    assert_eq!(made.device_state, END);
    assert!(made.runs);
    let pause = made.pause.expect("QEMU says when");
    assert!(pause.total >= pause.devices.max(pause.resuming), "{pause:?}");
    assert_eq!(qemu.status(), "running");
    assert!(
        !qemu.commands().iter().any(|command| command == "cont"),
        "QEMU continues it by itself"
    );
    assert_eq!(qemu.capabilities_on(), Vec::<String>::new(), "settings are as before");
}

#[test]
fn overlays_are_made_between_the_stop_and_the_continuation() {
    let qemu = FakeQemu::start("running", Habit::default());
    let signals = Signals::default();
    let arm = |qmp: &mut Qmp| {
        qmp.execute("transaction", json!({"actions": []}))?;
        Ok(qemu.status())
    };
    let made = cut(qemu.connect(), qemu.socket(), LIMITS, &signals, |_| Ok(()), arm, || ()).expect("a cut");
    assert_eq!(made.armed, "finish-migrate");
    let commands = qemu.commands();
    let at = |name: &str| commands.iter().position(|command| command == name);
    assert!(
        at("migrate") < at("transaction") && at("transaction") < at("migrate_cancel"),
        "{commands:?}"
    );
}

#[test]
fn paused_guest_stays_paused() {
    let qemu = FakeQemu::start("paused", Habit::default());
    let made = cut_of(&qemu, LIMITS, armed).expect("a cut");
    assert!(!made.runs && made.pause.is_none(), "{made:?}");
    assert_eq!(qemu.status(), "paused");
    assert!(!qemu.commands().iter().any(|command| command == "cont"));
}

#[test]
fn guest_that_its_operator_pauses_meanwhile_stays_paused() {
    let qemu = FakeQemu::start("running", Habit::default());
    let arm = || {
        qemu.set_before("paused");
        Ok(())
    };
    let made = cut_of(&qemu, LIMITS, arm).expect("a cut");
    assert_eq!(qemu.status(), "paused");
    assert!(!made.runs, "a restore does not continue it either");
}

#[test]
fn guest_runs_again_when_the_snapshot_fails() {
    let qemu = FakeQemu::start("running", Habit::default());
    let failed = cut_of(&qemu, LIMITS, || Err::<(), _>(Error::Copies));
    assert!(matches!(failed, Err(Error::Copies)), "{failed:?}");
    assert_eq!(qemu.status(), "running");
    assert_eq!(qemu.capabilities_on(), Vec::<String>::new());
}

#[test]
fn guest_runs_again_when_this_program_panics_or_dies() {
    let qemu = FakeQemu::start("running", Habit::default());
    let died = catch_unwind(AssertUnwindSafe(|| cut_of::<()>(&qemu, LIMITS, || panic!("on purpose"))));
    assert!(died.is_err());
    // Nobody says anything to QEMU: the closed stream is all that it gets.
    qemu.wait_for("running");
    assert!(
        !qemu
            .commands()
            .iter()
            .any(|command| command == "migrate_cancel" || command == "cont")
    );
}

#[test]
fn qemu_that_does_not_save_its_devices_is_given_up() {
    let silent = Habit {
        written: END.len() - 1,
        ..Habit::default()
    };
    let limits = Limits {
        timeout: Duration::from_millis(200),
        ..LIMITS
    };
    let qemu = FakeQemu::start("running", silent);
    let failed = cut_of(&qemu, limits, || -> Result<(), Error> { panic!("not complete") });
    assert!(matches!(failed, Err(Error::TimedOut(_))), "{failed:?}");
    assert_eq!(qemu.status(), "running");
}

#[test]
fn device_state_over_the_limit_is_refused() {
    let qemu = FakeQemu::start("running", Habit::default());
    let limits = Limits {
        device_state: 100,
        ..LIMITS
    };
    let failed = cut_of(&qemu, limits, armed);
    assert!(matches!(failed, Err(Error::StateTooLong(_))), "{failed:?}");
    assert_eq!(qemu.status(), "running");
}

#[test]
fn signal_ends_a_cut_and_the_guest_runs() {
    let silent = Habit {
        written: 10,
        ..Habit::default()
    };
    let qemu = FakeQemu::start("running", silent);
    let signals = Signals::default();
    let late = signals.clone();
    let sender = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        late.raise();
    });
    let socket = qemu.socket();
    let stopped = cut(qemu.connect(), socket, LIMITS, &signals, |_| Ok(()), |_| armed(), || ()).expect_err("a signal");
    assert!(stopped.is_signal(), "{stopped}");
    assert_eq!(qemu.status(), "running");
    sender.join().expect("no panic");
}

#[test]
fn refused_migration_changes_nothing() {
    let refuses = Habit {
        refuses: true,
        ..Habit::default()
    };
    let qemu = FakeQemu::start("running", refuses);
    let failed = cut_of(&qemu, LIMITS, armed);
    assert!(
        matches!(&failed, Err(Error::Qemu(vmem_qemu::Error::Refused { .. }))),
        "{failed:?}"
    );
    assert_eq!(qemu.status(), "running");
    assert_eq!(qemu.capabilities_on(), Vec::<String>::new());
}

#[test]
fn guest_in_another_state_is_left_alone() {
    let qemu = FakeQemu::start("inmigrate", Habit::default());
    let failed = cut_of(&qemu, LIMITS, armed);
    assert!(
        matches!(&failed, Err(Error::Status(status)) if status == "inmigrate"),
        "{failed:?}"
    );
    assert!(!qemu.commands().iter().any(|command| command == "migrate"));
}

#[test]
fn qemu_that_waits_before_the_switchover_goes_on() {
    let waits = Habit {
        waits: true,
        ..Habit::default()
    };
    let qemu = FakeQemu::start("running", waits);
    let made = cut_of(&qemu, LIMITS, armed).expect("a cut");
    assert_eq!(made.device_state, END);
    assert_eq!(qemu.status(), "running");
}

#[test]
fn capabilities_are_switched_off_also_if_another_setting_cannot_be_restored() {
    let refuses = Habit {
        refuses_bandwidth: true,
        ..Habit::default()
    };
    let qemu = FakeQemu::start("running", refuses);
    let failed = cut_of(&qemu, LIMITS, armed);
    assert!(matches!(failed, Err(Error::SettingsKept(_))), "{failed:?}");
    assert_eq!(qemu.capabilities_on(), Vec::<String>::new());
    assert_eq!(qemu.status(), "running");
}

#[test]
fn settings_are_restored_over_another_connection_when_the_first_one_is_lost() {
    let hangs_up = Habit {
        hangs_up: true,
        ..Habit::default()
    };
    let qemu = FakeQemu::start("running", hangs_up);
    cut_of(&qemu, LIMITS, armed).expect("a cut");
    assert_eq!(qemu.capabilities_on(), Vec::<String>::new());
}

#[test]
fn capabilities_that_qemu_refuses_leave_nothing_to_restore() {
    let refuses = Habit {
        refuses_capabilities: true,
        ..Habit::default()
    };
    let qemu = FakeQemu::start("running", refuses);
    let failed = cut_of(&qemu, LIMITS, armed).expect_err("refused");
    assert!(failed.is_passing() && matches!(failed, Error::Qemu(_)), "{failed:?}");
}

#[test]
fn end_of_the_state_counts_only_when_the_guest_is_stopped() {
    let feigns = Habit {
        feigns_end: true,
        ..Habit::default()
    };
    let qemu = FakeQemu::start("running", feigns);
    let arm = || Ok(qemu.status());
    let made = cut_of(&qemu, LIMITS, arm).expect("a cut");
    assert_eq!(made.armed, "finish-migrate");
    assert_eq!(made.device_state, [END, END].concat());
}

#[test]
fn state_that_goes_on_after_its_end_is_not_saved() {
    let goes_on = Habit {
        goes_on: true,
        ..Habit::default()
    };
    let qemu = FakeQemu::start("running", goes_on);
    let failed = cut_of(&qemu, LIMITS, armed);
    assert!(matches!(failed, Err(Error::NotSaved(_))), "{failed:?}");
    assert_eq!(qemu.status(), "running");
}
