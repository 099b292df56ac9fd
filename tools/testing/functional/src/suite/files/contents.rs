// SPDX-License-Identifier: GPL-2.0-or-later
//! What is in the file of a region: reads and writes, which wait for pages, holes, and what makes holes.

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, IoSliceMut, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Advice, FallocateFlags, OFlags, SeekFrom, fadvise, fallocate, seek, sendfile};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2, readv};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use rustix::process::Signal;
use vmem::PAGE_SIZE;
use vmem_functional_sys::{AreaBuilder, MemoryAt, write_from};

use super::{Mount, region};
use crate::adopted::Adopted;
use crate::failure::{Outcome, ensure, equal, refused};
use crate::image::Image;
use crate::program::Program;
use crate::server::Server;
use crate::setting::{Setting, bytes_of, check_page, contents, pages};
use crate::tracked::Tracked;
use crate::world::{run_command, wait_until};

crate::tests![
    reads_of_every_kind_wait_for_their_pages,
    read_requests_its_pages_together,
    read_waits_though_a_signal_comes_and_can_be_killed,
    call_that_may_not_wait_is_eagain_and_poll_says_when,
    read_of_what_cannot_come_is_eio,
    write_goes_onto_the_contents_and_ends_with_the_file,
    write_to_a_tracked_region_is_logged_and_kept,
    write_from_a_page_that_does_not_come_holds_up_nobody_else,
    punch_discards_before_and_after_conversion,
    punch_zeroes_parts_of_pages,
    willneed_and_readahead_request_without_waiting,
    other_ways_to_change_a_file_are_refused,
];

const PAGES: usize = 32;

/// A region with a name, and its file.
struct Named {
    file: File,
    setting: Setting,
    mount: Mount,
}

impl Named {
    fn new() -> Outcome<Self> {
        let (mount, setting) = (Mount::new("a")?, Setting::create(region("one", PAGES))?);
        let file = mount.open("one")?;
        Ok(Self { file, setting, mount })
    }

    /// The file once more, with these flags.
    fn open(&self, flags: OFlags) -> Outcome<File> {
        self.mount.open_with("one", flags)
    }

