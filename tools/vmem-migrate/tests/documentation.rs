// SPDX-License-Identifier: GPL-2.0-or-later
//! `Documentation/migration.rst` has the tables. `VMEM_WRITE=1` in the environment of this test writes them there.

use std::fmt::Debug;
use std::fs;
use std::path::Path;

use vmem_migrate::destination::{self, Destination};
use vmem_migrate::source::{self, Source};
use vmem_migrate::{Machine, Phase};

/// A simple table of reStructuredText.
fn simple_table(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let width = |column: usize| {
        let cells = rows.iter().chain([&head]).map(|row| row[column].len());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let cells = cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join(" ").trim_end())
    };
    let rule = line(&widths.iter().map(|&width| "=".repeat(width)).collect::<Vec<_>>());
    let body: String = rows.iter().map(|row| line(row)).collect();
    format!("{rule}{}{rule}{body}{rule}", line(&head))
}

fn list(of: &[impl Debug]) -> String {
    match of {
        [] => "\\-".to_owned(),
        of => of.iter().map(|one| format!("{one:?}")).collect::<Vec<_>>().join(", "),
    }
}

fn machine<M: Machine>() -> String {
    let rows: Vec<_> = M::TABLE
        .iter()
        .map(|row| {
            vec![
                format!("{:?}", row.state),
                list(row.events),
                format!("{:?}", row.next),
                list(row.actions),
            ]
        })
        .collect();
    simple_table(&["State", "Event", "Next state", "Actions"], &rows)
}

const PHASES: [Phase; 6] = [
    Phase::Prepared,
    Phase::Committed,
    Phase::Starting,
    Phase::Running,
    Phase::Complete,
    Phase::Failed,
];

fn lower(phase: Phase) -> String {
    format!("``{}``", format!("{phase:?}").to_lowercase())
}

/// What `recover` does.
fn source_resumes() -> String {
    let recorded = [Phase::Prepared, Phase::Committed, Phase::Running, Phase::Complete];
    let rows: Vec<_> = recorded
        .into_iter()
        .map(|phase| {
            let (state, actions) = source::resume(phase);
            vec![lower(phase), format!("{state:?}"), list(actions)]
        })
        .collect();
    simple_table(&["Recorded", "State", "Actions"], &rows)
}

/// What `receive --resume` does.
fn destination_resumes() -> String {
    let rows: Vec<_> = PHASES
        .into_iter()
        .flat_map(|phase| [true, false].map(|lives| (phase, lives)))
        .map(|(phase, lives)| {
            let (state, actions) = destination::resume(phase, lives);
            let qemu = if lives { "lives" } else { "is gone" };
            vec![lower(phase), qemu.to_owned(), format!("{state:?}"), list(actions)]
        })
        .collect();
    simple_table(&["Recorded", "QEMU", "State", "Actions"], &rows)
}

#[test]
fn documentation_has_the_tables() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Documentation/migration.rst");
    let text = fs::read_to_string(&path).expect("the documentation");
    let mut wanted = text.clone();
    for (name, table) in [
        ("source", machine::<Source>()),
        ("source resume", source_resumes()),
        ("destination", machine::<Destination>()),
        ("destination resume", destination_resumes()),
    ] {
        let (begin, end) = (format!(".. begin table {name}\n"), format!(".. end table {name}\n"));
        let from = wanted.find(&begin).expect("the beginning of a table") + begin.len();
        let to = wanted.find(&end).expect("the end of a table");
        wanted.replace_range(from..to, &format!("\n{table}\n"));
    }
    if std::env::var_os("VMEM_WRITE").is_some() {
        fs::write(&path, wanted).expect("the documentation");
    } else {
        assert!(text == wanted, "the tables are others: VMEM_WRITE=1 writes them");
    }
}

/// Every state but the first is some row's next one, or what a resumed process begins with.
fn unreached<M: Machine>(begins: &[M::State]) -> Vec<M::State> {
    let reached = |state: M::State| begins.contains(&state) || M::TABLE.iter().any(|row| row.next == state);
    M::TABLE
        .iter()
        .map(|row| row.state)
        .filter(|&state| !reached(state))
        .collect()
}

#[test]
fn every_state_is_reached_and_no_event_has_two_rows() {
    let begins: Vec<_> = PHASES
        .iter()
        .map(|&phase| source::resume(phase).0)
        .chain([source::State::Offering])
        .collect();
    assert_eq!(unreached::<Source>(&begins), []);
    let resumed = PHASES
        .iter()
        .flat_map(|&phase| [true, false].map(|lives| destination::resume(phase, lives).0));
    let begins: Vec<_> = resumed.chain([destination::State::Prepared]).collect();
    assert_eq!(unreached::<Destination>(&begins), []);
    assert_eq!(twice::<Source>(), []);
    assert_eq!(twice::<Destination>(), []);
}

/// Events that a state has two rows for.
fn twice<M: Machine>() -> Vec<(M::State, M::Event)> {
    let all: Vec<_> = M::TABLE
        .iter()
        .flat_map(|row| row.events.iter().map(|&event| (row.state, event)))
        .collect();
    let count = |pair: &(M::State, M::Event)| all.iter().filter(|other| *other == pair).count();
    all.iter().copied().filter(|pair| count(pair) > 1).collect()
}
