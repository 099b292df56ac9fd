// SPDX-License-Identifier: GPL-2.0-or-later
//! A file on a file system that can be frozen: it is written all the time, and each write shows whether it was held.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde::Serialize;

use crate::clock;

/// Where the file system is that `init` makes for the guest agent.
const DIRECTORY: &str = "/frozen";
/// From the end of one write to the next one: the machine has other work.
const INTERVAL: Duration = Duration::from_millis(10);

/// A file that is written from now on, as long as the machine runs.
pub(crate) struct LogFile {
    state: Arc<Mutex<State>>,
}

/// How far it is. The guest's own clock.
struct State {
    writes: u64,
    began: Duration,
    error: Option<String>,
}

/// What has been written.
#[derive(Serialize)]
pub(crate) struct Written {
    /// Writes that have ended.
    writes: u64,
    /// Seconds since the last one ended.
    held: f64,
    /// Why no more is written.
    error: Option<String>,
}

impl LogFile {
    /// Begins.
    pub(crate) fn start() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts")?;
        let place = format!(" {DIRECTORY} ");
        if !mounts.contains(&place) {
            return Err(io::Error::other(format!("nothing is mounted at {DIRECTORY}")));
        }
        let file = File::create(format!("{DIRECTORY}/log"))?;
        let log = Self {
            state: Arc::new(Mutex::new(State {
                writes: 0,
                began: clock::own(),
                error: None,
            })),
        };
        let state = Arc::clone(&log.state);
        thread::spawn(move || {
            for number in 0_u64.. {
                let written = file.write_all_at(&number.to_le_bytes(), 0).and_then(|()| file.sync_data());
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = written {
                    state.error = Some(error.to_string());
                    return;
                }
                state.writes += 1;
                state.began = clock::own();
                drop(state);
                thread::sleep(INTERVAL);
            }
        });
        Ok(log)
    }

    pub(crate) fn written(&self) -> Written {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Written {
            writes: state.writes,
            held: clock::own().saturating_sub(state.began).as_secs_f64(),
            error: state.error.clone(),
        }
    }
}
