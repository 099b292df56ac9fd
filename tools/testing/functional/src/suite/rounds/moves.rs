// SPDX-License-Identifier: GPL-2.0-or-later
//! The two vmemds of a move, their control sockets, and the regions at the destination.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use rustix::process::Signal;
use vmem::{Access, MapHandle, Mapping, PAGE_SIZE, Sharing};
use vmem_control::{Client, Event, Round};
use vmem_functional_sys::close_descriptors;

use super::super::vmemd::{Daemon, Source, open};
use super::memory::Memory;
use super::writer::Writer;
use crate::adopted::{page_bytes, runs};
use crate::failure::{Outcome, ensure, equal};
use crate::patience;
use crate::program::Program;
use crate::world::wait_until;

/// The path of a control socket, which is gone at the end.
struct SocketPath(PathBuf);

impl SocketPath {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(format!("/dev/shm/rounds-{name}.control"));
        // One that was killed has left it.
        let _ = fs::remove_file(&path);
        Self(path)
    }

    fn connect(&self) -> Outcome<Client> {
        let mut client = None;
        wait_until("the control socket listens", || {
            client = Client::connect(&self.0, patience::of_a_state()).ok();
            Ok(client.is_some())
        })?;
        let mut client = client.ok_or("no client")?;
        client.subscribe(patience::of_a_state())?;
        Ok(client)
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The source's vmemd.
pub(super) struct Sender {
    pub(super) source: Source,
    pub(super) control: Client,
    /// The rounds that it has told of.
    pub(super) rounds: Vec<Round>,
    _socket: SocketPath,
}

impl Sender {
    pub(super) fn new(memories: &[Memory], pid: i32, options: &[&str]) -> Outcome<Self> {
        let socket = SocketPath::new("source");
        let (path, pid) = (socket.0.display().to_string(), pid.to_string());
        let exports: Vec<String> = (0..)
            .zip(memories)
            .map(|(number, memory)| format!("{}={}", name(number), memory.path()))
            .collect();
        let exports: Vec<&str> = exports.iter().map(String::as_str).collect();
        let common = ["--control", &path, "--process", &pid];
        let source = Source::with(&[&common[..], options].concat(), &exports)?;
        let control = socket.connect()?;
        Ok(Self {
            source,
            control,
            rounds: Vec::new(),
            _socket: socket,
        })
    }

    /// Waits for an event that is wanted.
    pub(super) fn wait<T>(&mut self, what: &str, wanted: impl Fn(&Event) -> Option<T>) -> Outcome<T> {
        let deadline = Instant::now() + patience::of_a_state();
        loop {
            let event = self.control.event(deadline)?;
            let event = event.ok_or_else(|| format!("no event: {what}; rounds: {:?}", self.rounds))?;
            if let Event::Round(round) = &event {
                self.rounds.push(round.clone());
            }
            if let Some(found) = wanted(&event) {
                return Ok(found);
            }
            let is_over = matches!(event, Event::Failed { .. } | Event::End { .. });
            ensure!(!is_over, "waited for: {what}; and there came {event:?}");
        }
    }

    /// Waits until the policy wants to switch. Returns why, and the pages that are left.
    pub(super) fn settled(&mut self) -> Outcome<(String, u64)> {
        self.wait("settled", |event| match event {
            Event::Settled(settled) => Some((settled.reason.clone(), settled.left_bytes / PAGE_SIZE as u64)),
            _ => None,
        })
    }

    /// Waits for a round that has ended.
    pub(super) fn round(&mut self) -> Outcome<Round> {
        self.wait("a round", |event| match event {
            Event::Round(round) => Some(round.clone()),
            _ => None,
        })
    }

    /// The last take. Returns the pages of the remainder.
    pub(super) fn finish(&mut self) -> Outcome<u64> {
        self.control.call(vmem_control::Request::Finish, patience::of_a_state())?;
        self.wait("finished", |event| match event {
            Event::Finished(finished) => Some(finished.remainder_bytes / PAGE_SIZE as u64),
            _ => None,
        })
    }

    /// Waits until it says that the rounds have failed.
    pub(super) fn failed(&mut self) -> Outcome<String> {
        self.wait("failed", |event| match event {
            Event::Failed { error } => Some(error.clone()),
            _ => None,
        })
    }
}

/// The destination's vmemd, and a program that has mapped its regions.
pub(super) struct Receiver {
    pub(super) daemon: Daemon,
    pub(super) control: Option<Client>,
    pub(super) handles: Vec<MapHandle>,
    pub(super) mappings: Vec<Mapping>,
    _socket: SocketPath,
}

impl Receiver {
    pub(super) fn new(memories: usize, address: &str, options: &[&str]) -> Outcome<Self> {
        let socket = SocketPath::new("destination");
        let path = socket.0.display().to_string();
        let daemon = Daemon::new(address, &[&["--hold", "--stage", "--control", &path], options].concat())?;
        let control = socket.connect()?;
        let handles: Vec<MapHandle> = (0..memories).map(|number| open(&name(number))).collect::<Outcome<_>>()?;
        let mappings = handles
            .iter()
            .map(|handle| Ok(handle.map(Access::ReadWrite, Sharing::Shared)?))
            .collect::<Outcome<_>>()?;
        Ok(Self {
            daemon,
            control: Some(control),
            handles,
            mappings,
            _socket: socket,
        })
    }

    /// No page is present.
    pub(super) fn check_absent(&self) -> Outcome {
        for handle in &self.handles {
            equal!(handle.info()?.present, 0);
        }
        Ok(())
    }

    pub(super) fn start(&mut self) -> Outcome {
        let control = self.control.as_mut().ok_or("no client")?;
        Ok(control.start(patience::of_a_state())?)
    }

    pub(super) fn stop(&mut self) -> Outcome {
        let control = self.control.as_mut().ok_or("no client")?;
        Ok(control.stop(patience::of_a_state())?)
    }

    /// A program that reads a page of the first region, once it waits for it. It returns the first word.
    pub(super) fn reader(&self, page: usize) -> Outcome<Program> {
        let waiters = self.handles[0].info()?.waiters;
        let program = Program::start(|| {
            // It is no client, and no end of the network.
            close_descriptors(|target| target.starts_with("socket:"))?;
            let mut word = [0; 8];
            self.mappings[0].read_at(page * PAGE_SIZE, &mut word)?;
            Ok(vec![u64::from_ne_bytes(word)])
        })?;
        wait_until("the program waits for the page", || {
            Ok(self.handles[0].info()?.waiters == waiters + 1)
        })?;
        Ok(program)
    }

    /// Fails unless each page is that of the source, whose programs have stopped.
    pub(super) fn check(&self, memories: &[Memory]) -> Outcome {
        for (number, (memory, mapping)) in memories.iter().zip(&self.mappings).enumerate() {
            let expected = memory.bytes()?;
            let mut found = vec![0; expected.len()];
            mapping.read_at(0, &mut found)?;
            let wrong: Vec<usize> = (0..memory.pages())
                .filter(|page| expected[page_bytes(*page)] != found[page_bytes(*page)])
                .collect();
            ensure!(
                wrong.is_empty(),
                "{} pages of memory {number} are not those of the source: {}",
                wrong.len(),
                runs(&wrong)
            );
        }
        Ok(())
    }

    /// It ends with this code and says this, and no page is present.
    pub(super) fn ends_without_pages(self, code: i32, text: &str) -> Outcome {
        let Self {
            daemon,
            control,
            handles,
            mappings,
            _socket: socket,
        } = self;
        // The client stays: that it goes would be a reason to end.
        let end = daemon.end()?.with_code(code)?;
        ensure!(end.errors.contains(text), "no {text:?} in {}", end.errors);
        for handle in &handles {
            wait_until("the region has no daemon", || Ok(!handle.info()?.attached))?;
            equal!(handle.info()?.present, 0);
        }
        drop((control, mappings, socket));
        Ok(())
    }
}

/// The name of an export, and of its region.
pub(super) fn name(number: usize) -> String {
    format!("moved{number}")
}

/// A move whose rounds run.
pub(super) struct Move<'a> {
    memories: &'a [Memory],
    writers: &'a [Writer],
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
}

