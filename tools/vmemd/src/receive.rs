// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemd --source`: the destination's side, from the first connection to the exit code.

mod backing;
mod exported;
mod kept;
mod lingering;
mod orders;
mod regions;
mod seed;
mod stopping;
mod stored;
mod verifying;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use vmem::{Control, Files as RegionFiles, PAGE_SIZE, Region};
use vmem_cli::{chain, with_port};
use vmem_control::Duty;
use vmem_engine::{
    Completion, CompletionOptions, Connect, Engine, Event, Options, Phase, RegionStatus, Sink, Staging, Stats, Status, Target,
    Touches,
};
use vmem_service::Service;
use vmem_source::backing::BackingFile;
use vmem_source::endpoint::{Endpoint, Security};
use vmem_source::local::Local;
use vmem_source::wire::DEFAULT_PORT;
use vmem_source::{Compression, Lane, PageSource, StagingSource};
use vmem_tls::Identity;
use vmem_wait::Pulse;

use crate::cli::{Receive, is_checkpoint, is_nbd};
use crate::control::{Control as ControlServer, Socket};
use crate::failure::Failure;
use crate::metrics::{Destination, Listener, Unbound};
use crate::privileges::{self, Files, Needs, User};
use crate::report::Report;
use backing::Backings;
use kept::KeptRegions;
use lingering::Lingering;
use orders::Orders;
use seed::SeedImages;
use stopping::Stopping;
use stored::Existing;
use verifying::Verifying;

/// How often regions are looked at.
const TICK: Duration = Duration::from_millis(100);
/// The same while they are compared: a program may stand still for it.
const SHORT_TICK: Duration = Duration::from_millis(5);
/// Pages that are fetched ahead unless told otherwise: more would delay the pages of others (128 KiB take 1 ms at 1 Gbit/s).
const PREFETCH: u64 = 32;
/// MiB that the stream may have in flight unless told otherwise.
const WINDOW: u16 = 4;
/// The most connections of the stream unless told otherwise: each has a thread on both sides (two with TLS), and four are enough for what a
/// processor encrypts and copies at 100 Gbit/s.
const MAX_STREAMS: usize = 4;
/// How long the source may take to answer, and how long a lost one is tried for, unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(60);

/// Fills regions until all are complete, or something says no.
pub(crate) fn run(args: &Receive) -> Result<(), Failure> {
    let service = Service::of_this_process();
    let mut report = Report::new(args.json);
    let mut run = Run {
        since: Instant::now(),
        stats: Arc::new(Stats::new()?),
        regions: Vec::new(),
        metrics: None,
        open: Vec::new(),
        control: None,
        at_end: None,
        touches: args.report_touches.then(|| Arc::new(Touches::new())),
        stopping: Stopping::default(),
        kept: KeptRegions::take(service)?,
        _origin: None,
    };
    let result = run.receive(args, &service, &mut report);
    let goes_on = result.as_ref().is_err_and(Failure::is_passing) && !run.stopping.is_requested();
    run.report_touches(&mut report, true);
    let status = (!run.regions.is_empty()).then(|| run.status());
    report.end(status.as_ref(), result.as_ref().err());
    run.finish(goes_on);
    result
}

struct Run {
    since: Instant,
    stats: Arc<Stats>,
    regions: Vec<Completion>,
    metrics: Option<Destination>,
    /// What has to be let go of.
    open: Vec<Weak<Region>>,
    control: Option<ControlServer>,
    /// What [`Source`] has to do at the end.
    at_end: Option<Box<dyn FnOnce()>>,
    /// Requests that are to be reported.
    touches: Option<Arc<Touches>>,
    stopping: Stopping,
    /// Regions that outlive this process.
    kept: KeptRegions,
    /// Proves to others where the absent pages are, as long as it is open.
    _origin: Option<File>,
}

