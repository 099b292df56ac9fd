// SPDX-License-Identifier: GPL-2.0-or-later
//! What happens to a vmemd, and where it stands. As JSON, events are the lines of `vmemd --json`; vmemd(8) describes the fields.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::migration::Migration;
use crate::rounds::{Finished, Round, Rounds, Settled};

/// What happens to a vmemd.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// The regions exist, and `start` is waited for.
    Holding {
        /// Where the pages come from.
        source: String,
        /// The regions.
        #[serde(deserialize_with = "limits::regions")]
        regions: Vec<Region>,
    },
    /// The memory is offered at this address.
    Listening {
        /// The address.
        address: SocketAddr,
    },
    /// The regions exist, and their faults are served.
    Ready {
        /// Where the pages come from.
        source: String,
        /// The regions.
        #[serde(deserialize_with = "limits::regions")]
        regions: Vec<Region>,
    },
    /// A line came on standard input.
    Order {
        /// The line.
        order: String,
        /// Why it is not obeyed.
        error: Option<String>,
    },
    /// In this place events are missing: they were not taken in time.
    Dropped {
        /// So many.
        lines: u64,
    },
    /// Once a second, where the run stands.
    Progress(Figures),
    /// A region has come to another phase.
    Region(Region),
    /// A connection to the source was lost.
    Lost {
        /// Which one.
        connection: Lane,
        /// Why.
        error: String,
    },
    /// A connection to the source was made again.
    Back {
        /// Which one.
        connection: Lane,
    },
    /// There is no memory for pages of a region.
    Short {
        /// Its name.
        name: String,
    },
    /// What programs have asked for since the event before, at most once a second unless it is much. Only if vmemd is told to say it.
    Touched(Touched),
    /// Once a second while a source sends rounds, and after each request `set`: where they stand.
    Rounds(Rounds),
    /// A round of a source is over.
    Round(Round),
    /// The program should stop now. Rounds go on until the request `finish`.
    Settled(Settled),
    /// What was written last is taken: the rounds are over.
    Finished(Finished),
    /// Once a second, and when its phase changes: where a migration stands.
    Migration(Box<Migration>),
    /// The rounds have failed: the destination does not have what it was sent.
    Failed {
        /// Why.
        error: String,
    },
    /// The regions were compared with their source.
    Verified(Verified),
    /// The run is over. The last event.
    End {
        /// vmemd's exit code.
        exit_code: u8,
        /// Why it has not done everything.
        error: Option<String>,
        /// Where the run stands, if regions were begun.
        #[serde(flatten)]
        figures: Option<Figures>,
    },
    /// An event that a later vmemd knows.
    #[serde(other)]
    Unknown,
}

impl Event {
    /// Cuts what is longer than a message may be.
    pub(crate) fn cut(&mut self) {
        match self {
            Self::Holding { source, regions } | Self::Ready { source, regions } => {
                limits::cut(source);
                regions.truncate(limits::MAX_REGIONS);
            }
            Self::Order { order, error } => {
                limits::cut(order);
                error.iter_mut().for_each(limits::cut);
            }
            Self::Progress(figures) => figures.regions.truncate(limits::MAX_REGIONS),
            Self::Verified(verified) => verified.first.truncate(limits::MAX_REGIONS),
            Self::Lost { error, .. } | Self::Failed { error } | Self::Settled(Settled { reason: error, .. }) => {
                limits::cut(error)
            }
            Self::Rounds(rounds) => limits::cut(&mut rounds.mode),
            Self::Migration(migration) => migration.cut(),
            Self::End { error, figures, .. } => {
                error.iter_mut().for_each(limits::cut);
                figures
                    .iter_mut()
                    .for_each(|figures| figures.regions.truncate(limits::MAX_REGIONS));
            }
            Self::Touched(touched) => touched.runs.truncate(limits::MAX_RUNS),
            // The name and the paths of a region are short.
            Self::Region(_) | Self::Short { .. } => {}
            Self::Listening { .. }
            | Self::Dropped { .. }
            | Self::Back { .. }
            | Self::Round(_)
            | Self::Finished(_)
            | Self::Unknown => {}
        }
    }

