// SPDX-License-Identifier: GPL-2.0-or-later
//! Starts everybody, kills some, starts them again, and sees that all move.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use rustix::process::{Signal, set_parent_process_death_signal};
use vmem_functional_sys::{Child, End, fork, print_state, reset_signal};

use crate::board::{Board, Mark, Note};
use crate::hands::name;
use crate::machine::Machine;
use crate::numbers::Numbers;
use crate::pace::Pace;
use crate::tally::{ENOUGH, ENOUGH_OF_TURNS, Kernel, Tally};
use crate::{Options, daemon, files, fuzzer, program, tracker};

/// How often the supervisor looks around.
const TURN: Duration = Duration::from_millis(20);
/// Up to how many milliseconds a region lives on as plain memory, and half a second.
const PLAIN_LIFE: usize = 5000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Daemon(usize),
    Program(usize),
    Tracker(usize),
    Opener(usize),
    Fuzzer,
    Machine,
}

impl Role {
    /// Whether it waits for pages that a daemon brings, so that it may have to be killed in the end.
    fn waits_for_pages(self) -> bool {
        matches!(self, Self::Program(_) | Self::Tracker(_) | Self::Opener(_))
    }
}

struct Actor {
    role: Role,
    child: Option<Child>,
    lives: u64,
    /// Its steps when it was last seen to have moved, and when that was.
    moved: (u64, Instant),
    /// It was sent SIGKILL.
    killed: bool,
    stopped: bool,
}

struct Supervisor {
    options: Options,
    seed: u64,
    machine: Machine,
    board: Board,
    actors: Vec<Actor>,
    /// Of each region that is plain, when it is given up.
    given_up: Vec<Option<Instant>>,
    numbers: Numbers,
    kills: u64,
    /// Daemons that were killed while they tracked their regions.
    trackers_killed: u64,
    bus: u64,
    conversions: u64,
}

/// Runs it all.
pub(crate) fn run(options: Options) -> anyhow::Result<()> {
    let seed = match options.seed {
        0 => SystemTime::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64),
        seed => seed,
    };
    println!("vmem-stress: seed {seed}, {options:?}");
    let (machine, before) = (Machine::new()?, Kernel::now()?);
    // Daemons and programs first.
    let mut roles: Vec<Role> = (0..options.regions.into()).map(Role::Daemon).collect();
    roles.extend((0..options.processes.into()).map(Role::Program));
    let workers = roles.len();
    roles.extend((0..options.trackers.into()).map(Role::Tracker));
    // Each writes in a slot of its own, behind those of the programs.
    roles.extend((0..options.openers).map(|nr| Role::Opener((options.processes + nr).into())));
    roles.extend([Role::Fuzzer, Role::Machine]);
    // Each daemon has a thread.
    let actors = roles.len() + usize::from(options.regions);
    let mut supervisor = Supervisor {
        board: Board::new(options.regions.into(), options.pages.into(), actors, workers)?,
        actors: roles.into_iter().map(Actor::new).collect(),
        given_up: vec![None; options.regions.into()],
        machine,
        numbers: Numbers::new(seed, usize::MAX, 0),
        options,
        seed,
        kills: 0,
        trackers_killed: 0,
        bus: 0,
        conversions: 0,
    };
    supervisor.supervise()?;
    supervisor.finish()?;
    supervisor.machine.finish()?;
    supervisor.tell(&before)
}

impl Actor {
    fn new(role: Role) -> Self {
        Self {
            role,
            child: None,
            lives: 0,
            moved: (0, Instant::now()),
            killed: false,
            stopped: false,
        }
    }

    fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        if let Some(child) = &self.child {
            child.kill(signal.as_raw())?;
            self.stopped = signal == Signal::STOP;
            self.killed |= signal == Signal::KILL;
        }
        Ok(())
    }
}

impl Supervisor {
    fn supervise(&mut self) -> anyhow::Result<()> {
        let (begun, mut told, mut pace) = (Instant::now(), Instant::now(), Pace::new());
        while begun.elapsed() < self.options.seconds {
            for actor in 0..self.actors.len() {
                self.look_after(actor)?;
            }
            self.turn_regions()?;
            if pace.is_due(&self.board)? {
                self.meddle()?;
            }
            if told.elapsed() > Duration::from_secs(60) {
                println!("vmem-stress: {} s", begun.elapsed().as_secs());
                told = Instant::now();
            }
            sleep(TURN);
        }
        Ok(())
    }