    /// What the file holds now.
    fn bytes(&self) -> Outcome<Vec<u8>> {
        let mut bytes = vec![0; PAGES * PAGE_SIZE];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

/// What these pages hold.
fn expected(pages: usize) -> Vec<u8> {
    (0..pages as u64).flat_map(|pgoff| bytes_of(&contents(pgoff))).collect()
}

fn reads_of_every_kind_wait_for_their_pages() -> Outcome {
    type Way = fn(&File) -> Outcome<Vec<u8>>;
    let ways: [(&str, Way); 5] = [
        ("read", |mut file| {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        }),
        ("readv", |file| {
            let (mut first, mut rest) = (vec![0; 5000], vec![0; PAGES * PAGE_SIZE - 5000]);
            let nr = readv(file, &mut [IoSliceMut::new(&mut first), IoSliceMut::new(&mut rest)])?;
            equal!(nr, PAGES * PAGE_SIZE);
            first.append(&mut rest);
            Ok(first)
        }),
        ("sendfile", |file| {
            let (from, to) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            receive(to.into(), PAGES * PAGE_SIZE, || {
                Ok(sendfile(&from, file, None, PAGES * PAGE_SIZE)?)
            })
        }),
        ("splice", |file| {
            let (out, into) = pipe_with(PipeFlags::CLOEXEC)?;
            receive(out.into(), PAGES * PAGE_SIZE, || {
                Ok(splice(file, None, &into, None, PAGES * PAGE_SIZE, SpliceFlags::empty())?)
            })
        }),
        ("pread with O_DIRECT", |file| {
            let mut bytes = vec![0; PAGES * PAGE_SIZE];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        }),
    ];
    for (name, way) in ways {
        let named = Named::new()?;
        let file = named.open(if name.ends_with("O_DIRECT") {
            OFlags::DIRECT
        } else {
            OFlags::empty()
        })?;
        let server = Server::start(&named.setting.region);
        let bytes = way(&file)?;
        ensure!(bytes == expected(PAGES), "{name}: other bytes than the daemon's");
        equal!(server.stop()?.len(), PAGES);
    }
    // From one file to another of the file system; to another file system it is EXDEV, as between any two.
    let named = Named::new()?;
    let target = Setting::create(region("two", PAGES))?;
    target.region.mark_zero(&[pages(0, PAGES)]).complete()?;
    let server = Server::start(&named.setting.region);
    let mut copied = 0;
    let two = named.mount.open("two")?;
    while copied < PAGES * PAGE_SIZE {
        copied += rustix::fs::copy_file_range(&named.file, None, &two, None, PAGES * PAGE_SIZE - copied)?;
    }
    drop(server);
    let area = target.area()?;
    (0..PAGES).try_for_each(|page| check_page(&area, page, page))?;
    refused!(
        rustix::fs::copy_file_range(&named.file, Some(&mut 0), File::create("/tmp/other")?, None, 1),
        XDEV
    );
    Ok(())
}

/// Calls `send` until so many bytes have come out of `from`, in another thread.
fn receive(mut from: File, len: usize, send: impl Fn() -> Outcome<usize>) -> Outcome<Vec<u8>> {
    let receiver = std::thread::spawn(move || {
        let mut bytes = vec![0; len];
        from.read_exact(&mut bytes).map(|()| bytes)
    });
    let mut sent = 0;
    while sent < len {
        sent += send()?;
    }
    Ok(receiver.join().map_err(|_| "the receiver panicked")??)
}

fn read_requests_its_pages_together() -> Outcome {
    let named = Named::new()?;
    named.setting.fill([4])?;
    let reader = Program::start(|| {
        let mut bytes = vec![0; 8 * PAGE_SIZE];
        named.file.read_exact_at(&mut bytes, PAGE_SIZE as u64 + 100)?;
        equal!(bytes, expected(10)[PAGE_SIZE + 100..9 * PAGE_SIZE + 100]);
        Ok(vec![])
    })?;
    named.setting.wait_waiters(1)?;
    let wanted: Vec<_> = named
        .setting
        .region
        .next_requests(64)?
        .iter()
        .map(|page| page.get())
        .collect();
    equal!(wanted, [1, 2, 3, 5, 6, 7, 8, 9]);
    // The order in which they come does not matter.
    named.setting.fill([9, 8, 7, 6, 5, 3, 2])?;
    named.setting.wait_waiters(1)?;
    named.setting.fill([1])?;
    reader.join()?;
    named.setting.no_request()
}

fn read_waits_though_a_signal_comes_and_can_be_killed() -> Outcome {
    let named = Named::new()?;
    let read = |pgoff: u64| {
        Program::start(|| {
            vmem_functional_sys::catch_signal(Signal::USR1.as_raw(), false)?;
            let mut bytes = vec![0; PAGE_SIZE];
            // One call: a wrapper that repeats it would hide that a signal ends it.
            equal!(named.file.read_at(&mut bytes, pgoff * PAGE_SIZE as u64)?, PAGE_SIZE);
            Ok(vec![
                u64::from(bytes == bytes_of(&contents(pgoff))),
                vmem_functional_sys::caught() as u64,
            ])
        })
    };
    let (killed, reader) = (read(1)?, read(2)?);
    named.setting.wait_waiters(2)?;
    killed.signal(Signal::KILL)?;
    killed.join_killed(Signal::KILL)?;
    reader.signal(Signal::USR1)?;
    reader.wait_asleep()?;
    named.setting.wait_waiters(1)?;
    named.setting.fill([2])?;
    equal!(reader.join()?, [1, 1]);
    Ok(())
}

fn call_that_may_not_wait_is_eagain_and_poll_says_when() -> Outcome {
    let named = Named::new()?;
    let file = named.open(OFlags::NONBLOCK)?;
    let ready = |timeout: Option<i64>| {
        let mut fds = [PollFd::new(&file, PollFlags::IN | PollFlags::OUT)];
        let timeout = timeout.map(|ms| Timespec::try_from(Duration::from_millis(ms as u64)).unwrap_or_default());
        poll(&mut fds, timeout.as_ref())?;
        Ok::<_, Errno>(fds[0].revents())
    };
    let both = PollFlags::IN | PollFlags::OUT;
    equal!(ready(Some(0))?, both);
    refused!(file.read_at(&mut [0; 10], 0), AGAIN);
    refused!(file.write_at(b"x", PAGE_SIZE as u64), AGAIN);
    equal!(named.setting.region.next_requests(64)?.len(), 2);
    equal!(ready(Some(20))?, PollFlags::empty());
    // Another page than the one that was refused.
    named.setting.fill([0])?;
    equal!(ready(Some(20))?, PollFlags::empty());
    let fills = std::thread::scope(|scope| {
        let filler = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            named.setting.fill([1])
        });
        equal!(ready(None)?, both);
        filler.join().map_err(|_| "the filler panicked")?
    });
    fills?;
    equal!(file.write_at(b"x", PAGE_SIZE as u64)?, 1);
    // As far as there are pages.
    equal!(file.read_at(&mut vec![0; 5 * PAGE_SIZE], 0)?, 2 * PAGE_SIZE);
    // The end of the daemon is an end of the wait where touches fail.
    let other = Setting::create(region("two", 4).sigbus_without_daemon())?;
    let (two, descriptor) = (named.mount.open("two")?, open_nonblocking(&named.mount)?);
    refused!(descriptor.read_at(&mut [0; 10], 0), AGAIN);
    drop(other);
    let mut fds = [PollFd::new(&descriptor, PollFlags::IN)];
    poll(&mut fds, None)?;
    refused!(descriptor.read_at(&mut [0; 10], 0), IO);
    drop(two);
    // RWF_NOWAIT is the same for a descriptor that waits. A write has no such way, as in other file systems.
    let mut bytes = [0; 10];
    let mut read = |at: usize| {
        preadv2(
            &named.file,
            &mut [IoSliceMut::new(&mut bytes)],
            at as u64,
            ReadWriteFlags::NOWAIT,
        )
    };
    equal!(read(0)?, 10);
    refused!(read(8 * PAGE_SIZE), AGAIN);
    equal!(named.setting.region.next_requests(64)?.last().map(|page| page.get()), Some(8));
    for (flags, errno) in [(OFlags::empty(), Errno::INVAL), (OFlags::DIRECT, Errno::OPNOTSUPP)] {
        let write = pwritev2(named.open(flags)?, &[IoSlice::new(b"x")], 0, ReadWriteFlags::NOWAIT);
        equal!(write, Err(errno));
    }
    Ok(())
}