impl<'a> Move<'a> {
    /// In this mode.
    pub(super) fn new(memories: &'a [Memory], writers: &'a [Writer], mode: &str) -> Outcome<Self> {
        let sender = Sender::new(memories, writers[0].pid(), &["--rounds", mode])?;
        let address = sender.source.address.clone();
        Self::to(memories, writers, sender, &address)
    }

    /// From this source at this address.
    pub(super) fn to(memories: &'a [Memory], writers: &'a [Writer], sender: Sender, address: &str) -> Outcome<Self> {
        let receiver = Receiver::new(memories.len(), address, &[])?;
        Ok(Self::of(memories, writers, sender, receiver))
    }

    /// Of these two.
    pub(super) fn of(memories: &'a [Memory], writers: &'a [Writer], sender: Sender, receiver: Receiver) -> Self {
        Self {
            memories,
            writers,
            sender,
            receiver,
        }
    }

    /// Stops the programs, and takes what they have written last. Returns the pages of the remainder.
    pub(super) fn finish(&mut self) -> Outcome<u64> {
        self.writers.iter().try_for_each(Writer::stop)?;
        let remainder = self.sender.finish()?;
        self.receiver.check_absent()?;
        Ok(remainder)
    }

    /// Starts the destination, and fails unless each page is the source's and everything ends well.
    pub(super) fn start(mut self) -> Outcome {
        self.receiver.start()?;
        self.ends()
    }

    /// After the start.
    pub(super) fn ends(mut self) -> Outcome {
        self.receiver.check(self.memories)?;
        self.receiver.daemon.end()?.with_code(0)?;
        self.sender.control.stop(patience::of_a_state())?;
        self.memories.iter().try_for_each(Memory::wait_untracked)?;
        // The program at the source is not hurt.
        self.writers.iter().try_for_each(Writer::goes_on)
    }

    /// Switches: [`Move::finish`], [`Move::start`].
    pub(super) fn switch(mut self) -> Outcome<u64> {
        let remainder = self.finish()?;
        self.start()?;
        Ok(remainder)
    }
}

/// A program that waits for a page that nobody brings: it waits on, until it is killed.
pub(super) fn still_waits(program: Program) -> Outcome {
    program.wait_asleep()?;
    program.signal(Signal::KILL)?;
    program.join_killed(Signal::KILL)
}