impl Run {
    fn receive(&mut self, args: &Receive, service: &Service, report: &mut Report) -> Result<(), Failure> {
        let Source {
            connect,
            endpoint,
            mut warnings,
            confinement,
            at_end,
            publish,
            files: backing_files,
        } = Source::open(args, self.kept.has_any())?;
        self.at_end = at_end;
        let images = seed::open(&args.seed_image)?;
        let socket = Socket::open(args.control.as_ref(), args.session.as_ref(), Duty::Fetch)?;
        let control = Control::open().map_err(Failure::kernel("no vmem"))?;
        let unless = if args.resume { Unbound::Retries } else { Unbound::Fails };
        let metrics = args.metrics.map(|address| Listener::bind(address, unless)).transpose()?;
        let files = RegionFiles::open(&args.files.clone().unwrap_or_default());
        if let Some(error) = files.error() {
            tracing::info!("{}; programs find regions in {}", chain(error), vmem::DIRECTORY);
        }
        // All that takes root is open. There is no other thread yet.
        let (user, readable) = confinement;
        let user = args.user.map_or(user, User::new);
        warnings.extend(privileges::drop_to(user, Needs::Descriptors, &readable)?.map(str::to_owned));
        warnings.extend(args.without_effect());
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let stopping = self.stopping.clone();
        stopping.handle_signals()?;
        let (timeout, retry) = (args.timeout.unwrap_or(TIMEOUT), args.retry.unwrap_or(RETRY));
        // A connection is opened and answers within the one; a source that tries again by itself does so for the other.
        let patience = retry.saturating_add(timeout.saturating_mul(2));
        let liveness = service.liveness();
        let pulse = liveness.watch("main");
        pulse.waits(patience);
        service.watch(&liveness).map_err(Failure::local("cannot start a thread"))?;
        let mut images = SeedImages::start(images)?;
        let mut orders = Orders::new(args.hold, args.release);
        if let Some(socket) = socket {
            let server = socket.serve(orders.service(&stopping))?;
            report.publish_to(server.publisher());
            self.control = Some(server);
        }
        self.metrics = metrics.map(Destination::listen);
        let first = connect(Lane::Urgent).map_err(Failure::Source)?;
        let exports = regions::taken(first.exports(), args)?;
        pulse.works();
        let regions = regions::open(&control, &files, &exports, args, &mut self.kept)?;
        if args.hold {
            // Nobody would give a vmemd that follows the order to start again.
            self.kept.keep_none();
        } else {
            let can_resume = control.features().map_err(Failure::kernel("GET_FEATURES"))?.resume;
            let names = regions::names(&exports, args);
            let named = names.iter().zip(&exports).zip(&regions);
            let named = named.map(|((name, export), region)| (name.as_str(), export, &**region));
            self.kept.keep(named, can_resume);
        }
        report.show_paths(files);
        let backings = Backings::new(backing_files, args, &control)?;
        backings.withdraw(&regions)?;
        // What the network says from now on reaches these regions and no other one.
        drop(control);
        let numbers = regions.iter().map(|region| region.id());
        let memories = numbers.zip(exports.iter().map(|export| export.name.to_string())).collect();
        self._origin = publish.and_then(|publish| publish(memories));
        let mut targets = Vec::new();
        for ((export, region), name) in exports.iter().zip(&regions).zip(regions::names(&exports, args)) {
            let sink = Arc::clone(region) as Arc<dyn Sink>;
            self.regions
                .push(Completion::new(name.clone(), export.pages, Arc::clone(&sink))?);
            let export = export.clone();
            targets.push(Target { export, name, sink });
        }
        self.open = regions.iter().map(Arc::downgrade).collect();
        if self.control.is_none() {
            orders.listen(args.json)?;
        }
        let window = u64::from(args.window.unwrap_or(WINDOW)) * (1 << 20) / PAGE_SIZE as u64;
        // Files are opened once for each lane.
        let streams = endpoint
            .as_ref()
            .map_or(1, |_| args.streams.map_or_else(default_streams, usize::from));
        let mut staging = match &endpoint {
            Some(endpoint) if args.stage => {
                if let Some(started) = self.regions.iter().find(|region| region.state().present > 0) {
                    return Err(Failure::HasPages(started.name().to_owned()));
                }
                let sources = endpoint.connect_rounds(streams).map_err(Failure::Source)?;
                let sources = sources.into_iter().map(|source| Box::new(source) as Box<dyn StagingSource>);
                Some(Staging::start(
                    &targets,
                    sources.collect(),
                    window,
                    images.seed().as_ref(),
                    &self.stats,
                )?)
            }
            _ => None,
        };
        if args.hold {
            stopping.holds(orders.sender());
            report.holding(&args.source.join(" "), &self.status());
            service.ready();
            while !orders.wait_for_start(TICK)? {
                if let Some(failure) = staging.as_mut().and_then(Staging::failure) {
                    return Err(failure.into());
                }
                pulse.works();
                images.report();
                report.progress(&self.status());
            }
        }
        stopping.starts()?;
        pulse.waits(timeout);
        let staged = staging.map(|staging| staging.commit(timeout)).transpose()?;
        let backed = backings.set(&exports, &regions, &regions::names(&exports, args));
        let options = Options {
            background: !args.no_background,
            streams,
            // A store is compressed, and each page of it is verified here.
            yields: args.source.iter().all(|source| is_checkpoint(source)),
            window,
            prefetch: args.prefetch.map_or(if args.no_background { 0 } else { PREFETCH }, u64::from),
            retry,
            liveness: Some(liveness.clone()),
            patience,
            backed,
            seed: images.seed(),
            touches: self.touches.clone(),
        };
        let mut verifying = args.verify.then(|| {
            let stats = Arc::clone(&self.stats);
            Verifying::new(targets.clone(), Arc::clone(&connect), window, stats)
        });
        let (mut engine, events) = {
            let (stats, release) = (Arc::clone(&self.stats), orders.release());
            Engine::start(targets, first, staged, connect, options, stats, release)?
        };
        stopping.runs(events);
        for region in regions {
            region.ready().map_err(Failure::kernel("READY"))?;
        }
        report.ready(&args.source.join(" "), &self.status());
        service.ready();
        let choices = CompletionOptions {
            populate: !args.no_populate,
            detach_unmapped: args.detach_unmapped,
        };
        let lingering = Lingering::new(args.complete_after);
        let parts = Watched {
            verifying: verifying.as_mut(),
            lingering,
            images: &mut images,
            pulse: &pulse,
        };
        let result = self.watch(&mut engine, choices, parts, report);
        engine.stop();
        // For the summary. If the kernel has nothing to say, it stays at what it said before.
        self.regions.iter_mut().for_each(|region| drop(region.refresh()));
        result
    }

