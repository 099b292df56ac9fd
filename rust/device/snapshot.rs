// SPDX-License-Identifier: GPL-2.0

//! SNAPSHOT: images of one or several memories at one instant.

use super::{
    image::{
        Image,
        Snapshot, //
    },
    image_file::{
        self,
        OpenImage, //
    },
    tracked::Tracked,
    tracking::LogReader, //
};
use crate::{
    model::dirty_log::{
        runs,
        CHUNK_PAGES, //
    },
    sys::{
        file::reserve_fd,
        task::{
            cond_resched_or_killed,
            sleep_killable, //
        },
        uapi::{
            vmem_snapshot,
            vmem_snapshot_member,
            Entries,
            UserArg,
            UserArray,
            VMEM_MAX_MEMBERS,
            VMEM_SNAPSHOT_CLEAN,
            VMEM_SNAPSHOT_ONCE, //
        }, //
    }, //
};
use kernel::{
    prelude::*,
    sync::Arc,
    time::{
        Instant,
        Monotonic, //
    }, //
};

/// How often the locks and the gates are tried.
const TRIES: usize = 100;

/// For how many ticks of the clock the gates stay closed at most while system calls end.
const TICKS: usize = 3;

/// A memory of the snapshot, and its image.
struct Member {
    tracked: Arc<Tracked>,
    image: Arc<Image>,
}

impl Member {
    fn new(tracked: Arc<Tracked>, snapshot: &Arc<Snapshot>) -> Result<Self> {
        if tracked.tracking().copy_before_write().has_image()? {
            return Err(EBUSY);
        }
        let image = Image::new(
            snapshot,
            tracked.memory().shared(),
            tracked.memory().region(),
            tracked.tracking().all(),
        )?;
        Ok(Self { tracked, image })
    }

    /// Moves the pages in the memory's log to the log of the image, and protects them. Held pages
    /// stay in the memory's log; if `keep`, they are copied.
    fn protect(&self, reader: &LogReader<'_>, keep: bool) -> Result {
        for chunk in self.image.all().pieces(CHUNK_PAGES) {
            cond_resched_or_killed()?;
            let found = reader.clean(self.tracked.memory().shared(), chunk)?;
            self.image.log().mark_bits(chunk, &found.dirty);
            if keep {
                for held in runs(chunk, &found.held, 0) {
                    self.image.preserve(held)?;
                }
            }
        }
        Ok(())
    }
}

/// SNAPSHOT. `tracked` gives the log of the memory of an adopted descriptor.
pub(crate) fn snapshot(arg: UserArg, tracked: impl Fn(i32) -> Result<Arc<Tracked>>) -> Result {
    let mut call: vmem_snapshot = arg.read()?;
    let known = VMEM_SNAPSHOT_CLEAN | VMEM_SNAPSHOT_ONCE;
    if call.flags & !known != 0 || call.reserved != [0; 2] || call.nr > VMEM_MAX_MEMBERS {
        return Err(EINVAL);
    }
    let array = UserArray::new(call.members, call.nr)?;
    let mut entries = Entries::<vmem_snapshot_member>::new();
    array.read(&mut entries)?;

    let snapshot = Snapshot::new(call.limit)?;
    let mut members: KVec<Member> = KVec::with_capacity(entries.len(), GFP_KERNEL)?;
    for entry in entries.iter() {
        let tracked = tracked(entry.vmem_fd)?;
        if members
            .iter()
            .any(|m| m.tracked.memory().id() == tracked.memory().id())
        {
            return Err(EINVAL);
        }
        members.push(Member::new(tracked, &snapshot)?, GFP_KERNEL)?;
    }
    // Everything that can fail and does not need the gates closed.
    let mut answer = KVec::with_capacity(members.len(), GFP_KERNEL)?;
    let mut files = KVec::with_capacity(members.len(), GFP_KERNEL)?;
    for (member, entry) in members.iter().zip(entries.iter()) {
        let fd = reserve_fd()?;
        answer.push(
            vmem_snapshot_member {
                vmem_fd: entry.vmem_fd,
                snapshot_fd: fd.reserved_fd() as i32,
            },
            GFP_KERNEL,
        )?;
        let open = OpenImage::new(&member.tracked, &member.image, call.flags)?;
        files.push((fd, image_file::file(open)?), GFP_KERNEL)?;
    }
    let cleans = call.flags & VMEM_SNAPSHOT_CLEAN != 0;
    call.closed_ns = take_images(&members, cleans)?;
    array.write(&answer)?;
    arg.write(&call)?;
    for (fd, file) in files {
        fd.fd_install(file);
    }
    Ok(())
}

/// Takes the images of all members at one instant. Returns how long writers were held up, in
/// nanoseconds. With `cleans` the images have the pages of the logs, also after an error: they are
/// added to the logs again when the images are dropped.
fn take_images(members: &[Member], cleans: bool) -> Result<u64> {
    let readers = lock_logs(members)?;
    let taken = try_take_images(members, &readers);
    for tracking in members.iter().map(|m| m.tracked.tracking()) {
        tracking.copy_before_write().open();
    }
    let closed_ns = taken.map(|since| since.elapsed().as_nanos());
    if !cleans {
        for member in members {
            let tracking = member.tracked.tracking();
            tracking.merge(member.image.log());
        }
    }
    Ok(u64::try_from(closed_ns?).unwrap_or(0))
}

/// The same, but leaves the gates closed, and returns the time at which they were closed.
fn try_take_images(members: &[Member], readers: &[LogReader<'_>]) -> Result<Instant<Monotonic>> {
    // Most pages of the logs can be protected while writers continue.
    for (member, reader) in members.iter().zip(readers) {
        member.protect(reader, false)?;
    }
    let since = close_gates(members)?;
    for (member, reader) in members.iter().zip(readers) {
        member.protect(reader, true)?;
    }
    for member in members {
        member
            .tracked
            .tracking()
            .copy_before_write()
            .set_image(&member.image)?;
    }
    Ok(since)
}

/// Locks the logs of all members for reading. Another snapshot may lock the same logs in another
/// order, so on a conflict all of them are released again.
fn lock_logs(members: &[Member]) -> Result<KVec<LogReader<'_>>> {
    for _ in 0..TRIES {
        let mut readers = KVec::with_capacity(members.len(), GFP_KERNEL)?;
        for member in members {
            match member.tracked.tracking().try_reader() {
                Some(reader) => readers.push(reader, GFP_KERNEL)?,
                None => break,
            }
        }
        if readers.len() == members.len() {
            return Ok(readers);
        }
        drop(readers);
        sleep_killable()?;
    }
    Err(EAGAIN)
}

/// Closes all gates at a time when no system call is writing. Returns when they were closed.
fn close_gates(members: &[Member]) -> Result<Instant<Monotonic>> {
    let gates = || {
        members
            .iter()
            .map(|m| m.tracked.tracking().copy_before_write())
    };
    for _ in 0..TRIES {
        let since = Instant::now();
        gates().for_each(|gate| gate.close());
        for _ in 0..TICKS {
            if gates().all(|gate| gate.is_quiet()) {
                return Ok(since);
            }
            sleep_killable()?;
        }
        // A system call that does not end must not block other writers.
        gates().for_each(|gate| gate.open());
        sleep_killable()?;
    }
    Err(EAGAIN)
}