fn open_nonblocking(mount: &Mount) -> Outcome<File> {
    let nonblock = OFlags::NONBLOCK.bits() as i32;
    Ok(OpenOptions::new().read(true).custom_flags(nonblock).open(mount.path("two"))?)
}

fn read_of_what_cannot_come_is_eio() -> Outcome {
    let named = Named::new()?;
    named.setting.region.mark_unreadable(&[pages(2, 1)]).complete()?;
    named.setting.fill([0, 1])?;
    let mut bytes = vec![0; 4 * PAGE_SIZE];
    equal!(named.file.read_at(&mut bytes, 0)?, 2 * PAGE_SIZE);
    refused!(named.file.read_at(&mut bytes, 2 * PAGE_SIZE as u64), IO);
    refused!(named.file.write_at(b"x", 2 * PAGE_SIZE as u64), IO);
    let limited = Setting::create(region("two", 4).fault_timeout(Duration::from_millis(20)))?;
    let two = named.mount.open("two")?;
    refused!(two.read_at(&mut bytes, 0), IO);
    // That is for this call alone: the page may still come.
    equal!(limited.region.info()?.unreadable, 0);
    limited.fill([0])?;
    equal!(two.read_at(&mut bytes[..PAGE_SIZE], 0)?, PAGE_SIZE);
    let orphan = Setting::create(region("three", 4).sigbus_without_daemon())?;
    let three = named.mount.open("three")?;
    drop(orphan);
    wait_until("a read fails at once", || match three.read_at(&mut bytes, 0) {
        Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Ok(true),
        other => Err(format!("{other:?}").into()),
    })
}

fn write_goes_onto_the_contents_and_ends_with_the_file() -> Outcome {
    const END: u64 = (PAGES * PAGE_SIZE) as u64;
    let named = Named::new()?;
    let server = Server::start(&named.setting.region);
    let area = AreaBuilder::default().map(&named.file, 0, PAGES)?;
    let mut expected = expected(PAGES);
    let bytes: Vec<u8> = (0..20_000).map(|at| (at % 251) as u8).collect();
    equal!(named.file.write_at(&bytes, 3000)?, bytes.len());
    expected[3000..23_000].copy_from_slice(&bytes);
    // What the daemon brings later does not overwrite it.
    ensure!(named.bytes()? == expected);
    for page in 0..PAGES {
        ensure!(
            bytes_of(&area.page(page)) == expected[page * PAGE_SIZE..][..PAGE_SIZE],
            "page {page}"
        );
    }
    equal!(named.file.write_at(b"abcdef", END - 3)?, 3);
    refused!(named.file.write_at(b"x", END), NOSPC);
    refused!(std::io::Write::write(&mut named.open(OFlags::APPEND)?, b"x"), NOSPC);
    // Through a pipe, and of what is mapped.
    let (out, into) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::write(&into, b"through a pipe")?;
    equal!(splice(&out, None, &named.file, Some(&mut 100), 14, SpliceFlags::empty())?, 14);
    let mut found = [0; 14];
    named.file.read_exact_at(&mut found, 100)?;
    equal!(&found, b"through a pipe");
    // Memory of the region itself, onto itself: no deadlock.
    seek(&named.file, SeekFrom::Start(8 * PAGE_SIZE as u64))?;
    let own = MemoryAt {
        area: &area,
        offset: 8 * PAGE_SIZE,
        len: 2 * PAGE_SIZE,
    };
    equal!(write_from(&named.file, own)?, 2 * PAGE_SIZE);
    check_page(&area, 8, 8)?;
    drop(server);
    named.file.sync_all()?;
    Ok(())
}