    /// About how many bytes of memory it takes.
    #[must_use]
    pub fn size(&self) -> usize {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let texts = match self {
            Self::Holding { source, regions } | Self::Ready { source, regions } => source.len() + size(regions),
            Self::Order { order, error } => order.len() + length(error),
            Self::Progress(figures) => size(&figures.regions),
            Self::Verified(Verified { first, .. }) => {
                size_of_val(&first[..]) + first.iter().map(|page| page.region.len()).sum::<usize>()
            }
            Self::Region(region) => texts(region),
            Self::Short { name } => name.len(),
            Self::Touched(Touched { region, runs, .. }) => region.len() + size_of_val(&runs[..]),
            Self::Lost { error, .. } | Self::Failed { error } | Self::Settled(Settled { reason: error, .. }) => error.len(),
            Self::Rounds(rounds) => rounds.mode.len(),
            Self::Migration(migration) => migration.texts(),
            Self::End { error, figures, .. } => length(error) + figures.as_ref().map_or(0, |figures| size(&figures.regions)),
            Self::Listening { .. }
            | Self::Dropped { .. }
            | Self::Back { .. }
            | Self::Round(_)
            | Self::Finished(_)
            | Self::Unknown => 0,
        };
        size_of::<Self>() + texts
    }
}

/// About how many bytes of memory regions take.
fn size(regions: &[Region]) -> usize {
    size_of_val(regions) + regions.iter().map(texts).sum::<usize>()
}

fn texts(region: &Region) -> usize {
    let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    region.name.len() + length(&region.path) + length(&region.node)
}

/// Requests of programs for pages of a region.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Touched {
    /// Name of the region.
    pub region: String,
    /// Runs of pages, in the order of the requests: the first page, and how many.
    #[serde(default, deserialize_with = "limits::runs")]
    pub runs: Vec<(u64, u64)>,
    /// Pages of any region that are left out, because they were too many.
    #[serde(default)]
    pub missed: u64,
}

/// What a comparison of regions with their source has found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Verified {
    /// Pages that were compared.
    pub pages: u64,
    /// How many of them are not the same as the source's.
    pub different: u64,
    /// The first of those.
    #[serde(default, deserialize_with = "limits::regions")]
    pub first: Vec<RegionPage>,
}

/// A page of a region.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RegionPage {
    /// Name of the region.
    pub region: String,
    /// Number of the page.
    pub page: u64,
}

/// Where a run stands.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Figures {
    /// Since the start.
    pub seconds: f64,
    /// Processor time that the process has used.
    #[serde(default)]
    pub cpu_seconds: f64,
    /// Bytes that regions were filled with.
    #[serde(default)]
    pub data_bytes: u64,
    /// Bytes of pages marked as zero.
    #[serde(default)]
    pub zero_bytes: u64,
    /// Bytes of pages that came when they were present already.
    #[serde(default)]
    pub duplicate_bytes: u64,
    /// Bytes that came while their program still ran at the source; a page that came twice counts twice.
    #[serde(default)]
    pub staged_bytes: u64,
    /// Bytes that were copied from an image of this host instead of being sent; what was staged counts, too.
    #[serde(default)]
    pub known_bytes: u64,
    /// Bytes that the source sent as the same as before, while their program still ran there.
    #[serde(default)]
    pub same_bytes: u64,
    /// Bytes that the kernel has read from the source's file by itself.
    #[serde(default)]
    pub backed_bytes: u64,
    /// Bytes that were compared with the source's.
    #[serde(default)]
    pub verified_bytes: u64,
    /// Bytes that pages took on the network, compressed or not; those that were only compared do not count.
    #[serde(default)]
    pub wire_bytes: u64,
    /// Requests taken from the regions.
    #[serde(default)]
    pub faults: u64,
    /// From taking a request to filling its page.
    #[serde(default)]
    pub fault_us: Option<Times>,
    /// Connections that were lost and made again.
    #[serde(default)]
    pub reconnects: u64,
    /// The regions.
    #[serde(deserialize_with = "limits::regions")]
    pub regions: Vec<Region>,
}

/// Microseconds from taking a request to filling its page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Times {
    /// Half of the requests took no longer.
    pub p50: u64,
    /// 99 of 100 requests took no longer.
    pub p99: u64,
    /// None took longer.
    pub max: u64,
}

/// Where a region stands.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Region {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// The path by which programs open it: its file, or else its node. Not in figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The path of its node. Not in figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its size.
    #[serde(default)]
    pub bytes: u64,
    /// So much of it is present.
    #[serde(default)]
    pub present_bytes: u64,
    /// Pages that the source cannot read.
    #[serde(default)]
    pub unreadable_pages: u64,
    /// How far it has come.
    #[serde(default)]
    pub phase: Phase,
}