    /// Takes regions to their end until none is left, or something says that it is over.
    fn watch(
        &mut self,
        engine: &mut Engine,
        choices: CompletionOptions,
        parts: Watched<'_>,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let Watched {
            mut verifying,
            mut lingering,
            images,
            pulse,
        } = parts;
        loop {
            pulse.works();
            let holds_back = verifying.as_ref().is_some_and(|verifying| verifying.holds_back());
            let lingers = lingering.lingers(&self.regions);
            let mut more = false;
            let idle = engine.is_idle();
            for (number, region) in self.regions.iter_mut().enumerate() {
                let before = region.phase();
                let known = idle && region.is_present_or_unreadable() && engine.fetch_unreadable(number)?;
                if holds_back {
                    region.refresh()?;
                    if known {
                        return Err(Failure::Unreadable(region.state().unreadable));
                    }
                    continue;
                }
                if lingers && !known {
                    region.refresh()?;
                    continue;
                }
                more |= region.step(choices, known)?;
                if region.phase() != before {
                    report.phase(&RegionStatus::from(&*region));
                }
            }
            if let Some(verifying) = &mut verifying {
                if let Some(verified) = verifying.step(&self.regions)? {
                    report.progress(&self.status());
                    report.verified(&verified);
                    verifying::check(&verified)?;
                    continue;
                }
            }
            if engine.is_release_complete() && self.regions.iter().all(|region| region.phase() != Phase::Filling) {
                // From now on the source may go: somebody may map a complete region long after.
                engine.halt();
            }
            images.report();
            self.report_touches(report, false);
            let now = self.status();
            report.progress(&now);
            if let Some(metrics) = &self.metrics {
                metrics.set(now);
            }
            if engine.is_release_complete() && self.regions.iter().all(Completion::is_done) {
                return match self.regions.iter().map(|region| region.state().unreadable).sum() {
                    0 => Ok(()),
                    pages => Err(Failure::Unreadable(pages)),
                };
            }
            let tick = match &verifying {
                _ if more => Duration::ZERO,
                Some(verifying) if verifying.is_comparing() => SHORT_TICK,
                _ => TICK,
            };
            match engine.next_event(tick) {
                Some(Event::Disconnected { lane, error }) => report.lost(lane, &error),
                Some(Event::Reconnected { lane }) => report.back(lane),
                Some(Event::NoMemory { name }) => report.short(&name),
                Some(Event::Ended(result)) => result?,
                Some(Event::Signal) => return Err(Failure::Stopped),
                None => {}
            }
        }
    }

    /// Lets go of everything, and answers who has asked for that. If another vmemd `goes_on`, systemd keeps what it keeps; it closes that by itself if
    /// it starts none.
    fn finish(mut self, goes_on: bool) {
        if !goes_on {
            self.kept.release();
        }
        let Self {
            regions,
            open,
            control,
            at_end,
            ..
        } = self;
        drop(regions);
        if let Some(at_end) = at_end {
            at_end();
        }
        // A thread that does not end keeps its region until the process has ended.
        let has_let_go = open.iter().all(|region| region.strong_count() == 0);
        if let Some(control) = control {
            control.finish(has_let_go);
        }
    }

    fn report_touches(&self, report: &mut Report, is_over: bool) {
        if let Some(touches) = &self.touches {
            let names: Vec<_> = self.regions.iter().map(Completion::name).collect();
            report.touches(touches, &names, is_over);
        }
    }

    fn status(&self) -> Status {
        Status::take(self.since, &self.stats, &self.regions)
    }
}

