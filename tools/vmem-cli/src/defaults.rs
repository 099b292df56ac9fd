// SPDX-License-Identifier: GPL-2.0-or-later
//! The defaults of options, from a file in TOML.
//!
//! A key of the file is an option without its dashes, and a table is a command: `bandwidth = "1G"` in `[migrate]`, or `store = "/srv/vmem"` in
//! `[checkpoint.create]`. Keys before the first table are options of all commands. The command line has precedence.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind as IoErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};
use toml::{Table, Value};

use crate::{chain, print};

/// The most that a file of defaults may have, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// Why the defaults cannot be used.
#[derive(Debug, thiserror::Error)]
enum DefaultsError {
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] std::io::Error),
    #[error("{0} has more than {MAX_SIZE} bytes")]
    TooLong(PathBuf),
    #[error("{0} is not used: others than its owner may write to it, or it belongs neither to root nor to this user")]
    Unsafe(PathBuf),
    #[error("{0} is no valid TOML")]
    Syntax(PathBuf, #[source] toml::de::Error),
    #[error("{path}: {at}: {why}")]
    Key { path: PathBuf, at: String, why: String },
}

/// Parses the command line of this program. What the file that the environment variable `variable` names says, or else `path`, which need not
/// exist, is added to the command line, unless that has the option, or one that excludes it. The value `none` of the variable stands for no file.
///
/// # Errors
///
/// As [`parse`](crate::parse). What is wrong with the file is printed, too, and the code is `usage`. Commands that are hidden are given by
/// programs, and do not read the file.
pub fn parse_with_defaults<C: CommandFactory + FromArgMatches>(variable: &str, path: &Path, usage: u8) -> Result<C, ExitCode> {
    let failed = |error: &DefaultsError| {
        eprintln!("error: {}\n\n{variable}=none has the file ignored.", chain(error));
        ExitCode::from(usage)
    };
    let arguments: Vec<_> = std::env::args_os().collect();
    let defaults = match Defaults::find(std::env::var_os(variable), path) {
        Ok(None) => None,
        _ if is_hidden(C::command(), &arguments) => None,
        found => found.map_err(|error| failed(&error))?,
    };
    let Some(defaults) = defaults else {
        return crate::parse_from(C::command(), arguments).map_err(|error| print(&error, usage));
    };
    let line = Line::new(C::command(), arguments, &defaults).map_err(|error| failed(&error))?;
    crate::parse_from(C::command(), line.arguments).map_err(|error| match defaults.blame(&error) {
        Some(error) => failed(&error),
        None => {
            let code = print(&error, usage);
            if code != ExitCode::SUCCESS && !line.added.is_empty() {
                eprintln!(
                    "\n{} adds {}; {variable}=none has it ignored.",
                    defaults.path.display(),
                    line.added.join(", ")
                );
            }
            code
        }
    })
}

/// What is on the command line, whatever is wrong with it. `None` for help and the version.
fn matches_of(command: &Command, arguments: &[OsString]) -> Option<ArgMatches> {
    // The setting is inherited when the command is built.
    command.clone().ignore_errors(true).try_get_matches_from(arguments).ok()
}

/// The commands on the command line with their names and what is given for each, the program's own first.
fn given<'a>(command: &'a Command, matches: &'a ArgMatches) -> Vec<(&'a str, &'a Command, &'a ArgMatches)> {
    let first = Some(("", command, matches));
    let next = |(_, command, matches): &(&'a str, &'a Command, &'a ArgMatches)| {
        let (name, inner) = matches.subcommand()?;
        Some((name, command.find_subcommand(name)?, inner))
    };
    std::iter::successors(first, next).collect()
}

/// Whether the command line has a hidden command.
fn is_hidden(command: Command, arguments: &[OsString]) -> bool {
    let matches = matches_of(&command, arguments);
    matches.is_some_and(|matches| {
        given(&command, &matches)
            .last()
            .is_some_and(|(_, last, _)| last.is_hide_set())
    })
}

