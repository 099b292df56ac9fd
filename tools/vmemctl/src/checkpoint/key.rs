// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl checkpoint key`: makes keys, and says which ones open an encrypted store.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use vmem_checkpoint::Error;
use vmem_cli::output;
use vmem_migrate::report;
use vmem_store::{Store, UserKey};
use vmem_store_source::NewKeyOptions;

use super::in_store::InStore;
use super::line::CheckpointLine;

#[derive(Debug, Args)]
pub(crate) struct Key {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key of 32 random bytes, in a new file that its owner alone can access
    Generate {
        /// The file, which must not exist
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// List the keys that open a store
    List {
        #[command(flatten)]
        store: InStore,
    },
    /// Add a key that opens the store, too
    Add {
        #[command(flatten)]
        store: InStore,
        #[command(flatten)]
        new: NewKeyOptions,
    },
    /// Replace the key by another one
    Rotate {
        #[command(flatten)]
        store: InStore,
        #[command(flatten)]
        new: NewKeyOptions,
        /// Encrypt what is written from now on with a new key of the store, too
        #[arg(long)]
        new_generation: bool,
    },
    /// Remove the key, or another one by its ID
    Remove {
        #[command(flatten)]
        store: InStore,
        /// The ID that key list shows; the key that was given unless an ID is
        #[arg(value_name = "ID")]
        id: Option<String>,
    },
}

pub(super) fn run(args: &Key, json: bool) -> Result<(), Error> {
    match &args.command {
        Command::Generate { file } => generate(file)?,
        Command::List { store } => {
            let (store, key) = open(store)?;
            for (id, given) in store.keys(&key)? {
                if json {
                    report::print(&CheckpointLine::Key { id: &id, given });
                } else {
                    output::out(&format!("{id}{}", if given { "  the key that was given" } else { "" }));
                }
            }
        }
        Command::Add { store, new } => {
            check_stdin(store, new)?;
            open(store)?.0.add_key(&new.read()?)?;
        }
        Command::Rotate {
            store,
            new,
            new_generation,
        } => {
            check_stdin(store, new)?;
            let (store, key) = open(store)?;
            store.rotate_key(&key, &new.read()?, *new_generation)?;
        }
        Command::Remove { store, id } => {
            let (store, key) = open(store)?;
            match id {
                Some(id) => store.remove_key_with_id(&key, id)?,
                None => store.remove_key(&key)?,
            }
        }
    }
    Ok(())
}

/// The store, and the key that opens it.
fn open(place: &InStore) -> Result<(Store, UserKey), Error> {
    let key = place.key.read()?;
    let store = place.store.open(key.clone())?;
    Ok((store, key.ok_or(vmem_store::Error::NotEncrypted)?))
}

fn check_stdin(store: &InStore, new: &NewKeyOptions) -> Result<(), Error> {
    if store.key.is_stdin() && new.is_stdin() {
        return Err(vmem_cli::Error::other("only one key can come over standard input").into());
    }
    Ok(())
}

fn generate(path: &Path) -> Result<(), Error> {
    let key = UserKey::generate()?;
    let written = || {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(key.to_text().as_bytes())?;
        file.sync_all()
    };
    Ok(written().map_err(vmem_cli::Error::call(format!("cannot write {}", path.display())))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_key_is_a_new_file_of_its_owner() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        generate(&path).expect("a key");
        let key = UserKey::from_file(&path).expect("a key");
        assert!(generate(&path).is_err(), "a key that exists may open a store");
        assert_eq!(*UserKey::from_file(&path).expect("a key").to_text(), *key.to_text());
    }
}
