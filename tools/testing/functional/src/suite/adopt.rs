// SPDX-License-Identifier: GPL-2.0-or-later
//! VMEM_ADOPT: which memory can be adopted, which cannot, and that a refusal changes nothing.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_get_seals, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Resource, Rlimit, getrlimit, pidfd_getfd, pidfd_open, setrlimit};
use vmem::{Control, PAGE_SIZE};
use vmem_functional_sys::{Area, AreaBuilder, ioctl, ioctl_at};
use vmem_sys::{
    VMEM_ADOPT, VMEM_DIRTY, VMEM_FEATURE_TRACK, VMEM_FILL_PAGES, VMEM_GET_MAP_FD, VMEM_GET_PAGE_REQUEST, VMEM_GET_TRACKING,
    VMEM_MAKE_PAGES_PRESENT, VMEM_MAKE_VMA_ANONYMOUS, VMEM_MARK_PAGE_CACHED, VMEM_MAX_SIZE, VMEM_READY, VMEM_TRACK, VMEM_UNTRACK,
    VMEM_WAIT_READY, calls, vmem_adopt,
};

use crate::adopted::Adopted;
use crate::failure::{Outcome, ensure, equal, refused};
use crate::program::Program;
use crate::setting::{Board, Setting, bytes_of, check_page, close_on_exec, contents};
use crate::tracked::{Tracked, fill, maps_line, memfd};
use crate::world::{module_users, wait_until};

crate::tests![
    features_include_tracking,
    a_memfd_can_be_adopted,
    a_file_in_dev_shm_can_be_adopted,
    a_memfd_of_another_process_can_be_adopted,
    the_staging_file_of_a_converted_region_can_be_adopted,
    the_staging_file_of_a_region_that_is_not_plain_is_refused,
    adopting_alone_changes_nothing,
    closed_descriptor_is_ebadf,
    file_that_is_not_shared_memory_is_einval,
    a_descriptor_that_can_only_read_or_only_write_is_eacces,
    hugetlbfs_is_eopnotsupp,
    memory_of_system_v_is_eopnotsupp,
    memory_beyond_the_greatest_size_is_efbig,
    wrong_arguments_are_einval,
    memory_that_is_adopted_is_ebusy_until_that_is_closed,
    a_file_that_is_open_for_writing_twice_is_ebusy,
    a_memfd_that_is_opened_again_is_ebusy,
    a_mapping_of_a_second_open_is_ebusy_while_it_lasts,
    adopt_without_a_free_descriptor_is_emfile_and_adopts_nothing,
    descriptors_have_only_their_own_calls,
];

const PAGES: usize = 64;

/// A file in /dev/shm, whose name is gone with it.
struct Shm {
    file: File,
    path: PathBuf,
}

impl Shm {
    fn new() -> Outcome<Self> {
        let path = Path::new("/dev/shm/vmem-adopted").to_owned();
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        let shm = Self { file, path };
        fill(&shm.file, PAGES)?;
        Ok(shm)
    }

