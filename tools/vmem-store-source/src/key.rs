// SPDX-License-Identifier: GPL-2.0-or-later
//! Where the key of an encrypted store comes from. A key is never an argument, which every user of the host can read.

use std::path::PathBuf;

use clap::Args;
use vmem_store::{Error, UserKey};

/// The options that name a key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct KeyOptions {
    /// The key of an encrypted store: a file with 64 hexadecimal digits or 32 bytes that its owner alone can access, or - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "key_command")]
    pub key_file: Option<PathBuf>,
    /// The key is what this command for the shell prints; it has 60 seconds
    #[arg(long, value_name = "COMMAND")]
    pub key_command: Option<String>,
}

impl KeyOptions {
    /// The key. `None` if no option was given.
    ///
    /// # Errors
    ///
    /// [`Error::Key`]: the file or the command gives no key.
    pub fn read(&self) -> Result<Option<UserKey>, Error> {
        read(self.key_file.as_ref(), self.key_command.as_ref())
    }

    /// Whether the key comes over standard input.
    #[must_use]
    pub fn is_stdin(&self) -> bool {
        self.key_file.as_ref().is_some_and(|path| path.as_os_str() == "-")
    }
}

/// The options that name a second key.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[group(required = true, multiple = false)]
pub struct NewKeyOptions {
    /// The new key: a file, or - for standard input
    #[arg(long, value_name = "FILE")]
    pub new_key_file: Option<PathBuf>,
    /// The new key is what this command for the shell prints
    #[arg(long, value_name = "COMMAND")]
    pub new_key_command: Option<String>,
}

impl NewKeyOptions {
    /// The key.
    ///
    /// # Errors
    ///
    /// [`Error::Key`]: the file or the command gives no key.
    pub fn read(&self) -> Result<UserKey, Error> {
        let key = read(self.new_key_file.as_ref(), self.new_key_command.as_ref())?;
        key.ok_or_else(|| Error::Key("neither --new-key-file nor --new-key-command".to_owned()))
    }

    /// Whether the key comes over standard input.
    #[must_use]
    pub fn is_stdin(&self) -> bool {
        self.new_key_file.as_ref().is_some_and(|path| path.as_os_str() == "-")
    }
}

fn read(file: Option<&PathBuf>, command: Option<&String>) -> Result<Option<UserKey>, Error> {
    match (file, command) {
        (Some(path), _) if path.as_os_str() == "-" => UserKey::from_reader(std::io::stdin().lock(), "standard input").map(Some),
        (Some(path), _) => UserKey::from_file(path).map(Some),
        (None, Some(command)) => UserKey::from_command("/bin/sh", &["-c".to_owned(), command.clone()]).map(Some),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        key: KeyOptions,
    }

    #[test]
    fn key_is_that_of_the_file_or_of_the_command() {
        let key = UserKey::generate().expect("randomness");
        let read = |words: &[&str]| {
            let line = Line::try_parse_from([&["line"], words].concat()).expect("a command line");
            line.key.read()
        };
        assert!(read(&[]).expect("no key").is_none());
        let command = format!("digits={}; echo $digits", key.to_text().trim_end());
        let found = read(&["--key-command", &command]).expect("a key").expect("a key");
        assert_eq!(*found.to_text(), *key.to_text());
        assert!(read(&["--key-command", "echo secret"]).is_err());
        assert!(read(&["--key-command", "exit 3"]).is_err());
        assert!(read(&["--key-file", "/nonexistent"]).is_err());
        assert!(Line::try_parse_from(["line", "--key-file", "a", "--key-command", "b"]).is_err());
    }
}