/// The number of processors, within reason: a stream that has no processor of its own gains nothing.
fn default_streams() -> usize {
    std::thread::available_parallelism().map_or(1, |processors| processors.get().min(MAX_STREAMS))
}

/// What is looked at while regions are filled, besides these.
struct Watched<'a> {
    verifying: Option<&'a mut Verifying>,
    lingering: Lingering,
    images: &'a mut SeedImages,
    /// Of the main thread.
    pulse: &'a Pulse,
}

/// Proves to others where the absent pages of these regions are, as long as the file is open: by numbers, with the names of exports.
type Publish = Box<dyn FnOnce(BTreeMap<u64, String>) -> Option<File>>;

/// How `--source` is opened.
struct Source {
    connect: Connect,
    /// Of a source on the network.
    endpoint: Option<Arc<Endpoint>>,
    /// What is to be said about it.
    warnings: Vec<String>,
    /// Who vmemd is while it reads the source, unless told otherwise, and what it reads.
    confinement: (User, Files),
    /// What is to be done when nothing is read any more.
    at_end: Option<Box<dyn FnOnce()>>,
    /// Of a checkpoint.
    publish: Option<Publish>,
    /// Files that the kernel may read by itself.
    files: Vec<BackingFile>,
}

impl Source {
    /// Files are opened here, once for each lane and once for `--verify`, while this is root.
    fn open(args: &Receive, is_kept: bool) -> Result<Self, Failure> {
        let files: Vec<_> = args.source.iter().filter_map(|source| source.strip_prefix("file:")).collect();
        if files.len() == args.source.len() {
            let open = || Local::open(files.iter().copied()).map_err(Failure::Source);
            let lanes = if args.verify { 3 } else { 2 };
            let opened = (0..lanes).map(|_| open()).collect::<Result<Vec<_>, _>>();
            let opened = opened?;
            let files = opened
                .first()
                .map_or(Ok(Vec::new()), Local::backing_files)
                .map_err(Failure::Source)?;
            let opened = Mutex::new(opened);
            // They are not lost, and not opened again.
            let none = || vmem_source::Error::InvalidFetch("a file is open already".to_owned());
            let connect = move |_| {
                let local = opened.lock().unwrap_or_else(PoisonError::into_inner).pop();
                local.map(|local| Box::new(local) as Box<dyn PageSource>).ok_or_else(none)
            };
            return Ok(Self {
                connect: Arc::new(connect),
                endpoint: None,
                warnings: Vec::new(),
                confinement: (User::NOBODY, Files::default()),
                at_end: None,
                publish: None,
                files,
            });
        }
        let [host] = &args.source[..] else {
            return Err(Failure::Sources);
        };
        if let Some(address) = host.strip_prefix("checkpoint:") {
            if args.key().is_stdin() && args.takes_orders_from_stdin() {
                let why = "--key-file - and orders cannot both come over standard input: give a file, or a path with --control";
                return Err(Failure::Source(vmem_source::Error::Checkpoint(why.into())));
            }
            let existing = match (is_kept, args.resume || args.attach) {
                (true, _) => Existing::Kept,
                (false, true) => Existing::Attached,
                (false, false) => Existing::No,
            };
            return stored::open(address, &args.key(), existing);
        }
        let timeout = args.timeout.unwrap_or(TIMEOUT);
        if is_nbd(host) {
            return exported::open(host, args, timeout);
        }
        let mut warnings = Vec::new();
        let security = match &args.tls {
            Some(directory) => {
                let identity = Identity::load_allowing(directory, &args.allow_names)?;
                warnings.extend_from_slice(identity.warnings());
                Security::Tls(identity)
            }
            None if args.insecure => Security::Insecure,
            None => Security::Loopback,
        };
        let endpoint = Endpoint::new(&with_port(host, DEFAULT_PORT), security, timeout);
        // A page that a program waits for takes 7 us longer with LZ4 (25 and 18 us over loopback), and is 1 KiB shorter: that gains something
        // below 1 Gbit/s alone (example `streams` of vmem-source).
        let endpoint = Arc::new(endpoint.compress(args.compress.unwrap_or_default(), Compression::None));
        let to = Arc::clone(&endpoint);
        let connect = move |lane| to.connect(lane).map(|peer| Box::new(peer) as Box<dyn PageSource>);
        Ok(Self {
            connect: Arc::new(connect),
            endpoint: Some(endpoint),
            warnings,
            confinement: (User::NOBODY, Files::default().and_certificates(args.tls.as_ref())),
            at_end: None,
            publish: None,
            files: Vec::new(),
        })
    }
}