    fn open_again(&self) -> Outcome<File> {
        Ok(OpenOptions::new().read(true).write(true).open(&self.path)?)
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Fails unless the memory cannot be adopted, for this reason, and the attempt leaves nothing.
fn is_refused(file: impl AsFd, errno: Errno) -> Outcome {
    let seals = fcntl_get_seals(&file).ok();
    equal!(Adopted::new(&file).err(), Some(errno));
    equal!(fcntl_get_seals(&file).ok(), seals);
    wait_until("nothing uses the module", || Ok(module_users()? == 0))
}

/// Adopts the memory, tracks it, and fails unless a store through a mapping is logged.
fn can_be_adopted(file: &File) -> Outcome {
    let area = AreaBuilder::default().map(file, 0, PAGES)?;
    let memory = Tracked::begin(file.try_clone()?, area)?;
    equal!(memory.log.size, (PAGES * PAGE_SIZE) as u64);
    memory.logs([11], |time| {
        memory.area.poke(11 * PAGE_SIZE, time);
        Ok(())
    })
}

fn features_include_tracking() -> Outcome {
    let features = calls::get_features(Control::open()?.as_fd())?;
    ensure!(features.features & u64::from(VMEM_FEATURE_TRACK) != 0);
    let file = memfd(1)?;
    let log = Adopted::new(&file)?;
    equal!(calls::get_features(log.as_fd())?.features, features.features);
    Ok(())
}

fn a_memfd_can_be_adopted() -> Outcome {
    can_be_adopted(&memfd(PAGES)?)?;
    // One whose size is sealed keeps its seals.
    let sealed: File = OwnedFd::into(memfd_create("sealed", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    sealed.set_len((PAGES * PAGE_SIZE) as u64)?;
    rustix::fs::fcntl_add_seals(&sealed, SealFlags::GROW | SealFlags::SEAL)?;
    can_be_adopted(&sealed)?;
    wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
    equal!(fcntl_get_seals(&sealed)?, SealFlags::GROW | SealFlags::SEAL);
    Ok(())
}

fn a_file_in_dev_shm_can_be_adopted() -> Outcome {
    let shm = Shm::new()?;
    can_be_adopted(&shm.file)?;
    let reader = File::open(&shm.path)?;
    let _mapping = AreaBuilder::default().read_only().map(&reader, 0, PAGES)?;
    can_be_adopted(&shm.file)
}

/// As that of a virtual machine monitor is, which knows nothing of it.
fn a_memfd_of_another_process_can_be_adopted() -> Outcome {
    let board = Board::new()?;
    let program = Program::start(|| {
        let file = memfd(PAGES)?;
        fill(&file, PAGES)?;
        let area = AreaBuilder::default().map(&file, 0, PAGES)?;
        area.poke(0, 1);
        board.set(0, file.as_raw_fd() as u64)?;
        for time in 1..=3 {
            board.wait(1, time)?;
            area.poke(5 * PAGE_SIZE, time as u8);
            file.write_all_at(&[time as u8], 6 * PAGE_SIZE as u64)?;
            AreaBuilder::default().map(&file, 7, 1)?.poke(0, time as u8);
            board.set(2, time)?;
        }
        board.wait(1, 4)?;
        Ok(vec![])
    })?;
    board.wait(0, 1)?;
    let number = board.get(0)? as i32;
    // The file opened again is another open file.
    let again = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/{}/fd/{number}", program.pid()))?;
    is_refused(&again, Errno::BUSY)?;
    drop(again);
    let pidfd = pidfd_open(Pid::from_raw(program.pid()).ok_or("no process")?, PidfdFlags::empty())?;
    let file: File = pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty())?.into();
    let log = Adopted::new(&file)?;
    equal!(log.track()?.mappings, 1);
    // Not this process's writes are looked at: it has no mapping that is older than the log.
    let area = AreaBuilder::default().read_only().map(&file, 0, PAGES)?;
    let memory = Tracked { file, area, log };
    memory.logs([5, 6, 7], |time| {
        board.set(1, time.into())?;
        board.wait(2, time.into())
    })?;
    board.set(1, 4)?;
    program.join().map(drop)
}

fn the_staging_file_of_a_converted_region_can_be_adopted() -> Outcome {
    let setting = Setting::new(PAGES)?;
    setting.fill_all()?;
    let area = setting.area()?;
    setting.region.make_vma_anonymous()?;
    let file = setting.region.staging().try_clone()?;
    let seals = fcntl_get_seals(&file)?;
    let line = maps_line(std::process::id() as i32, area.address())?;
    let memory = Tracked::begin(file, area)?;
    equal!(memory.log.tracking()?.mappings, 1);
    memory.logs([11, 12], |time| {
        memory.area.poke(11 * PAGE_SIZE, time);
        // A mapping of the region, made now, is one of the file.
        setting.area()?.poke(12 * PAGE_SIZE, time);
        Ok(())
    })?;
    let Tracked { file, area, log } = memory;
    log.untrack()?;
    equal!(fcntl_get_seals(&file)?, seals);
    equal!(maps_line(std::process::id() as i32, area.address())?, line);
    check_page(&area, 3, 3)
}

/// Its mappings are the module's already, for another purpose.
fn the_staging_file_of_a_region_that_is_not_plain_is_refused() -> Outcome {
    let setting = Setting::new(PAGES)?;
    setting.fill(0..8)?;
    let area = setting.area()?;
    check_page(&area, 3, 3)?;
    equal!(Adopted::new(setting.region.staging()).err(), Some(Errno::OPNOTSUPP));
    // It is served on.
    let reader = setting.reader(40)?;
    equal!(setting.take_request()?, 40);
    setting.fill([40])?;
    crate::setting::check_words(&reader.join()?, 40)
}

fn adopting_alone_changes_nothing() -> Outcome {
    let file = memfd(PAGES)?;
    fill(&file, PAGES)?;
    let area = AreaBuilder::default().map(&file, 0, PAGES)?;
    area.poke(0, 0);
    let look = || -> Outcome<(String, String, SealFlags)> {
        let this = std::process::id();
        let line = maps_line(this as i32, area.address())?;
        Ok((line, crate::setting::smaps(this, area.address())?, fcntl_get_seals(&file)?))
    };
    let before = look()?;
    let log = Adopted::new(&file)?;
    ensure!(close_on_exec(&log)?);
    equal!(log.size, (PAGES * PAGE_SIZE) as u64);
    equal!(look()?, before);
    file.set_len((PAGES * PAGE_SIZE) as u64 + 1)?;
    file.set_len((PAGES * PAGE_SIZE) as u64)?;
    drop(log);
    equal!(look()?, before);
    (0..PAGES).try_for_each(|page| check_page(&area, page, page))
}

fn adopt_number(fd: i32) -> std::io::Result<()> {
    let mut call = vmem_adopt {
        fd,
        ..Default::default()
    };
    ioctl(Control::open().map_err(std::io::Error::other)?.as_fd(), VMEM_ADOPT, &mut call)
}

fn closed_descriptor_is_ebadf() -> Outcome {
    for fd in [-1, 9999, i32::MIN, i32::MAX] {
        refused!(adopt_number(fd), BADF);
    }
    // Nor is one that only names a file.
    let shm = Shm::new()?;
    let path = rustix::fs::open(
        &shm.path,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    is_refused(&path, Errno::BADF)
}

fn file_that_is_not_shared_memory_is_einval() -> Outcome {
    is_refused(memfd(0)?, Errno::INVAL)?;
    let (reader, writer) = rustix::pipe::pipe()?;
    is_refused(&reader, Errno::INVAL)?;
    is_refused(&writer, Errno::INVAL)?;
    is_refused(File::open("/dev/shm")?, Errno::INVAL)?;
    is_refused(File::open("/proc")?, Errno::INVAL)?;
    let open = |path: &str| OpenOptions::new().read(true).write(true).open(path);
    // A device, one whose mappings are shared memory, and a regular file of another file system.
    for path in ["/dev/null", "/dev/zero", "/proc/self/comm"] {
        is_refused(open(path)?, Errno::INVAL)?;
    }
    // What is vmem's own, but a region: the control descriptor, and that of memory that is adopted.
    equal!(Adopted::new(&Control::open()?).err(), Some(Errno::INVAL));
    let log = Adopted::new(memfd(1)?)?;
    equal!(Adopted::new(&log).err(), Some(Errno::INVAL));
    Ok(())
}

fn a_descriptor_that_can_only_read_or_only_write_is_eacces() -> Outcome {
    let shm = Shm::new()?;
    is_refused(File::open(&shm.path)?, Errno::ACCESS)?;
    // Who has a snapshot can read.
    is_refused(OpenOptions::new().write(true).open(&shm.path)?, Errno::ACCESS)?;
    let memfd = memfd(PAGES)?;
    is_refused(File::open(format!("/proc/self/fd/{}", memfd.as_raw_fd()))?, Errno::ACCESS)?;
    can_be_adopted(&memfd)?;
    can_be_adopted(&shm.file)
}

fn hugetlbfs_is_eopnotsupp() -> Outcome {
    // No page of it has to be there.
    let huge = memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB)?;
    rustix::fs::ftruncate(&huge, 2 << 20)?;
    is_refused(&huge, Errno::OPNOTSUPP)
}

fn memory_of_system_v_is_eopnotsupp() -> Outcome {
    let segment: Area = AreaBuilder::system_v(PAGES)?;
    segment.write_page(3, &contents(3));
    let (begin, end) = (segment.address(), segment.address() + segment.size());
    let path = format!("/proc/self/map_files/{begin:x}-{end:x}");
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    is_refused(&file, Errno::OPNOTSUPP)?;
    check_page(&segment, 3, 3)
}

fn memory_beyond_the_greatest_size_is_efbig() -> Outcome {
    let file = memfd(1)?;
    for size in [VMEM_MAX_SIZE + 1, VMEM_MAX_SIZE + PAGE_SIZE as u64, 1 << 62] {
        file.set_len(size)?;
        is_refused(&file, Errno::FBIG)?;
    }
    file.set_len((PAGES * PAGE_SIZE) as u64)?;
    can_be_adopted(&file)
}

fn wrong_arguments_are_einval() -> Outcome {
    let file = memfd(PAGES)?;
    let control = Control::open()?;
    let right = vmem_adopt {
        fd: file.as_raw_fd(),
        ..Default::default()
    };
    let flags = (0..32).map(|bit| vmem_adopt {
        flags: 1 << bit,
        ..right
    });
    let reserved = [(1, [0, 0]), (0, [1, 0]), (0, [0, 1 << 63])];
    let reserved = reserved.map(|(reserved0, reserved)| vmem_adopt {
        reserved0,
        reserved,
        ..right
    });
    for mut call in flags.chain(reserved) {
        refused!(ioctl(control.as_fd(), VMEM_ADOPT, &mut call), INVAL);
    }
    for address in [0, 8, 1 << 63, usize::MAX - 7] {
        refused!(ioctl_at(control.as_fd(), VMEM_ADOPT, address), FAULT);
    }
    // An argument that cannot be written: nobody would have the descriptor.
    let argument = AreaBuilder::default().private().anonymous(1)?;
    argument.store(0, file.as_raw_fd() as u64);
    argument.protect(0..1, 1)?;
    refused!(ioctl_at(control.as_fd(), VMEM_ADOPT, argument.address()), FAULT);
    drop(control);
    wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
    can_be_adopted(&file)
}

fn memory_that_is_adopted_is_ebusy_until_that_is_closed() -> Outcome {
    let file = memfd(PAGES)?;
    let mut last = 0;
    for _ in 0..3 {
        let log = Adopted::new(&file)?;
        ensure!(log.id > last, "region {} comes after region {last}", log.id);
        last = log.id;
        equal!(Adopted::new(&file).err(), Some(Errno::BUSY));
        equal!(Adopted::new(file.try_clone()?).err(), Some(Errno::BUSY));
        // A duplicate keeps it.
        let duplicate = rustix::io::fcntl_dupfd_cloexec(&log, 0)?;
        drop(log);
        equal!(Adopted::new(&file).err(), Some(Errno::BUSY));
        calls::track(duplicate.as_fd(), 0)?;
        equal!(Adopted::new(&file).err(), Some(Errno::BUSY));
        drop(duplicate);
        wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
    }
    can_be_adopted(&file)?;
    // Other memory is another matter.
    let (one, other) = (Adopted::new(&file)?, Adopted::new(memfd(1)?)?);
    one.track()?;
    other.track()?;
    equal!((one.tracking()?.tracked, other.tracking()?.tracked), (1, 1));
    Ok(())
}

fn a_file_that_is_open_for_writing_twice_is_ebusy() -> Outcome {
    let shm = Shm::new()?;
    let second = shm.open_again()?;
    is_refused(&shm.file, Errno::BUSY)?;
    is_refused(&second, Errno::BUSY)?;
    second.write_all_at(&bytes_of(&contents(3)), 3 * PAGE_SIZE as u64)?;
    drop(second);
    can_be_adopted(&shm.file)
}

fn a_memfd_that_is_opened_again_is_ebusy() -> Outcome {
    let file = memfd(PAGES)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let second = OpenOptions::new().read(true).write(true).open(&path)?;
    is_refused(&file, Errno::BUSY)?;
    is_refused(&second, Errno::BUSY)?;
    drop(second);
    can_be_adopted(&file)
}

fn a_mapping_of_a_second_open_is_ebusy_while_it_lasts() -> Outcome {
    let shm = Shm::new()?;
    let memfd = memfd(PAGES)?;
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    let files = [&shm.file, &memfd];
    for (file, path) in files.into_iter().zip([&shm.path, Path::new(&path)]) {
        let second = OpenOptions::new().read(true).write(true).open(path)?;
        let mapping = AreaBuilder::default().map(&second, 0, PAGES)?;
        drop(second);
        is_refused(file, Errno::BUSY)?;
        drop(mapping);
        can_be_adopted(file)?;
    }
    Ok(())
}

fn adopt_without_a_free_descriptor_is_emfile_and_adopts_nothing() -> Outcome {
    let file = memfd(PAGES)?;
    let program = Program::start(|| {
        let control = Control::open()?;
        let next = rustix::io::fcntl_dupfd_cloexec(&control, 0)?;
        let free = next.as_raw_fd() as u64;
        drop(next);
        let before = getrlimit(Resource::Nofile);
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(free),
                ..before
            },
        )?;
        refused!(calls::adopt(control.as_fd(), file.as_fd()), MFILE);
        setrlimit(Resource::Nofile, before)?;
        calls::adopt(control.as_fd(), file.as_fd())?;
        Ok(vec![])
    })?;
    program.join()?;
    Ok(())
}

fn descriptors_have_only_their_own_calls() -> Outcome {
    let setting = Setting::new(PAGES)?;
    let control = Control::open()?;
    let log = Adopted::new(memfd(PAGES)?)?;
    let argument = AreaBuilder::default().private().anonymous(1)?;
    let call = |fd: &dyn AsFd, number: u32| ioctl_at(fd.as_fd(), number, argument.address());
    for fd in [&*setting.region as &dyn AsFd, &setting.map, &log] {
        refused!(call(fd, VMEM_ADOPT), NOTTY);
    }
    for fd in [&*setting.region as &dyn AsFd, &setting.map, &control] {
        for number in [VMEM_TRACK, VMEM_UNTRACK, VMEM_DIRTY, VMEM_GET_TRACKING] {
            refused!(call(fd, number), NOTTY);
        }
    }
    for number in [
        VMEM_WAIT_READY,
        VMEM_READY,
        VMEM_GET_PAGE_REQUEST,
        VMEM_MARK_PAGE_CACHED,
        VMEM_MAKE_PAGES_PRESENT,
        VMEM_MAKE_VMA_ANONYMOUS,
        VMEM_FILL_PAGES,
        VMEM_GET_MAP_FD,
    ] {
        refused!(call(&log, number), NOTTY);
    }
    equal!(log.tracking()?.tracked, 0);
    Ok(())
}