fn write_to_a_tracked_region_is_logged_and_kept() -> Outcome {
    let named = Named::new()?;
    named.setting.fill_all()?;
    for plain in [false, true] {
        if plain {
            named.setting.region.make_vma_anonymous()?;
        }
        let log = Adopted::new(&named.file)?;
        log.track()?;
        let memory = Tracked {
            file: named.setting.region.staging().try_clone()?,
            area: AreaBuilder::default().map(&named.file, 0, PAGES)?,
            log,
        };
        memory.logs([3, 4], |time| {
            Ok(named
                .file
                .write_all_at(&[time; 100], 5 * PAGE_SIZE as u64 - 50 - PAGE_SIZE as u64)?)
        })?;
        memory.logs([7], |time| {
            named.file.write_all_at(&[time], 7 * PAGE_SIZE as u64)?;
            punch(&named.file, 7 * PAGE_SIZE + 50, 60)
        })?;
        memory.logs([9], |time| {
            named.file.write_all_at(&[time; PAGE_SIZE], 9 * PAGE_SIZE as u64)?;
            Ok(())
        })?;
        memory.logs_once([11], || punch(&named.file, 11 * PAGE_SIZE, PAGE_SIZE))?;
        memory.logs_nothing(|| named.bytes().map(drop))?;
        // While a snapshot is read and writers write, it has what was there.
        let before = memory.bytes()?;
        let image = Image::take(&memory.log, 0, 0)?;
        named.file.write_all_at(&vec![0xee; PAGES * PAGE_SIZE], 0)?;
        image.check(&before)?;
        named.file.write_all_at(&before, 0)?;
        named.file.write_all_at(&expected(PAGES), 0)?;
    }
    Ok(())
}

fn write_from_a_page_that_does_not_come_holds_up_nobody_else() -> Outcome {
    let named = Named::new()?;
    named.setting.fill([1, 2])?;
    let writer = Program::start(|| {
        let area = AreaBuilder::default().map(&named.file, 0, PAGES)?;
        seek(&named.file, SeekFrom::Start(PAGE_SIZE as u64))?;
        // From page 5, which is absent, onto page 1.
        let from = MemoryAt {
            area: &area,
            offset: 5 * PAGE_SIZE,
            len: PAGE_SIZE,
        };
        equal!(write_from(&named.file, from)?, PAGE_SIZE);
        Ok(area.page(1))
    })?;
    named.setting.wait_waiters(1)?;
    // These take the locks that a write to a file of shared memory would hold meanwhile.
    named.setting.region.mark_zero(&[pages(8, 4)]).complete()?;
    punch(&named.file, 2 * PAGE_SIZE, PAGE_SIZE)?;
    named.file.write_all_at(b"x", 2 * PAGE_SIZE as u64)?;
    equal!(named.setting.take_request()?, 5);
    named.setting.fill([5])?;
    crate::setting::check_words(&writer.join()?, 5)
}

fn punch(file: &File, offset: usize, len: usize) -> Outcome {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, punch, offset as u64, len as u64)?)
}

fn punch_discards_before_and_after_conversion() -> Outcome {
    let named = Named::new()?;
    let memory = |pages: usize| -> Outcome {
        equal!(
            named.setting.region.staging().metadata()?.blocks(),
            (pages * PAGE_SIZE / 512) as u64
        );
        Ok(())
    };
    named.setting.fill(0..16)?;
    let area = AreaBuilder::default().map(&named.file, 0, PAGES)?;
    check_page(&area, 4, 4)?;
    // Present and absent ones: a balloon does not ask.
    punch(&named.file, 4 * PAGE_SIZE, 20 * PAGE_SIZE)?;
    memory(4)?;
    equal!(named.setting.region.info()?.present, 24);
    named.setting.no_request()?;
    ensure!(named.file.read_at(&mut [1; 8], 20 * PAGE_SIZE as u64)? == 8);
    crate::setting::check_zero(&area, 4)?;
    crate::setting::check_zero(&area, 23)?;
    check_page(&area, 3, 3)?;
    named.setting.region.mark_zero(&[pages(0, PAGES)]).complete()?;
    area.write_page(10, &contents(10));
    named.setting.region.make_vma_anonymous()?;
    check_page(&area, 10, 10)?;
    punch(&named.file, 4 * PAGE_SIZE, 20 * PAGE_SIZE)?;
    memory(4)?;
    crate::setting::check_zero(&area, 10)?;
    check_page(&area, 3, 3)?;
    // Beyond the end there is nothing.
    punch(&named.file, PAGES * PAGE_SIZE, PAGE_SIZE)?;
    punch(&named.file, 0, 10 * PAGES * PAGE_SIZE)
}