    /// Starts an actor, buries it, or sees it move.
    fn look_after(&mut self, actor: usize) -> anyhow::Result<()> {
        let end = match &mut self.actors[actor].child {
            None => return self.start(actor),
            Some(child) => child.try_wait()?,
        };
        match end {
            Some(end) => {
                self.actors[actor].child = None;
                self.bury(actor, end)
            }
            None => self.see_move(actor),
        }
    }

    fn start(&mut self, at: usize) -> anyhow::Result<()> {
        let actor = &self.actors[at];
        if let Role::Daemon(region) = actor.role {
            // Plain, or given up: nobody serves it until it is gone.
            if self.board.life(region)? % 2 == 1 || self.board.is_plain(region)? {
                return Ok(());
            }
        }
        let (role, numbers) = (actor.role, Numbers::new(self.seed, at, actor.lives));
        let (board, machine) = (&self.board, &self.machine);
        let child = fork(|| {
            let lived = be_born(role).and_then(|()| match role {
                Role::Daemon(region) => daemon::run(board, at, region, numbers),
                Role::Program(program) => program::run(board, at, program, numbers).map(|()| 0),
                Role::Tracker(_) => tracker::run(board, at, numbers).map(|()| 0),
                Role::Opener(slot) => files::run(board, at, slot, numbers).map(|()| 0),
                Role::Fuzzer => fuzzer::run(board, at, numbers).map(|()| 0),
                Role::Machine => machine.run(board, at, numbers).map(|()| 0),
            });
            lived.unwrap_or_else(|error| {
                eprintln!("vmem-stress: {role:?}: {error:#}");
                1
            })
        });
        let actor = &mut self.actors[at];
        actor.child = Some(child.context("fork")?);
        actor.lives += 1;
        actor.killed = false;
        actor.stopped = false;
        actor.moved.1 = Instant::now();
        Ok(())
    }

    fn bury(&mut self, at: usize, end: End) -> anyhow::Result<()> {
        let actor = &self.actors[at];
        match (end, actor.role) {
            (End::Exited(daemon::CONVERTED), Role::Daemon(region)) => {
                self.conversions += 1;
                self.board.set_plain(region)?;
                let life = Duration::from_millis(500 + self.numbers.below(PLAIN_LIFE) as u64);
                self.given_up[region] = Some(Instant::now() + life);
                Ok(())
            }
            (End::Exited(0), _) => Ok(()),
            (End::Killed(signal), role) if signal == Signal::KILL.as_raw() && actor.killed => match role {
                Role::Daemon(region) => self.bury_thread(self.board.thread_of_daemon(region)),
                _ => Ok(()),
            },
            (End::Killed(signal), Role::Program(_) | Role::Opener(_)) if signal == Signal::BUS.as_raw() => {
                self.bus += 1;
                let touching = self.board.note(at, Note::Touching)?;
                ensure!(touching > 0, "{:?} got SIGBUS without a touch", actor.role);
                let (region, page) = self.board.page_of(touching - 1);
                ensure!(
                    self.board.is_marked(region, page, Mark::Unreadable)?,
                    "{:?} got SIGBUS from page {page} of region {region}, which nobody has made unreadable",
                    actor.role
                );
                Ok(())
            }
            (end, role) => bail!("{role:?} ended with {end:?}"),
        }
    }

    /// The thread in which a daemon tracks its region has died with it.
    fn bury_thread(&mut self, thread: usize) -> anyhow::Result<()> {
        self.trackers_killed += self.board.note(thread, Note::Tracking)?;
        self.board.set_note(thread, Note::Tracking, 0)
    }

    fn see_move(&mut self, at: usize) -> anyhow::Result<()> {
        let steps = self.board.note(at, Note::Steps)?;
        let actor = &mut self.actors[at];
        if actor.moved.0 != steps || actor.stopped {
            actor.moved = (steps, Instant::now());
        }
        if actor.moved.1.elapsed() < self.options.patience {
            return Ok(());
        }
        let role = actor.role;
        self.dump();
        bail!("{role:?} has not moved for {} s", self.options.patience.as_secs())
    }

