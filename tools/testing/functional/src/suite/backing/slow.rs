// SPDX-License-Identifier: GPL-2.0-or-later
//! Reads of backing that take long, or fail: the file is in a file system on a loop device on a region, which the test serves.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Advice, OFlags, fadvise};
use rustix::process::Signal;
use vmem::{Backing, Control, Fill, MapHandle, PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::AreaBuilder;

use super::{OTHER, all_of, source};
use crate::failure::{Outcome, ensure, equal};
use crate::program::Program;
use crate::setting::{Setting, bytes_of, check_page, check_words, check_zero, contents, page, pages};
use crate::suite::files::{Mount, region};
use crate::world::{module_users, run_command, wait_until};

const MADV_REMOVE: i32 = 9;

crate::tests![
    touch_waits_for_a_slow_read,
    touches_of_one_page_read_it_once,
    killed_program_does_not_wait_for_the_read,
    withdrawal_waits_for_the_read_and_drops_what_it_brings,
    verdict_discard_or_fill_during_the_read_wins,
    time_limit_counts_for_reads,
    io_error_is_a_request_or_an_unreadable_page,
    module_stays_until_the_read_is_over,
    file_that_may_not_wait_is_polled,
];

/// The pages of the file system before the file's data.
const META: usize = 3;
/// The pages of the file.
const PAGES: usize = 64;

/// A read-only file system (EROFS) with one file, whose data the disk has from page [`META`] on.
fn file_system() -> Vec<u8> {
    let mut image = vec![0; META * PAGE_SIZE];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let superblock = 1024;
    put(superblock, &0xe0f5_e1e2u32.to_le_bytes());
    // Blocks of 4096 bytes; the root directory is inode 1; metadata begin at block 1.
    put(superblock + 12, &[12]);
    put(superblock + 14, &1u16.to_le_bytes());
    put(superblock + 16, &2u64.to_le_bytes());
    put(superblock + 36, &((META + PAGES) as u32).to_le_bytes());
    put(superblock + 40, &1u32.to_le_bytes());
    let names = [(1u64, ".", 2u8), (1, "..", 2), (2, "data", 1)];
    let size = names.iter().map(|(_, name, _)| 12 + name.len()).sum::<usize>();
    // Small inodes, whose data is in blocks one after the other.
    let mut inode = |number: usize, mode: u16, links: u16, size: usize, block: usize| {
        let at = PAGE_SIZE + number * 32;
        put(at + 4, &mode.to_le_bytes());
        put(at + 6, &links.to_le_bytes());
        put(at + 8, &(size as u32).to_le_bytes());
        put(at + 16, &(block as u32).to_le_bytes());
        put(at + 20, &(number as u32).to_le_bytes());
    };
    inode(1, 0o040_755, 2, size, 2);
    inode(2, 0o100_644, 1, PAGES * PAGE_SIZE, META);
    let mut name_at = names.len() * 12;
    for (index, (inode, name, kind)) in names.iter().enumerate() {
        let entry = 2 * PAGE_SIZE + index * 12;
        put(entry, &inode.to_le_bytes());
        put(entry + 8, &(name_at as u16).to_le_bytes());
        put(entry + 10, &[*kind]);
        put(2 * PAGE_SIZE + name_at, name.as_bytes());
        name_at += name.len();
    }
    image
}

/// The file system, on a region that is its disk.
struct Slow {
    disk: Setting,
    device: String,
    place: PathBuf,
    _mount: Mount,
}

impl Slow {
    fn new() -> Outcome<Self> {
        for module in ["loop", "erofs"] {
            run_command("modprobe", &[module])?;
        }
        let mount = Mount::new("disk")?;
        let disk = Setting::create(region("disk", META + PAGES))?;
        disk.region.fill(&[Fill::new(page(0), &file_system())?]).complete()?;
        let path = mount.path("disk");
        let device = run_command("losetup", &["-r", "-f", "--show", &path.to_string_lossy()])?;
        let device = device.trim().to_owned();
        let place = PathBuf::from("/mnt/slow");
        fs::create_dir_all(&place)?;
        let slow = Self {
            disk,
            device,
            place,
            _mount: mount,
        };
        let mount = |options| {
            run_command(
                "mount",
                &["-t", "erofs", "-o", options, &slow.device, &slow.place.to_string_lossy()],
            )
        };
        mount("ro").map(drop)?;
        // Each page is read by itself.
        let queue = format!("/sys/block/{}/queue/read_ahead_kb", slow.device.trim_start_matches("/dev/"));
        fs::write(queue, "0")?;
        Ok(slow)
    }

    fn file(&self) -> Outcome<File> {
        let file = File::open(self.place.join("data"))?;
        fadvise(&file, 0, None, Advice::Random)?;
        Ok(file)
    }

    /// A region whose pages lie in the file, one page a touch.
    fn backed(&self, builder: RegionBuilder) -> Outcome<Setting> {
        let setting = Setting::create(builder)?;
        setting.region.set_backing(setting.region.pages(), all_of(&self.file()?, 1))?;
        Ok(setting)
    }

    /// The page of the file that is being read, once.
    fn asked(&self) -> Outcome<usize> {
        Ok(self.disk.take_request()?.checked_sub(META).ok_or("metadata is asked for")?)
    }

    /// The disk answers.
    fn answer(&self, pgoff: usize) -> Outcome {
        let bytes = bytes_of(&contents(pgoff as u64));
        self.disk.region.fill(&[Fill::new(page(META + pgoff), &bytes)?]).complete()?;
        Ok(())
    }

    fn fail(&self, pgoff: usize) -> Outcome {
        self.disk.region.mark_unreadable(&[pages(META + pgoff, 1)]).complete()?;
        Ok(())
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        // No read is left that would wait for ever.
        let _ = self.disk.region.mark_zero(&[self.disk.region.pages()]);
        let _ = run_command("umount", &[&self.place.to_string_lossy()]);
        let _ = run_command("losetup", &["-d", &self.device]);
        let device = Path::new("/sys/block")
            .join(self.device.trim_start_matches("/dev/"))
            .join("loop");
        let _ = wait_until("the device is closed", || Ok(!device.exists()));
    }
}

fn builder() -> RegionBuilder {
    RegionBuilder::new((PAGES * PAGE_SIZE) as u64)
}

fn reader(map: &MapHandle, pgoff: usize) -> Outcome<Program> {
    Program::start(|| Ok(AreaBuilder::default().map(map, 0, PAGES)?.page(pgoff)))
}

fn touch_waits_for_a_slow_read() -> Outcome {
    let slow = Slow::new()?;
    let setting = slow.backed(builder())?;
    let reader = setting.reader(7)?;
    equal!(slow.asked()?, 7);
    setting.wait_waiters(1)?;
    setting.no_request()?;
    let area = setting.area()?;
    // Neither other pages nor the lock of the address space wait with it.
    setting.fill([8])?;
    check_page(&area, 8, 8)?;
    slow.answer(7)?;
    check_words(&reader.join()?, 7)?;
    let info = setting.region.info()?;
    equal!((info.present, info.backed, info.requests), (2, 1, 0));
    // Now it is in the page cache.
    let again = slow.backed(builder())?;
    check_page(&again.area()?, 7, 7)
}

fn touches_of_one_page_read_it_once() -> Outcome {
    let slow = Slow::new()?;
    let setting = slow.backed(builder())?;
    let readers = (0..3).map(|_| setting.reader(9)).collect::<Outcome<Vec<_>>>()?;
    setting.wait_waiters(3)?;
    equal!(slow.asked()?, 9);
    slow.answer(9)?;
    for reader in readers {
        check_words(&reader.join()?, 9)?;
    }
    let info = setting.region.info()?;
    equal!((info.backed, info.present), (1, 1));
    slow.disk.no_request()
}

fn killed_program_does_not_wait_for_the_read() -> Outcome {
    let slow = Slow::new()?;
    let setting = slow.backed(builder())?;
    let reader = setting.reader(3)?;
    equal!(slow.asked()?, 3);
    setting.wait_waiters(1)?;
    reader.signal(Signal::KILL)?;
    reader.join_killed(Signal::KILL)?;
    // The read goes on, and brings the page for others.
    equal!(setting.region.info()?.present, 0);
    slow.answer(3)?;
    wait_until("the page is present", || Ok(setting.region.info()?.present == 1))?;
    setting.checker([3])?.join()?;
    Ok(())
}

fn withdrawal_waits_for_the_read_and_drops_what_it_brings() -> Outcome {
    let slow = Slow::new()?;
    let setting = slow.backed(builder())?;
    let rest = slow.file()?;
    let backing = Backing {
        offset: 8 * PAGE_SIZE as u64,
        ..all_of(&rest, 1)
    };
    setting.region.set_backing(pages(8, PAGES - 8), backing)?;
    // The page cache has the pages that are touched to see which file is read.
    for pgoff in 20..PAGES {
        slow.answer(pgoff)?;
    }
    rest.read_exact_at(&mut vec![0; (PAGES - 20) * PAGE_SIZE], 20 * PAGE_SIZE as u64)?;
    let reader = setting.reader(3)?;
    equal!(slow.asked()?, 3);
    // Of pages that another call has set, nothing is read.
    setting.region.withdraw_backing(pages(10, 5))?;
    let file = source(OTHER, PAGES)?;
    thread::scope(|scope| -> Outcome {
        let change = scope.spawn(|| setting.region.set_backing(setting.region.pages(), all_of(&file, 1)));
        // Touches read the new file as soon as it is there, while the call goes on.
        let mut probes = 20..PAGES;
        let area = setting.area()?;
        wait_until("the new file is read", || {
            let probe = probes.next().ok_or("each touch reads the file before")?;
            let words = area.page(probe);
            if words == contents((OTHER as usize + probe) as u64) {
                return Ok(true);
            }
            check_words(&words, probe)?;
            thread::sleep(Duration::from_millis(20));
            Ok(false)
        })?;
        thread::sleep(Duration::from_millis(200));
        let is_over = change.is_finished();
        slow.answer(3)?;
        change.join().map_err(|_| "the thread has panicked")??;
        ensure!(!is_over, "the call has not waited for the read");
        Ok(())
    })?;
    check_words(&reader.join()?, OTHER as usize + 3)?;
    Ok(())
}

fn verdict_discard_or_fill_during_the_read_wins() -> Outcome {
    let slow = Slow::new()?;
    let setting = slow.backed(builder())?;
    let area = setting.area()?;
    let bytes = bytes_of(&contents(OTHER));
    // One read after the other: the loop device has one worker for all of them.
    let during_the_read = |pgoff: usize, decide: &dyn Fn() -> Outcome| -> Outcome<Program> {
        let reader = setting.reader(pgoff)?;
        equal!(slow.asked()?, pgoff);
        decide()?;
        slow.answer(pgoff)?;
        Ok(reader)
    };
    let reader = during_the_read(1, &|| {
        setting.region.fill(&[Fill::new(page(1), &bytes)?]).complete()?;
        Ok(())
    })?;
    check_words(&reader.join()?, OTHER as usize)?;
    let reader = during_the_read(2, &|| {
        setting.region.mark_zero(&[pages(2, 1)]).complete()?;
        Ok(())
    })?;
    ensure!(reader.join()?.iter().all(|word| *word == 0));
    let reader = during_the_read(3, &|| {
        setting.region.mark_unreadable(&[pages(3, 1)]).complete()?;
        Ok(())
    })?;
    reader.join_killed(Signal::BUS)?;
    let reader = during_the_read(4, &|| {
        area.advise(4..5, MADV_REMOVE)?;
        area.store(4 * PAGE_SIZE, 11);
        Ok(())
    })?;
    ensure!(reader.join()?[1..].iter().all(|word| *word == 0));
    // The reads are over after this.
    setting.region.withdraw_backing(setting.region.pages())?;
    check_words(&area.page(1), OTHER as usize)?;
    check_zero(&area, 2)?;
    setting.reader(3)?.join_killed(Signal::BUS)?;
    equal!(area.load(4 * PAGE_SIZE), 11);
    equal!(area.load(4 * PAGE_SIZE + 8), 0);
    equal!(setting.region.info()?.backed, 0);
    Ok(())
}

fn time_limit_counts_for_reads() -> Outcome {
    let slow = Slow::new()?;
    let setting = slow.backed(builder().fault_timeout(Duration::from_millis(100)))?;
    let reader = setting.reader(3)?;
    equal!(slow.asked()?, 3);
    reader.join_killed(Signal::BUS)?;
    equal!(setting.region.info()?.unreadable, 1);
    slow.answer(3)?;
    setting.region.withdraw_backing(setting.region.pages())?;
    equal!(setting.region.info()?.unreadable, 1);
    Ok(())
}

fn io_error_is_a_request_or_an_unreadable_page() -> Outcome {
    let slow = Slow::new()?;
    let setting = slow.backed(builder())?;
    let first = setting.reader(3)?;
    equal!(slow.asked()?, 3);
    slow.fail(3)?;
    equal!(setting.take_request()?, 3);
    setting.fill([3])?;
    check_words(&first.join()?, 3)?;
    let id = setting.region.id();
    let Setting { region, map } = setting;
    drop(region);
    let second = reader(&map, 4)?;
    equal!(slow.asked()?, 4);
    slow.fail(4)?;
    second.join_killed(Signal::BUS)?;
    equal!(Control::open()?.attach_id(id)?.info()?.unreadable, 1);
    Ok(())
}

fn module_stays_until_the_read_is_over() -> Outcome {
    let slow = Slow::new()?;
    let before = module_users()?;
    let setting = slow.backed(builder())?;
    let reader = setting.reader(3)?;
    equal!(slow.asked()?, 3);
    reader.signal(Signal::KILL)?;
    reader.join_killed(Signal::KILL)?;
    // Nobody but the read has the region.
    drop(setting);
    ensure!(module_users()? > before, "the read does not hold the module");
    slow.answer(3)?;
    wait_until("the read is over", || Ok(module_users()? == before))
}

fn file_that_may_not_wait_is_polled() -> Outcome {
    let slow = Slow::new()?;
    let mount = Mount::new("a")?;
    let _setting = slow.backed(builder().name("one"))?;
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(mount.path("one"))?;
    let mut bytes = vec![0; PAGE_SIZE];
    let read = file.read_at(&mut bytes, 5 * PAGE_SIZE as u64);
    ensure!(read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    equal!(slow.asked()?, 5);
    let wait = |timeout: i64| -> Outcome<bool> {
        let timeout = Timespec {
            tv_sec: timeout,
            tv_nsec: 50_000_000,
        };
        Ok(poll(&mut [PollFd::new(&file, PollFlags::IN)], Some(&timeout))? == 1)
    };
    ensure!(!wait(0)?, "poll() does not wait for the read");
    slow.answer(5)?;
    ensure!(wait(40)?, "poll() has not been woken");
    file.read_exact_at(&mut bytes, 5 * PAGE_SIZE as u64)?;
    equal!(bytes, bytes_of(&contents(5)));
    Ok(())
}