fn punch_zeroes_parts_of_pages() -> Outcome {
    let named = Named::new()?;
    let server = Server::start(&named.setting.region);
    let mut expected = expected(PAGES);
    for (offset, len) in [
        (100, 50),
        (5000, 20_000),
        (40_000, 960),
        (PAGE_SIZE * 12, 10),
        (PAGE_SIZE * 20 - 7, PAGE_SIZE + 7),
    ] {
        punch(&named.file, offset, len)?;
        expected[offset..offset + len].fill(0);
        ensure!(named.bytes()? == expected, "{len} bytes at {offset}");
    }
    drop(server);
    // Of a file whose length is no multiple of a page.
    let odd = Setting::create(vmem::RegionBuilder::new(5000).name("two"))?;
    odd.fill_all()?;
    let two = named.mount.open("two")?;
    punch(&two, PAGE_SIZE, 1 << 20)?;
    equal!(odd.region.staging().metadata()?.blocks(), 8);
    let mut bytes = vec![1; 5000];
    two.read_exact_at(&mut bytes, 0)?;
    ensure!(bytes[PAGE_SIZE..].iter().all(|byte| *byte == 0) && bytes[..PAGE_SIZE] == expected_page(0));
    Ok(())
}

fn expected_page(pgoff: u64) -> Vec<u8> {
    bytes_of(&contents(pgoff))
}

fn willneed_and_readahead_request_without_waiting() -> Outcome {
    const PAGE: u64 = PAGE_SIZE as u64;
    let named = Named::new()?;
    named.setting.fill([5])?;
    for advice in [
        Advice::Normal,
        Advice::Sequential,
        Advice::Random,
        Advice::NoReuse,
        Advice::DontNeed,
    ] {
        fadvise(&named.file, 0, None, advice)?;
    }
    named.setting.no_request()?;
    fadvise(
        &named.file,
        4 * PAGE + 100,
        std::num::NonZeroU64::new(3 * PAGE),
        Advice::WillNeed,
    )?;
    let wanted = || -> Outcome<Vec<u64>> {
        Ok(named
            .setting
            .region
            .try_next_requests(64)?
            .iter()
            .map(|page| page.get())
            .collect())
    };
    equal!(wanted()?, [4, 6, 7]);
    fadvise(&named.file, 30 * PAGE, None, Advice::WillNeed)?;
    equal!(wanted()?, [30, 31]);
    fadvise(&named.file, 100 * PAGE, None, Advice::WillNeed)?;
    equal!(wanted()?, Vec::<u64>::new());
    // readahead(2) has no wrapper here.
    let script =
        "import ctypes, os; f = os.open('/mnt/a/one', 0); assert ctypes.CDLL(None).readahead(f, ctypes.c_long(40960), 8192) == 0";
    run_command("python3", &["-c", script])?;
    equal!(wanted()?, [10, 11]);
    equal!(named.setting.region.info()?.present, 1);
    Ok(())
}

fn other_ways_to_change_a_file_are_refused() -> Outcome {
    let named = Named::new()?;
    named.setting.fill_all()?;
    let change = |flags| fallocate(&named.file, flags, 0, PAGE_SIZE as u64);
    refused!(change(FallocateFlags::empty()), OPNOTSUPP);
    refused!(change(FallocateFlags::KEEP_SIZE), OPNOTSUPP);
    refused!(change(FallocateFlags::ZERO_RANGE), OPNOTSUPP);
    refused!(change(FallocateFlags::COLLAPSE_RANGE), OPNOTSUPP);
    refused!(change(FallocateFlags::INSERT_RANGE), OPNOTSUPP);
    let two = Setting::create(region("two", PAGES))?;
    refused!(rustix::fs::ioctl_ficlone(named.mount.open("two")?, &named.file), OPNOTSUPP);
    refused!(
        rustix::fs::fsetxattr(&named.file, "user.x", b"y", rustix::fs::XattrFlags::empty()),
        OPNOTSUPP
    );
    equal!(two.region.info()?.present, 0);
    ensure!(named.bytes()? == expected(PAGES));
    Ok(())
}