/// A command line with what a file adds.
struct Line {
    arguments: Vec<OsString>,
    /// The added options.
    added: Vec<String>,
}

impl Line {
    fn new(mut command: Command, mut arguments: Vec<OsString>, defaults: &Defaults) -> Result<Self, DefaultsError> {
        let matches = matches_of(&command, &arguments);
        command.build();
        check(&command, &defaults.table, "").map_err(|(at, why)| defaults.error(at, why))?;
        let mut added = Vec::new();
        let mut table = Some(&defaults.table);
        // What is wrong with the command line is found later.
        for (name, command, given) in matches.iter().flat_map(|matches| given(&command, matches)) {
            if !name.is_empty() {
                table = table.and_then(|outer| outer.get(name)?.as_table());
            }
            for (name, value) in table.into_iter().flatten().filter(|(_, value)| !value.is_table()) {
                if let Some(option) = option_of(command, name).filter(|option| !is_excluded(command, option, given)) {
                    added.extend(as_arguments(option, name, value));
                }
            }
        }
        let at = arguments
            .iter()
            .position(|argument| argument == "--")
            .unwrap_or(arguments.len());
        arguments.splice(at..at, added.iter().map(OsString::from));
        Ok(Self { arguments, added })
    }
}

fn option_of<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| arg.get_long() == Some(name))
}

/// Whether the command line has this option, or one that excludes it.
fn is_excluded(command: &Command, option: &Arg, given: &ArgMatches) -> bool {
    let is_given = |arg: &Arg| given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    let excludes = |one: &Arg, other: &Arg| {
        command
            .get_arg_conflicts_with(one)
            .iter()
            .any(|arg| arg.get_id() == other.get_id())
    };
    command
        .get_arguments()
        .filter(|arg| is_given(arg))
        .any(|arg| arg.get_id() == option.get_id() || excludes(arg, option) || excludes(option, arg))
}

/// What a file says.
struct Defaults {
    path: PathBuf,
    table: Table,
}

impl Defaults {
    /// Reads the file that `named` says, or else `usual` if it is there.
    fn find(named: Option<OsString>, usual: &Path) -> Result<Option<Self>, DefaultsError> {
        match named {
            Some(name) if name == "none" => Ok(None),
            Some(name) => Self::read(Path::new(&name)).map(Some),
            None => match Self::read(usual) {
                Err(DefaultsError::Read(_, error)) if error.kind() == IoErrorKind::NotFound => Ok(None),
                read => read.map(Some),
            },
        }
    }

    fn read(path: &Path) -> Result<Self, DefaultsError> {
        let failed = |error| DefaultsError::Read(path.to_owned(), error);
        let file = File::open(path).map_err(failed)?;
        let about = file.metadata().map_err(failed)?;
        // An option can be a command that is executed.
        let user = rustix::process::geteuid().as_raw();
        if ![0, user].contains(&about.uid()) || about.mode() & 0o022 != 0 {
            return Err(DefaultsError::Unsafe(path.to_owned()));
        }
        let mut text = String::new();
        file.take(MAX_SIZE + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > MAX_SIZE {
            return Err(DefaultsError::TooLong(path.to_owned()));
        }
        let table = toml::from_str(&text).map_err(|error| DefaultsError::Syntax(path.to_owned(), error))?;
        Ok(Self {
            path: path.to_owned(),
            table,
        })
    }

    /// What is wrong with the file, if this error of the command line is about a value that the file has.
    fn blame(&self, error: &clap::Error) -> Option<DefaultsError> {
        if !matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation) {
            return None;
        }
        let text = |kind| error.get(kind).map(ToString::to_string);
        let (option, value) = (text(ContextKind::InvalidArg)?, text(ContextKind::InvalidValue)?);
        let long = option.trim_start_matches('-').split([' ', '=']).next()?.to_owned();
        // If the command line has the same value, it is as wrong there.
        let at = place(&self.table, "", &long, &value)?;
        let why = std::error::Error::source(error).map(|cause| format!(": {cause}"));
        Some(self.error(at, format!("invalid value \"{value}\"{}", why.unwrap_or_default())))
    }

