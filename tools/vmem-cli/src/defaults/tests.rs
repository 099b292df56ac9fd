// SPDX-License-Identifier: GPL-2.0-or-later
//! Defaults that a file has, on the command line of a program like vmemctl.

use std::fs::{Permissions, set_permissions, write};
use std::os::unix::fs::PermissionsExt;

use clap::{Args, Parser, Subcommand};

use super::*;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Commands,
    #[arg(long, global = true, conflicts_with = "clear")]
    tls: Option<PathBuf>,
    #[arg(long, global = true)]
    clear: bool,
    #[arg(long, global = true, requires = "tls")]
    allow: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Commands {
    Migrate(Migrate),
    Checkpoint {
        #[command(subcommand)]
        command: Checkpoint,
    },
}

#[derive(Debug, Args)]
struct Migrate {
    #[arg(long)]
    to: String,
    #[arg(long, default_value = "4")]
    streams: u8,
    #[arg(long)]
    verify: bool,
    #[arg(last = true)]
    rest: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Checkpoint {
    Create {
        #[arg(long)]
        store: String,
    },
    #[command(hide = true)]
    Thaw {
        #[arg(long)]
        agent: String,
    },
}

fn defaults(text: &str) -> Defaults {
    Defaults {
        path: PathBuf::from("/etc/test.toml"),
        table: toml::from_str(text).expect("TOML"),
    }
}

/// Parses this command line with these defaults.
fn cli(text: &str, line: &str) -> Result<Cli, String> {
    let defaults = defaults(text);
    let line = line.split(' ').map(OsString::from).collect();
    let line = Line::new(Cli::command(), line, &defaults).map_err(|error| chain(&error))?;
    crate::parse_from(Cli::command(), line.arguments).map_err(|error| match defaults.blame(&error) {
        Some(blamed) => chain(&blamed),
        None => error.to_string(),
    })
}

fn migrate(text: &str, line: &str) -> Migrate {
    match cli(text, line).expect("it is valid").command {
        Commands::Migrate(migrate) => migrate,
        other => panic!("{other:?}"),
    }
}

#[test]
fn command_line_has_precedence_over_file_and_file_over_program() {
    assert_eq!(migrate("", "x migrate --to a").streams, 4);
    let file = "[migrate]\nstreams = 7\nverify = true\nto = 'b'";
    let found = migrate(file, "x migrate");
    assert_eq!((found.to.as_str(), found.streams, found.verify), ("b", 7, true));
    let found = migrate(file, "x migrate --to c --streams 2");
    assert_eq!((found.to.as_str(), found.streams), ("c", 2));
}

#[test]
fn options_of_all_commands_come_before_the_tables() {
    let file = "tls = '/etc/tls'\nallow = ['a', 'b']\n[checkpoint.create]\nstore = '/srv'";
    for line in ["x checkpoint create", "x migrate --to a"] {
        let found = cli(file, line).expect("it is valid");
        assert_eq!(found.tls.as_deref(), Some(Path::new("/etc/tls")));
        assert_eq!(found.allow, ["a", "b"]);
    }
    let found = cli(file, "x --allow c --tls /tls checkpoint create").expect("it is valid");
    assert_eq!((found.allow, found.tls), (vec!["c".to_owned()], Some(PathBuf::from("/tls"))));
    let Commands::Checkpoint { command } = found.command else {
        panic!()
    };
    let Checkpoint::Create { store } = command else { panic!() };
    assert_eq!(store, "/srv");
}

#[test]
fn what_the_command_line_excludes_is_not_added() {
    for line in ["x --clear migrate --to a", "x migrate --to a --clear"] {
        let found = cli("tls = '/etc/tls'", line).expect("it is valid");
        assert_eq!((found.clear, found.tls), (true, None));
    }
    let found = cli("clear = true", "x migrate --to a --tls b").expect("it is valid");
    assert!(!found.clear);
}

#[test]
fn what_the_command_line_needs_may_be_in_the_file() {
    let found = cli("tls = '/etc/tls'", "x migrate --to a --allow b").expect("it is valid");
    assert_eq!(found.allow, ["b"]);
    assert!(cli("", "x migrate --to a --allow b").is_err());
}

#[test]
fn arguments_after_two_dashes_stay_the_last() {
    let found = migrate("[migrate]\nverify = true", "x migrate --to a -- --to --verify");
    assert!(found.verify);
    assert_eq!(found.rest, ["--to", "--verify"]);
}

#[test]
fn help_is_shown_and_a_wrong_line_is_wrong() {
    assert!(cli("tls = 'a'", "x --help").expect_err("help").contains("Usage: x"));
    assert!(cli("tls = 'a'", "x migrat").expect_err("no command").contains("'migrat'"));
    assert!(
        cli("[migrate]\nverify = false", "x migrate")
            .expect_err("no --to")
            .contains("--to <TO>")
    );
}

#[test]
fn what_the_program_does_not_know_is_named() {
    for (text, error) in [
        ("stream = 7", "/etc/test.toml: stream: there is no such option"),
        (
            "[migrate]\nstream = 7",
            "/etc/test.toml: stream in [migrate]: there is no such option",
        ),
        ("[migrat]\nstreams = 7", "/etc/test.toml: [migrat]: there is no such command"),
        (
            "[checkpoint.make]\na = 1",
            "/etc/test.toml: [checkpoint.make]: there is no such command",
        ),
        (
            "[migrate]\nverify = 'yes'",
            "/etc/test.toml: verify in [migrate]: it is true or false",
        ),
        (
            "[migrate]\nstreams = [1, 2]",
            "/etc/test.toml: streams in [migrate]: it has one value",
        ),
        (
            "[migrate]\nstreams = true",
            "/etc/test.toml: streams in [migrate]: it has a value",
        ),
        ("allow = [['a']]", "/etc/test.toml: allow: no option has a value of this kind"),
        ("tls = 1979-05-27", "/etc/test.toml: tls: no option has a value of this kind"),
        ("help = true", "/etc/test.toml: help: this option belongs on the command line"),
    ] {
        assert_eq!(cli(text, "x migrate --to a").expect_err(text), error);
    }
}

#[test]
fn invalid_value_is_that_of_the_file_only_if_it_has_it() {
    let file = "[migrate]\nstreams = 700";
    let error = cli(file, "x migrate --to a").expect_err("no u8");
    assert_eq!(
        error,
        "/etc/test.toml: streams in [migrate]: invalid value \"700\": 700 is not in 0..=255"
    );
    let error = cli(file, "x migrate --to a --streams 800").expect_err("no u8");
    assert!(
        error.contains("'--streams <STREAMS>'") && !error.contains("test.toml"),
        "{error}"
    );
    // Another command is not kept from its work.
    assert!(cli(file, "x checkpoint create --store a").is_ok());
}

#[test]
fn only_hidden_commands_read_no_file() {
    let is_hidden = |line: &str| is_hidden(Cli::command(), &line.split(' ').map(OsString::from).collect::<Vec<_>>());
    assert!(is_hidden("x checkpoint thaw --agent a"));
    for line in ["x checkpoint create --store a", "x migrate", "x", "x --help", "x thaw"] {
        assert!(!is_hidden(line), "{line}");
    }
}

#[test]
fn files_that_others_can_write_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("vmem.toml");
    let find = |named: &str| Defaults::find((!named.is_empty()).then(|| named.into()), &path);
    assert!(find("").expect("it need not be there").is_none());
    assert!(matches!(find("/nowhere"), Err(DefaultsError::Read(..))));
    write(&path, "tls = 'a'").expect("a file");
    for (mode, is_read) in [(0o600, true), (0o644, true), (0o664, false), (0o646, false)] {
        set_permissions(&path, Permissions::from_mode(mode)).expect("a mode");
        match find("") {
            Ok(Some(found)) => assert!(is_read && found.table.contains_key("tls"), "{mode:o}"),
            Err(DefaultsError::Unsafe(..)) => assert!(!is_read, "{mode:o}"),
            other => panic!("{:?}", other.err()),
        }
    }
    assert!(find("none").expect("no file").is_none());
    set_permissions(&path, Permissions::from_mode(0o600)).expect("a mode");
    write(&path, "tls = ").expect("a file");
    assert!(matches!(find(""), Err(DefaultsError::Syntax(..))));
    write(&path, " ".repeat(MAX_SIZE as usize + 1)).expect("a file");
    assert!(matches!(find(""), Err(DefaultsError::TooLong(..))));
}