    fn dump(&self) {
        let running = self
            .actors
            .iter()
            .filter_map(|actor| Some((actor.role, actor.child.as_ref()?)));
        for (role, child) in running {
            print!("{role:?}, ");
            print_state(child.pid());
        }
    }

    /// Gives up regions that were plain memory for long enough, or that nobody has any more. When everybody has let go of one, its next life
    /// begins.
    fn turn_regions(&mut self) -> anyhow::Result<()> {
        for region in 0..self.board.regions() {
            let exists = Path::new("/dev/vmem").join(name(region)).exists();
            if self.given_up[region].is_some_and(|when| !exists || when <= Instant::now()) {
                self.given_up[region] = None;
                self.board.turn(region)?;
            } else if self.board.life(region)? % 2 == 1 && !exists {
                self.board.turn(region)?;
            }
        }
        Ok(())
    }

    /// Kills somebody, or stops somebody for a while.
    fn meddle(&mut self) -> anyhow::Result<()> {
        let at = self.numbers.below(self.actors.len());
        let actor = &mut self.actors[at];
        if actor.stopped {
            return actor.signal(Signal::CONT);
        }
        match self.numbers.below(30) {
            0..2 => {
                self.kills += 1;
                actor.signal(Signal::KILL)
            }
            2 => actor.signal(Signal::STOP),
            _ => Ok(()),
        }
    }

    /// Programs and trackers are ended, as long as somebody serves them; then the daemons end.
    fn finish(&mut self) -> anyhow::Result<()> {
        for actor in &mut self.actors {
            actor.signal(Signal::CONT)?;
        }
        // Not told to end yet: one that is to be ended now may wait for a page.
        for actor in self.actors.iter_mut().filter(|actor| actor.role.waits_for_pages()) {
            actor.signal(Signal::KILL)?;
        }
        self.board.end()?;
        let since = Instant::now();
        while self.actors.iter().any(|actor| actor.child.is_some()) {
            for at in 0..self.actors.len() {
                let end = match &mut self.actors[at].child {
                    None => continue,
                    Some(child) => child.try_wait()?,
                };
                if let Some(end) = end {
                    self.actors[at].child = None;
                    self.bury(at, end)?;
                }
            }
            if since.elapsed() > self.options.patience {
                self.dump();
                bail!("not everybody has ended");
            }
            sleep(TURN);
        }
        let users = || std::fs::read_to_string("/sys/module/vmem/refcnt").context("the module's use count");
        while users()?.trim() != "0" {
            ensure!(since.elapsed() < self.options.patience, "the module is in use: {}", users()?);
            sleep(TURN);
        }
        Ok(())
    }

    fn tell(&self, before: &Kernel) -> anyhow::Result<()> {
        let now = Kernel::now()?;
        let since = |names| now.since(before, names);
        let mut tally = Tally::new(self.options.seconds, self.board.steps()?);
        tally.add_notes(&self.board)?;
        tally.demand(ENOUGH, self.conversions, "conversions");
        tally.demand(0, self.kills, "processes killed");
        tally.demand(ENOUGH_OF_TURNS, self.trackers_killed, "daemons killed while they tracked");
        tally.add(self.bus, "times SIGBUS");
        tally.demand(ENOUGH, since(&["pswpin"]), "pages swapped in");
        tally.demand(ENOUGH, since(&["thp_file_alloc", "thp_collapse_alloc"]), "huge pages made");
        match self.machine.moves {
            true => tally.demand(
                ENOUGH,
                since(&["pgmigrate_success"]),
                "pages migrated between nodes and by compaction",
            ),
            false => tally.add(since(&["pgmigrate_success"]), "pages migrated by compaction"),
        }
        tally.tell()
    }
}

/// What sets an actor apart from the supervisor.
fn be_born(role: Role) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // Rust's runtime catches these, and touches a second time before it lets the process die.
    for signal in [Signal::BUS, Signal::SEGV] {
        reset_signal(signal.as_raw())?;
    }
    match role {
        // Who reclaims the others' memory shall not wait for his own.
        Role::Machine => Ok(()),
        _ => Machine::enter(),
    }
}
