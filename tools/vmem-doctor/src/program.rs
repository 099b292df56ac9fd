// SPDX-License-Identifier: GPL-2.0-or-later
//! A program that is asked for its version, and may not answer.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use vmem_process::Process;

/// How long a program may take to say its version.
const LIMIT: Duration = Duration::from_secs(5);

/// The longest line that is read.
const LINE: usize = 4096;

/// The first line of `PROGRAM --version`, or why there is none.
pub(crate) fn version_of(program: &Path) -> Result<String, String> {
    first_line(Command::new(program).arg("--version"), LIMIT)
}

fn first_line(command: &mut Command, limit: Duration) -> Result<String, String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "not found".to_owned(),
            _ => format!("cannot be run: {error}"),
        })?;
    let has_ended = Process::of_child(&child).is_ok_and(|process| process.wait(limit));
    if !has_ended {
        // It may have ended meanwhile.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if !has_ended {
        return Err(format!("does not answer within {} s", limit.as_secs_f32()));
    }
    if !status.success() {
        return Err(format!("fails when it is asked for its version ({status})"));
    }
    let text = child.stdout.take().map(what_is_there).transpose();
    let text = text.map_err(|error| error.to_string())?.unwrap_or_default();
    let line = text.lines().next().map(str::trim).filter(|line| !line.is_empty());
    line.map(str::to_owned).ok_or_else(|| "does not say its version".to_owned())
}

/// What an ended program has written. Another program may have the pipe open still: its end is not waited for.
fn what_is_there(mut pipe: impl Read + std::os::fd::AsFd) -> io::Result<String> {
    rustix::io::ioctl_fionbio(&pipe, true)?;
    let mut bytes = vec![0; LINE];
    let count = match pipe.read(&mut bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        read => read?,
    };
    bytes.truncate(count);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn answer(script: &str, limit: Duration) -> Result<String, String> {
        first_line(Command::new("sh").args(["-c", script]), limit)
    }

    #[test]
    fn first_line_is_the_version() {
        assert_eq!(answer("echo vmemd 1.2; echo more", LIMIT), Ok("vmemd 1.2".to_owned()));
        assert_eq!(version_of(Path::new("/nowhere/vmemd")), Err("not found".to_owned()));
    }

    #[test]
    fn exit_status_counts() {
        let why = answer("echo vmemd 1.2; exit 3", LIMIT).expect_err("a failure");
        assert!(why.contains("exit status: 3"), "{why}");
        assert_eq!(answer("exit 0", LIMIT), Err("does not say its version".to_owned()));
    }

    #[test]
    fn program_that_hangs_does_not_answer() {
        let start = Instant::now();
        let why = answer("echo vmemd 1.2; exec sleep 60", Duration::from_millis(300));
        assert_eq!(why, Err("does not answer within 0.3 s".to_owned()));
        // A child of the program has the pipe open when the program has ended.
        assert_eq!(answer("echo vmemd 1.2; sleep 60 &", LIMIT), Ok("vmemd 1.2".to_owned()));
        assert_eq!(answer("sleep 5 &", LIMIT), Err("does not say its version".to_owned()));
        assert!(start.elapsed() < Duration::from_secs(4));
    }
}
