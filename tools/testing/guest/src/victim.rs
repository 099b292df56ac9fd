// SPDX-License-Identifier: GPL-2.0-or-later
//! A process of its own with a few pages, which tells where in the machine's memory they are, and touches one when it is told to. The
//! page may be lost: then the process dies, and who has started it sees of what.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::page::Page;

/// The argument with which this program is such a process.
pub(crate) const ARGUMENT: &str = "victim";

/// Pages that it has.
const PAGES: usize = 16;

/// The process, and the pipes to it.
pub(crate) struct Victim {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Victim {
    /// Starts it.
    pub(crate) fn start() -> io::Result<Self> {
        let mut process = Command::new("/proc/self/exe")
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        match (process.stdin.take(), process.stdout.take()) {
            (Some(orders), Some(answers)) => Ok(Self {
                process,
                orders,
                answers: BufReader::new(answers),
            }),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Gives it an order and returns its answer; if it dies of it, by which signal.
    pub(crate) fn ask(&mut self, order: &str) -> io::Result<String> {
        writeln!(self.orders, "{order}")?;
        let mut answer = String::new();
        if self.answers.read_line(&mut answer)? > 0 {
            return Ok(answer.trim_end().to_owned());
        }
        let status = self.process.wait()?;
        Ok(format!("signal {}", status.signal().unwrap_or(0)))
    }
}

/// What the process does: `frames` gives the page frame numbers of its pages, `touch N` reads page N.
pub(crate) fn run() -> io::Result<()> {
    let pages: Vec<Page> = (0..PAGES).map(Page::new).collect();
    for order in io::stdin().lines() {
        let order = order?;
        let answer = match order.strip_prefix("touch ").and_then(|number| number.parse::<usize>().ok()) {
            Some(number) => match pages.get(number).map(|page| page.check(number, 0)) {
                Some(Ok(())) => "ok".to_owned(),
                Some(Err(wrong)) => wrong,
                None => format!("no page {number}"),
            },
            None => frames(&pages)?.iter().map(u64::to_string).collect::<Vec<_>>().join(" "),
        };
        println!("{answer}");
    }
    Ok(())
}

/// The page frame numbers, which root may read.
fn frames(pages: &[Page]) -> io::Result<Vec<u64>> {
    let pagemap = File::open("/proc/self/pagemap")?;
    let frame = |page: &Page| {
        let mut entry = [0; 8];
        let at = std::ptr::from_ref(page) as u64 / size_of::<Page>() as u64;
        pagemap.read_exact_at(&mut entry, at * 8)?;
        Ok(u64::from_ne_bytes(entry) & ((1 << 55) - 1))
    };
    pages.iter().map(frame).collect()
}
