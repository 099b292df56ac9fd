// SPDX-License-Identifier: GPL-2.0-or-later
//! The TCP service. A line is a word of the client's, which comes back with a number that grows by one each time; or an order.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::disk::Disk;
use crate::log_file::LogFile;
use crate::report::{self, Report};
use crate::ticker::Ticker;
use crate::traffic::Traffic;
use crate::victim::Victim;
use crate::worker::{Work, Worker};

/// The port.
const PORT: u16 = 7;

/// A service whose port is open.
pub(crate) struct Service {
    listener: TcpListener,
    guest: Arc<Guest>,
}

struct Guest {
    worker: Arc<Worker>,
    ticker: Arc<Ticker>,
    answers: AtomicU64,
    victim: Mutex<Option<Victim>>,
    traffic: Mutex<Option<Traffic>>,
    disk: Mutex<Option<Disk>>,
    log_file: Mutex<Option<LogFile>>,
}

/// Opens the port.
pub(crate) fn listen(worker: Arc<Worker>, ticker: Arc<Ticker>) -> std::io::Result<Service> {
    Ok(Service {
        listener: TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?,
        guest: Arc::new(Guest {
            worker,
            ticker,
            answers: AtomicU64::new(0),
            victim: Mutex::default(),
            traffic: Mutex::default(),
            disk: Mutex::default(),
            log_file: Mutex::default(),
        }),
    })
}

impl Service {
    /// Serves, without an end.
    pub(crate) fn run(&self) -> std::io::Result<()> {
        for connection in self.listener.incoming() {
            let (connection, guest) = (connection?, self.guest.clone());
            // A client may go as it likes.
            thread::spawn(move || guest.talk(connection));
        }
        Ok(())
    }
}

/// Keeps what was started, and answers how that went.
fn keep<T>(started: std::io::Result<T>, place: &Mutex<Option<T>>, lost: &str) -> String {
    match (started, place.lock()) {
        (Ok(started), Ok(mut place)) => {
            *place = Some(started);
            "ok".to_owned()
        }
        (Err(error), _) => error.to_string(),
        (_, Err(_)) => lost.to_owned(),
    }
}

impl Guest {
    fn talk(&self, mut connection: TcpStream) -> std::io::Result<()> {
        connection.set_nodelay(true)?;
        for line in BufReader::new(connection.try_clone()?).lines() {
            let answer = self.answer(&line?) + "\n";
            connection.write_all(answer.as_bytes())?;
        }
        Ok(())
    }

    fn victim(&self, anew: bool, order: &str) -> String {
        let Ok(mut victim) = self.victim.lock() else {
            return "the victim is lost".to_owned();
        };
        let answer = (|| {
            if anew {
                *victim = Some(Victim::start()?);
            }
            victim.as_mut().ok_or(std::io::ErrorKind::NotFound)?.ask(order)
        })();
        answer.unwrap_or_else(|error: std::io::Error| error.to_string())
    }

    /// Starts to send datagrams to `to`.
    fn traffic(&self, to: &str) -> String {
        let to = to.parse().map_err(|_| std::io::ErrorKind::InvalidInput.into());
        keep(to.and_then(Traffic::start), &self.traffic, "the traffic is lost")
    }

    /// Ends the traffic; answers how many datagrams of others have come.
    fn quiet(&self) -> String {
        let traffic = self.traffic.lock().ok().and_then(|mut traffic| traffic.take());
        traffic.map_or(0, |traffic| traffic.received()).to_string()
    }

    /// Starts to read the disk.
    fn start_disk(&self) -> String {
        keep(Disk::start(), &self.disk, "the disk is lost")
    }

    /// What has been read of the disk.
    fn check_disk(&self) -> String {
        let verdict = self.disk.lock().ok().and_then(|disk| disk.as_ref()?.check());
        verdict.map_or_else(|| "no disk is read".to_owned(), |verdict| report::line(&verdict))
    }

    /// Starts to write the file.
    fn start_log(&self) -> String {
        keep(LogFile::start(), &self.log_file, "the file is lost")
    }

    /// What has been written to the file.
    fn check_log(&self) -> String {
        let written = self
            .log_file
            .lock()
            .ok()
            .and_then(|log_file| Some(log_file.as_ref()?.written()));
        written.map_or_else(|| "no file is written".to_owned(), |written| report::line(&written))
    }

    fn answer(&self, line: &str) -> String {
        let ok = "ok".to_owned();
        match line.split_once(' ').unwrap_or((line, "")) {
            ("idle", _) => {
                self.worker.work(Work::Idle);
                ok
            }
            // 0: as fast as it can.
            ("write", rate) => {
                let rate = rate.parse().ok().filter(|rate| *rate != 0);
                self.worker.work(Work::Write(rate));
                ok
            }
            ("mark", _) => {
                self.worker.mark();
                self.ticker.mark();
                ok
            }
            ("report", _) => report::line(&Report::new(&self.worker, &self.ticker)),
            ("samples", _) => report::line(&self.ticker.samples()),
            // A new one; the last one, if it lives, ends with its pipes.
            ("victim", _) => self.victim(true, "frames"),
            ("touch", _) => self.victim(false, line),
            ("traffic", to) => self.traffic(to),
            ("quiet", _) => self.quiet(),
            ("disk", _) => self.start_disk(),
            ("check-disk", _) => self.check_disk(),
            ("log", _) => self.start_log(),
            ("check-log", _) => self.check_log(),
            // Seconds since 1970, by the clock that programs see.
            ("time", _) => report::line(&SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()),
            ("verify", _) => report::line(&self.worker.verify()),
            _ => format!("{line} {}", self.answers.fetch_add(1, Ordering::Relaxed)),
        }
    }
}
