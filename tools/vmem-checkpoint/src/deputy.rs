// SPDX-License-Identifier: GPL-2.0-or-later
//! A second process that acts if this one is killed: it waits at a pipe for the death of this one.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use crate::error::Error;

/// What a deputy is told when there is nothing to do.
pub(crate) const DONE: u8 = b'.';

/// A process that acts if this one ends, or drops this value, without saying that there is nothing to do.
#[derive(Debug)]
pub(crate) struct Deputy(Child);

impl Deputy {
    /// Starts a command that calls [`is_needed`] with its standard input. Without a command, there is no deputy.
    pub(crate) fn start(command: &[OsString]) -> Result<Option<Self>, Error> {
        let [program, arguments @ ..] = command else { return Ok(None) };
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // A signal of the terminal is for this process.
            .process_group(0)
            .spawn()
            .map_err(vmem_cli::Error::call(
                "cannot start the process that acts if this one is killed",
            ))?;
        Ok(Some(Self(child)))
    }

    /// There is nothing to do.
    pub(crate) fn dismiss(mut self) {
        if let Some(mut pipe) = self.0.stdin.take() {
            // It may have been killed.
            let _ = pipe.write_all(&[DONE]);
        }
        let _ = self.0.wait();
    }
}

/// In a deputy: waits until the process at the other end of `pipe` has ended or says that there is nothing to do. Returns whether there is.
pub(crate) fn is_needed(pipe: &mut dyn Read) -> bool {
    let mut said = [0];
    loop {
        match pipe.read(&mut said) {
            Ok(1..) if said == [DONE] => return false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => return true,
        }
    }
}