    fn error(&self, at: String, why: String) -> DefaultsError {
        DefaultsError::Key {
            path: self.path.clone(),
            at,
            why,
        }
    }
}

/// The key `name` of the table `table` in the words of the file.
fn key(table: &str, name: &str) -> String {
    match table {
        "" => name.to_owned(),
        table => format!("{name} in [{table}]"),
    }
}

/// Where the file gives this option this value.
fn place(table: &Table, name: &str, option: &str, value: &str) -> Option<String> {
    table.iter().find_map(|(entry, found)| match found {
        Value::Table(inner) => place(inner, &below(name, entry), option, value),
        found if entry == option => {
            let is = texts(found).is_ok_and(|texts| texts.iter().any(|text| text == value));
            is.then(|| key(name, entry))
        }
        _ => None,
    })
}

fn below(table: &str, name: &str) -> String {
    match table {
        "" => name.to_owned(),
        table => format!("{table}.{name}"),
    }
}

/// Fails unless the command has all options and commands of `table`, which has the name `name`. An error says where it is, and what.
fn check(command: &Command, table: &Table, name: &str) -> Result<(), (String, String)> {
    for (entry, value) in table {
        if let Value::Table(inner) = value {
            let inner_name = below(name, entry);
            let subcommand = command.find_subcommand(entry);
            let subcommand = subcommand.ok_or_else(|| (format!("[{inner_name}]"), "there is no such command".to_owned()))?;
            check(subcommand, inner, &inner_name)?;
        } else {
            let failed = |why: &str| (key(name, entry), why.to_owned());
            let option = option_of(command, entry).ok_or_else(|| failed("there is no such option"))?;
            // Added options come last on the command line, which is the place of the last command's.
            if command.has_subcommands() && !option.is_global_set() {
                return Err(failed("this option belongs on the command line"));
            }
            check_kind(option, value).map_err(failed)?;
        }
    }
    Ok(())
}

/// Fails unless the option can have a value of this kind.
fn check_kind(option: &Arg, value: &Value) -> Result<(), &'static str> {
    match (option.get_action(), value) {
        (ArgAction::SetTrue, Value::Boolean(_)) => Ok(()),
        (ArgAction::SetTrue, _) => Err("it is true or false"),
        (ArgAction::Append, Value::Array(_)) => texts(value).map(drop),
        (ArgAction::Set, Value::Array(_)) => Err("it has one value"),
        (ArgAction::Set | ArgAction::Append, Value::Boolean(_)) => Err("it has a value"),
        (ArgAction::Set | ArgAction::Append, value) => texts(value).map(drop),
        _ => Err("this option belongs on the command line"),
    }
}

/// The option with its values.
fn as_arguments(option: &Arg, name: &str, value: &Value) -> Vec<String> {
    match value {
        Value::Boolean(is) if matches!(option.get_action(), ArgAction::SetTrue) => {
            is.then(|| format!("--{name}")).into_iter().collect()
        }
        value => texts(value)
            .unwrap_or_default()
            .iter()
            .map(|text| format!("--{name}={text}"))
            .collect(),
    }
}

/// The value as it would be on the command line.
fn texts(value: &Value) -> Result<Vec<String>, &'static str> {
    match value {
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Integer(number) => Ok(vec![number.to_string()]),
        Value::Float(number) => Ok(vec![number.to_string()]),
        Value::Boolean(is) => Ok(vec![is.to_string()]),
        Value::Array(values) => values.iter().map(one_text).collect(),
        Value::Datetime(_) | Value::Table(_) => Err("no option has a value of this kind"),
    }
}

fn one_text(value: &Value) -> Result<String, &'static str> {
    match value {
        Value::Array(_) => Err("no option has a value of this kind"),
        value => Ok(texts(value)?.concat()),
    }
}

#[cfg(test)]
mod tests;
