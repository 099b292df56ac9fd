// SPDX-License-Identifier: GPL-2.0-or-later
//! Snapshots of running programs: the sample, vmemctl and the library say what they should.

use std::fs;
use std::io::{Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::yield_now;

use rustix::process::{Pid, Signal, kill_process};
use vmem::{Adopted, Control, Error, PAGE_SIZE, PageRange, Snapshot, SnapshotOptions, Tracking};
use vmem_functional_sys::{Area, AreaBuilder, drain_page_lists};

use super::{WRITER_PAGES, c_sample, rust_sample, success, writer};
use crate::adopted::page_bytes;
use crate::failure::{Outcome, ensure, equal};
use crate::program::Program;
use crate::schema;
use crate::setting::{bytes_of, contents, page};
use crate::tracked::memfd;
use crate::world::{field, wait_until};

crate::tests![
    the_dirty_rate_in_c_verifies_a_snapshot_of_a_running_program,
    vmemctl_writes_what_the_memory_held_at_one_instant,
    vmemctl_replaces_a_file_only_by_force,
    vmemctl_leaves_nothing_of_a_snapshot_that_a_signal_ends,
    vmemctl_leaves_nothing_of_a_snapshot_that_fails,
    the_library_keeps_several_memories_and_what_was_written_since,
];

/// Pages that the [`writer`] writes to, from the first on; the others are a hole.
const WRITTEN: usize = WRITER_PAGES / 2;

/// A directory that is empty.
pub(super) fn directory(name: &str) -> Outcome<PathBuf> {
    let path = PathBuf::from(format!("/tmp/vmem-snapshot-{name}"));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir(&path)?;
    Ok(path)
}

pub(super) fn names(directory: &PathBuf) -> Outcome<Vec<String>> {
    let names = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

/// A figure of the snapshot of a process, if it has one.
pub(super) fn snapshot_figure(pid: u32, name: &str) -> Option<u64> {
    let process = format!("/proc/{pid}");
    let mut fds = fs::read_dir(format!("{process}/fd")).ok()?.filter_map(Result::ok);
    let fd = fds.find(|fd| {
        let target = fs::read_link(fd.path());
        target.is_ok_and(|target| target.to_string_lossy().contains("[vmem-snapshot]"))
    })?;
    let fdinfo = fs::read_to_string(format!("{process}/fdinfo/{}", fd.file_name().to_string_lossy())).ok()?;
    field(&fdinfo, &format!("vmem-{name}")).ok()
}

/// A `vmemctl region snapshot` that was stopped (SIGSTOP) when it had taken its snapshot, and had not read all of it.
struct Stopped {
    child: Child,
}

impl Stopped {
    /// Starts it, with the memory of a program, until it could be stopped in time.
    fn start(program: &Program, memory: &str, out: &Path, arguments: &[&str]) -> Outcome<Self> {
        const TRIES: usize = 50;
        for _ in 0..TRIES {
            let child = rust_sample("vmemctl")?
                .args([
                    "region",
                    "snapshot",
                    "--pid",
                    &program.pid().to_string(),
                    "--memory",
                    memory,
                    "--out",
                ])
                .arg(out)
                .args(arguments)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            let mut stopped = Self { child };
            let mut ended = false;
            while !ended && stopped.figure("done").is_none() {
                yield_now();
                ended = stopped.child.try_wait()?.is_some();
            }
            if ended {
                let _ = fs::remove_file(out);
                continue;
            }
            stopped.signal(Signal::STOP)?;
            wait_until("it has stopped or ended", || {
                let status = fs::read_to_string(format!("/proc/{}/status", stopped.child.id()))?;
                Ok(status
                    .lines()
                    .any(|line| line.starts_with("State:\tT") || line.starts_with("State:\tZ")))
            })?;
            if stopped.figure("done").is_some_and(|done| done < WRITTEN as u64) {
                return Ok(stopped);
            }
            stopped.end()?;
            let _ = fs::remove_file(out);
        }
        Err(format!("it was through in each of {TRIES} tries").into())
    }

    /// A figure of its snapshot, if there is one.
    fn figure(&self, name: &str) -> Option<u64> {
        snapshot_figure(self.child.id(), name)
    }

    /// Waits until the program has written to all pages that have not been read yet.
    fn wait_for_copies(&self) -> Outcome {
        wait_until("the rest is copied", || {
            let (kept, done) = (self.figure("kept"), self.figure("done"));
            Ok(kept
                .zip(done)
                .is_some_and(|(kept, done)| kept > 0 && kept + done == WRITTEN as u64))
        })
    }

    fn wait_for_failure(&self) -> Outcome {
        wait_until("the snapshot has failed", || Ok(self.figure("failed") == Some(1)))
    }

    fn signal(&self, signal: Signal) -> Outcome {
        let pid = Pid::from_raw(self.child.id().try_into()?).ok_or("no process")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Lets it go on. Its exit code, and what it prints on both of its outputs.
    fn end(&mut self) -> Outcome<(Option<i32>, String)> {
        let mut said = String::new();
        self.signal(Signal::CONT)?;
        let mut stderr = self.child.stderr.take().ok_or("no standard error")?;
        stderr.read_to_string(&mut said)?;
        let mut stdout = self.child.stdout.take().ok_or("no output")?;
        stdout.read_to_string(&mut said)?;
        Ok((self.child.wait()?.code(), said))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // One that has ended has no more to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Fails unless the program goes on, and its memory is tracked no more.
fn check_left_alone(program: Program, memory: &str) -> Outcome {
    let mut info = rust_sample("vmemctl")?;
    info.args(["region", "info", "--pid", &program.pid().to_string(), "--memory", memory]);
    let info = success(info.output()?)?;
    ensure!(info.lines().any(|line| line.ends_with(" possible")), "{info}");
    program.signal(Signal::TERM)?;
    program.join_killed(Signal::TERM)
}

/// Fails unless this is what the memory of a [`writer`] holds between two of its writes: the pages up to some page are of one round, and
/// those behind it of the round before.
fn check_instant(image: &[u8]) -> Outcome {
    equal!(image.len(), WRITER_PAGES * PAGE_SIZE);
    let round = |page: usize| -> Outcome<u64> {
        let bytes = &image[page_bytes(page)];
        ensure!(
            bytes[..8].iter().chain(&bytes[16..]).all(|byte| *byte == 0),
            "page {page} has more than its program writes"
        );
        Ok(u64::from_le_bytes(bytes[8..16].try_into()?))
    };
    let first = round(0)?;
    let mut last = first;
    for page in 0..WRITTEN {
        let found = round(page)?;
        ensure!(
            found <= last && found + 1 >= first,
            "page {page} is of round {found}, the first of {first}, the one before of {last}"
        );
        last = found;
    }
    for page in WRITTEN..WRITER_PAGES {
        equal!(round(page)?, 0);
    }
    Ok(())
}

/// Fails unless the file takes about as much room as the pages that are written to.
fn check_holes(path: &PathBuf) -> Outcome {
    let blocks = fs::metadata(path)?.blocks() as usize * 512;
    ensure!(
        (WRITTEN * PAGE_SIZE..WRITER_PAGES * PAGE_SIZE * 3 / 4).contains(&blocks),
        "the image takes {blocks} bytes"
    );
    Ok(())
}

/// The number behind a word.
fn number_after(text: &str, word: &str) -> Outcome<u64> {
    let (_, rest) = text.split_once(word).ok_or(format!("no {word:?} in:\n{text}"))?;
    Ok(rest.split_whitespace().next().ok_or("no number")?.parse()?)
}

fn the_dirty_rate_in_c_verifies_a_snapshot_of_a_running_program() -> Outcome {
    let program = writer("sampled")?;
    let image = directory("sample")?.join("image");
    let (pid, path) = (program.pid().to_string(), image.to_string_lossy().into_owned());
    let output = c_sample("dirtyrate", &["--seconds", "1", "--snapshot", &path, &pid, "/memfd:sampled"])?;
    equal!(output.lines().filter(|line| line.contains(" pages/s ")).count(), 1);
    let verdict = format!("snapshot: {WRITER_PAGES} pages are equal, 0 are written to by others, 0 are lost");
    ensure!(output.contains(&verdict), "{output}");
    // The program has written to all of its pages before one of them was read.
    let copied = number_after(&output, " ms, ")?;
    ensure!(copied >= WRITTEN as u64, "{output}");
    check_instant(&fs::read(&image)?)?;
    check_holes(&image)?;
    check_left_alone(program, "sampled")
}

fn vmemctl_writes_what_the_memory_held_at_one_instant() -> Outcome {
    let program = writer("instant")?;
    let directory = directory("instant")?;
    let image = directory.join("image");
    let mut vmemctl = Stopped::start(&program, "instant", &image, &[])?;
    vmemctl.wait_for_copies()?;
    equal!(names(&directory)?, ["image.partial"]);
    let (code, said) = vmemctl.end()?;
    ensure!(code == Some(0), "{said}");
    equal!(names(&directory)?, ["image"]);
    check_instant(&fs::read(&image)?)?;
    check_holes(&image)?;
    for line in ["size       4.00 MiB in 1024 pages", "data       2.00 MiB in 512 pages"] {
        ensure!(said.contains(line), "no {line:?} in:\n{said}");
    }
    ensure!(number_after(&said, "copied     ")? > 0, "{said}");
    check_left_alone(program, "instant")
}

fn vmemctl_replaces_a_file_only_by_force() -> Outcome {
    let program = writer("forced")?;
    let directory = directory("forced")?;
    let image = directory.join("image");
    fs::write(&image, "old")?;
    let snapshot = |arguments: &[&str]| -> Outcome<_> {
        let mut command = rust_sample("vmemctl")?;
        command.args([
            "region",
            "snapshot",
            "--pid",
            &program.pid().to_string(),
            "--memory",
            "forced",
        ]);
        Ok(command.arg("--out").arg(&image).args(arguments).output()?)
    };
    let refused = snapshot(&[])?;
    equal!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(said.contains("exists: --force replaces it"), "{said}");
    equal!(fs::read(&image)?, b"old");
    let json = success(snapshot(&["--force", "--json"])?)?;
    schema::REGION.check(&json)?;
    check_instant(&fs::read(&image)?)?;
    equal!(names(&directory)?, ["image"]);
    let figure = format!("\"bytes\":{}", WRITER_PAGES * PAGE_SIZE);
    let is_summary = |line: &str| line.contains("\"event\":\"snapshot\"") && line.contains(&figure);
    ensure!(json.lines().any(is_summary), "{json}");
    check_left_alone(program, "forced")
}

fn vmemctl_leaves_nothing_of_a_snapshot_that_a_signal_ends() -> Outcome {
    for signal in [Signal::INT, Signal::TERM] {
        let program = writer("signalled")?;
        let directory = directory("signalled")?;
        let mut vmemctl = Stopped::start(&program, "signalled", &directory.join("image"), &[])?;
        vmemctl.wait_for_copies()?;
        vmemctl.signal(signal)?;
        let (code, said) = vmemctl.end()?;
        ensure!(code == Some(1) && said.contains("was received"), "{code:?}: {said}");
        equal!(names(&directory)?, Vec::<String>::new());
        check_left_alone(program, "signalled")?;
    }
    Ok(())
}

fn vmemctl_leaves_nothing_of_a_snapshot_that_fails() -> Outcome {
    let program = writer("limited")?;
    let directory = directory("limited")?;
    let mut vmemctl = Stopped::start(&program, "limited", &directory.join("image"), &["--limit", "64K"])?;
    vmemctl.wait_for_failure()?;
    let (code, said) = vmemctl.end()?;
    ensure!(
        code == Some(1) && said.contains("the snapshot has failed: there was no memory"),
        "{code:?}: {said}"
    );
    equal!(names(&directory)?, Vec::<String>::new());
    check_left_alone(program, "limited")
}

const PAGES: usize = 300;

/// Memory that is tracked by means of the library, every page of which is written, and none of which is in the log.
fn tracked(control: &Control) -> Outcome<(Area, Adopted, Tracking)> {
    let file = memfd(PAGES)?;
    let area = AreaBuilder::default().map(&file, 0, PAGES)?;
    for page in 0..PAGES {
        area.write_page(page, &contents(page as u64));
    }
    let adopted = control.adopt(&file)?;
    let tracking = adopted.track()?;
    wait_until("no page is held", || {
        drain_page_lists()?;
        let log = tracking.clean(tracking.pages());
        let held = log.held;
        log.complete()?;
        Ok(held == 0)
    })?;
    Ok((area, adopted, tracking))
}

fn range(first: usize, count: u64) -> Outcome<PageRange> {
    Ok(PageRange::new(page(first), count).ok_or("no pages")?)
}

fn the_library_keeps_several_memories_and_what_was_written_since() -> Outcome {
    let control = Control::open()?;
    ensure!(control.features()?.snapshot, "the module does not say that it can");
    let [(one, _one, first), (other, _other, second)] = [tracked(&control)?, tracked(&control)?];
    one.write_page(7, &contents(77));
    let options = SnapshotOptions::default().clean(true).once(true);
    let mut taken = Snapshot::take(&[&first, &second], options)?;
    ensure!(matches!(first.snapshot(options), Err(Error::HasSnapshot)));
    for area in [&one, &other] {
        for page in [3, 4, 200] {
            area.write_page(page, &contents(1000));
        }
    }
    let (mut of_other, mut of_one) = (taken.pop().ok_or("none")?, taken.pop().ok_or("none")?);
    equal!(of_one.increment(of_one.pages()).complete()?, [range(7, 1)?]);
    equal!(of_other.increment(of_other.pages()).complete()?, Vec::<PageRange>::new());
    equal!(of_one.data().collect::<Result<Vec<_>, _>>()?, [of_one.pages()]);
    for (snapshot, seventh) in [(&mut of_one, 77), (&mut of_other, 7)] {
        // A page that is read in parts, as read_to_end() does, is not done by that.
        let mut bytes = vec![0; PAGES * PAGE_SIZE];
        snapshot.rewind()?;
        snapshot.read_exact(&mut bytes)?;
        let numbers = (0..PAGES as u64).map(|page| if page == 7 { seventh } else { page });
        let expected: Vec<u8> = numbers.flat_map(|number| bytes_of(&contents(number))).collect();
        ensure!(bytes == expected, "the image is not what was there");
        let again = snapshot.read_exact_at(&mut bytes[..PAGE_SIZE], 0);
        ensure!(matches!(again, Err(Error::PageDone)), "{again:?}");
    }
    // What one of them has not got is in its log again.
    of_one.done(of_one.pages())?;
    drop((of_one, of_other));
    let next = first.snapshot(options)?;
    equal!(next.increment(next.pages()).complete()?, [range(3, 2)?, range(200, 1)?]);
    next.done(range(0, 100)?)?;
    let map = next.increment_map(next.pages()).complete()?;
    equal!(map.runs().collect::<Vec<_>>(), [range(200, 1)?]);
    let figures = next.info()?;
    equal!(
        (figures.size, figures.dirty, figures.done),
        ((PAGES * PAGE_SIZE) as u64, 1, 100)
    );
    // It is of no use without the log.
    first.stop()?;
    let read = next.read_exact_at(&mut [0], page(250).offset());
    ensure!(matches!(read, Err(Error::SnapshotFailed)), "{read:?}");
    ensure!(next.info()?.failed && matches!(next.data().next(), Some(Err(Error::SnapshotFailed))));
    Ok(())
}