/// How far a region has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Pages are absent.
    Filling,
    /// It is complete, and nobody has mapped it.
    Waiting,
    /// Pages are put into page tables.
    Populating,
    /// It is plain memory.
    Plain,
    /// It is present but for pages that the source cannot read.
    Unreadable,
    /// A phase that a later vmemd knows.
    #[default]
    #[serde(other)]
    Unknown,
}

/// A connection to the source.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// For pages that programs wait for.
    Urgent,
    /// For all others.
    Stream,
    /// A connection that a later vmemd knows.
    #[serde(other)]
    Unknown,
}

/// Where a vmemd stands.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Status {
    /// How far it has come.
    pub state: State,
    /// Where it offers memory.
    #[serde(default)]
    pub listening: Option<SocketAddr>,
    /// Where its pages come from.
    #[serde(default)]
    pub source: Option<String>,
    /// What it said last of its regions; not older than a second, or nothing has changed.
    #[serde(default)]
    pub figures: Option<Figures>,
    /// Where its rounds stand; not older than a second, or nothing has changed.
    #[serde(default)]
    pub rounds: Option<Rounds>,
    /// That the program should stop, if it has said so.
    #[serde(default)]
    pub settled: Option<Settled>,
    /// What the last take has left, once it is done.
    #[serde(default)]
    pub finished: Option<Finished>,
    /// Why the rounds have failed, or why the latest `finish` has.
    #[serde(default)]
    pub failed: Option<String>,
    /// Of a vmemctl: where its migration stands; not older than a second, or it is busy.
    #[serde(default)]
    pub migration: Option<Migration>,
}

/// How far a vmemd has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It reaches its source, or opens its memory.
    #[default]
    Starting,
    /// It waits for `start`.
    Holding,
    /// It serves: faults, or other machines.
    Ready,
    /// The run is over.
    Ended,
    /// A state that a later vmemd knows.
    #[serde(other)]
    Unknown,
}

impl Status {
    /// About how many bytes of memory it takes.
    #[must_use]
    pub fn size(&self) -> usize {
        let source = self.source.as_ref().map_or(0, String::len);
        let reasons =
            self.failed.as_ref().map_or(0, String::len) + self.settled.as_ref().map_or(0, |settled| settled.reason.len());
        size_of::<Self>() + source + reasons + self.figures.as_ref().map_or(0, |figures| size(&figures.regions))
    }

    /// What follows from an event.
    pub fn apply(&mut self, event: &Event) {
        let of = |regions: &[Region]| {
            Some(Figures {
                regions: regions.to_vec(),
                ..Figures::default()
            })
        };
        match event {
            Event::Holding { source, regions } => {
                self.state = State::Holding;
                (self.source, self.figures) = (Some(source.clone()), of(regions));
            }
            Event::Ready { source, regions } => {
                self.state = State::Ready;
                (self.source, self.figures) = (Some(source.clone()), of(regions));
            }
            Event::Listening { address } => {
                self.state = State::Ready;
                self.listening = Some(*address);
            }
            Event::Progress(figures) => self.figures = Some(figures.clone()),
            Event::Region(changed) => {
                let regions = self.figures.iter_mut().flat_map(|figures| &mut figures.regions);
                for region in regions.filter(|region| region.name == changed.name) {
                    *region = changed.clone();
                }
            }
            Event::End { figures, .. } => {
                self.state = State::Ended;
                if figures.is_some() {
                    self.figures.clone_from(figures);
                }
            }
            Event::Rounds(rounds) => self.rounds = Some(rounds.clone()),
            Event::Settled(settled) => self.settled = Some(settled.clone()),
            Event::Finished(finished) => (self.finished, self.failed) = (Some(*finished), None),
            Event::Failed { error } => self.failed = Some(error.clone()),
            Event::Migration(migration) => self.migration = Some((**migration).clone()),
            Event::Order { .. }
            | Event::Touched(_)
            | Event::Dropped { .. }
            | Event::Lost { .. }
            | Event::Back { .. }
            | Event::Short { .. }
            | Event::Round(_)
            | Event::Verified(_)
            | Event::Unknown => {}
        }
    }
}

#[cfg(test)]
mod tests;
