// SPDX-License-Identifier: GPL-2.0-or-later
//! Regions as files of the file system `vmem`: the directory, and what a file says of itself.

pub(super) mod contents;
pub(super) mod holes;
pub(super) mod impostor;
mod one_file;
pub(super) mod passthrough;
pub(super) mod polling;
pub(super) mod programs;
mod served;
pub(super) mod ways;

use std::fs::{self, File, OpenOptions};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir, fstat, fstatfs, mknodat};
use vmem::{Control, PAGE_SIZE, Region, RegionBuilder};
use vmem_functional_sys::{AreaBuilder, End};
use vmem_sys::calls;

use crate::failure::{Outcome, ensure, equal, refused};
use crate::program::Program;
use crate::setting::{Setting, bytes_of, check_page, contents as page_contents};
use crate::world::{module_users, run_command, wait_until};

crate::tests![
    every_mount_shows_the_same_regions,
    only_root_of_the_machine_mounts,
    module_stays_while_it_is_mounted,
    file_has_size_owner_mode_and_blocks_of_its_region,
    length_is_exact_and_the_rest_of_the_last_page_is_zero,
    nobody_makes_removes_or_renames_files,
    file_goes_with_its_region,
    owner_changes_mode_owner_and_times,
    size_cannot_be_changed,
    open_is_permitted_by_mode_and_owner,
    descriptor_of_a_file_is_a_map_descriptor,
    mapping_reaches_beyond_the_end,
];

/// The file system, mounted until it is dropped.
pub(super) struct Mount(PathBuf);

impl Mount {
    /// Mounts it at `/mnt/NAME`.
    pub(super) fn new(name: &str) -> Outcome<Self> {
        Self::with(name, "rw")
    }

    fn with(name: &str, options: &str) -> Outcome<Self> {
        let path = Path::new("/mnt").join(name);
        fs::create_dir_all(&path)?;
        run_command("mount", &["-t", "vmem", "-o", options, "vmem", &path.to_string_lossy()])?;
        Ok(Self(path))
    }

    /// The path of a region's file.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Opens a region's file for reading and writing.
    pub(super) fn open(&self, name: &str) -> Outcome<File> {
        self.open_with(name, OFlags::empty())
    }

    /// The same with these flags.
    pub(super) fn open_with(&self, name: &str, flags: OFlags) -> Outcome<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(flags.bits() as i32);
        Ok(options.open(self.path(name))?)
    }

    /// The names in it.
    fn names(&self) -> Outcome<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = run_command("umount", &[&self.0.to_string_lossy()]);
    }
}

/// A region with this name and so many pages.
pub(super) fn region(name: &str, pages: usize) -> RegionBuilder {
    RegionBuilder::new((pages * PAGE_SIZE) as u64).name(name)
}

fn create(name: &str) -> Outcome<Region> {
    Ok(region(name, 4).create(&Control::open()?)?)
}

fn every_mount_shows_the_same_regions() -> Outcome {
    let (mount, other) = (Mount::new("a")?, Mount::with("b", "ro")?);
    equal!(mount.names()?, Vec::<String>::new());
    let regions = ["one", "two", "three"].map(create);
    let numbers = regions.iter().flatten().map(Region::id).collect::<Vec<_>>();
    equal!(numbers.len(), 3);
    // A region without a name is no file.
    let _nameless = Setting::new(4)?;
    for mount in [&mount, &other] {
        equal!(mount.names()?, ["one", "three", "two"]);
    }
    let (here, there) = (fs::metadata(mount.path("two"))?, fs::metadata(other.path("two"))?);
    equal!((here.dev(), here.ino()), (there.dev(), there.ino()));
    // Whether it can be written to is the mount's own.
    mount.open("two")?;
    refused!(OpenOptions::new().write(true).open(other.path("two")), ROFS);
    refused!(fs::metadata(mount.path("four")), NOENT);
    refused!(fs::metadata(mount.path(&"x".repeat(32))), NAMETOOLONG);
    drop(regions);
    wait_until("the files are gone", || {
        Ok(mount.names()?.is_empty() && other.names()?.is_empty())
    })?;
    // All of a directory that takes many calls to read.
    let control = Control::open()?;
    let many = (0..300).map(|number| region(&format!("region-with-a-name-{number:04}"), 1).create(&control));
    let many = many.collect::<Result<Vec<_>, _>>()?;
    let directory = File::open("/mnt/a")?;
    let mut room = [MaybeUninit::uninit(); 256];
    let mut entries = RawDir::new(&directory, &mut room);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        names.push((entry.file_name().to_string_lossy().into_owned(), entry.ino()));
    }
    equal!(names.len(), many.len() + 2);
    for (found, region) in names.iter().skip(2).zip(&many) {
        ensure!(found.0.starts_with("region-with-a-name-"));
        equal!(found.1, region.id() + 1);
    }
    let totals = fstatfs(&directory)?;
    equal!((totals.f_blocks, totals.f_bfree), (300, 300));
    equal!((totals.f_files, totals.f_ffree), (4096, 4096 - 300));
    Ok(())
}

fn only_root_of_the_machine_mounts() -> Outcome {
    let script = "mount -t vmem vmem /mnt";
    let status = |arguments: &[&str]| {
        Command::new("unshare")
            .args(arguments)
            .args(["/bin/sh", "-c", script])
            .output()
    };
    let refused = status(&["--user", "--map-root-user", "--mount"])?;
    ensure!(!refused.status.success());
    ensure!(
        String::from_utf8_lossy(&refused.stderr).contains("permission denied"),
        "{refused:?}"
    );
    ensure!(status(&["--mount"])?.status.success());
    refused!(
        run_command("mount", &["-t", "vmem", "-o", "size=1G", "vmem", "/mnt"]).map_err(|_| rustix::io::Errno::INVAL),
        INVAL
    );
    Ok(())
}

fn module_stays_while_it_is_mounted() -> Outcome {
    let mount = Mount::new("a")?;
    equal!(module_users()?, 1);
    ensure!(run_command("rmmod", &["vmem"]).is_err());
    let region = create("one")?;
    let file = mount.open("one")?;
    // The mount is gone, and the file system stays for the file.
    run_command("umount", &["--lazy", "/mnt/a"])?;
    drop(region);
    ensure!(run_command("rmmod", &["vmem"]).is_err());
    equal!(file.metadata()?.nlink(), 1);
    Ok(())
}

fn file_has_size_owner_mode_and_blocks_of_its_region() -> Outcome {
    let mount = Mount::new("a")?;
    for (mode, uid, gid) in [(0o600, 0, 0), (0o666, 1000, 1001), (0o440, 65534, 5)] {
        let setting = Setting::create(region("one", 8).mode(mode).uid(uid).gid(gid))?;
        let file = fs::metadata(mount.path("one"))?;
        ensure!(file.is_file());
        equal!((file.mode() & 0o7777, file.uid(), file.gid()), (mode, uid, gid));
        // A file without blocks is a hole for programs, and absent pages are none.
        equal!((file.len(), file.blocks(), file.nlink()), (8 * PAGE_SIZE as u64, 8, 1));
        equal!(file.ino(), setting.region.id() + 1);
        setting.fill([1, 5])?;
        equal!(fs::metadata(mount.path("one"))?.blocks(), 16);
        let totals = fstatfs(File::open("/mnt/a")?)?;
        equal!((totals.f_blocks, totals.f_bfree, totals.f_bavail), (8, 6, 6));
        drop(setting);
        wait_until("the file is gone", || Ok(!mount.path("one").exists()))?;
    }
    Setting::create(region("one", 1))?;
    Ok(())
}

fn length_is_exact_and_the_rest_of_the_last_page_is_zero() -> Outcome {
    const LENGTH: usize = 2 * PAGE_SIZE + 904;
    let mount = Mount::new("a")?;
    let expected: Vec<u8> = (0..3)
        .flat_map(|pgoff| bytes_of(&page_contents(pgoff)))
        .take(LENGTH)
        .collect();
    for way in ["filled", "staged", "marked"] {
        let setting = Setting::create(RegionBuilder::new(LENGTH as u64).name("one"))?;
        equal!(setting.pages(), 3);
        equal!(setting.region.info()?.length, LENGTH as u64);
        let file = mount.open("one")?;
        equal!(file.metadata()?.len(), LENGTH as u64);
        let bytes: Vec<u8> = (0..3).flat_map(|pgoff| bytes_of(&page_contents(pgoff))).collect();
        let all = crate::setting::pages(0, 3);
        match way {
            "filled" => setting.fill_all()?,
            "staged" => {
                setting
                    .region
                    .stage(&[vmem::Fill::new(crate::setting::page(0), &bytes)?])
                    .complete()?;
                setting.region.mark_cached(&[all]).complete()?;
            }
            _ => {
                setting.region.staging().write_all_at(&bytes, 0)?;
                setting.region.mark_cached(&[all]).complete()?;
            }
        }
        let area = AreaBuilder::default().map(&file, 0, 3)?;
        let mapped: Vec<u8> = (0..3).flat_map(|page| bytes_of(&area.page(page))).collect();
        ensure!(mapped[..LENGTH] == expected, "{way}: the contents");
        ensure!(
            mapped[LENGTH..].iter().all(|byte| *byte == 0),
            "{way}: the rest of the last page"
        );
        ensure!(fs::read(mount.path("one"))? == expected, "{way}: read()");
        equal!(file.read_at(&mut [0; 10], LENGTH as u64)?, 0);
    }
    Ok(())
}

fn nobody_makes_removes_or_renames_files() -> Outcome {
    let mount = Mount::new("a")?;
    let region = create("one")?;
    let (one, new) = (mount.path("one"), mount.path("new"));
    refused!(File::create_new(&new), PERM);
    refused!(fs::create_dir(&new), PERM);
    refused!(symlink("one", &new), PERM);
    refused!(fs::hard_link(&one, &new), PERM);
    refused!(fs::rename(&one, &new), PERM);
    refused!(fs::remove_file(&one), PERM);
    refused!(mknodat(CWD, &new, FileType::RegularFile, Mode::RUSR, 0), PERM);
    refused!(rustix::fs::open("/mnt/a", OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR), PERM);
    refused!(fs::set_permissions("/mnt/a", fs::Permissions::from_mode(0o777)), PERM);
    ensure!(fs::remove_dir(&one).is_err());
    equal!(mount.names()?, ["one"]);
    // A program that opens its memory too early makes no plain file of it.
    drop(region);
    wait_until("the file is gone", || Ok(mount.names()?.is_empty()))?;
    refused!(OpenOptions::new().write(true).create(true).truncate(false).open(&one), PERM);
    Ok(())
}

fn file_goes_with_its_region() -> Outcome {
    let (mount, other) = (Mount::new("a")?, Mount::new("b")?);
    let region = create("one")?;
    let number = region.id();
    let file = mount.open("one")?;
    let held = rustix::fs::open(other.path("one"), OFlags::PATH, Mode::empty())?;
    File::create("/mnt/bound")?;
    run_command("mount", &["--bind", "/mnt/a/one", "/mnt/bound"])?;
    // Without its daemon, and with an open file alone, the region stays, and so does the name.
    drop(region);
    equal!((mount.names()?, other.names()?), (vec!["one".into()], vec!["one".into()]));
    drop(file);
    let gone = wait_until("the file is gone", || Ok(mount.names()?.is_empty())).and_then(|()| {
        refused!(fs::metadata(mount.path("one")), NOENT);
        refused!(fs::metadata(other.path("one")), NOENT);
        // What still has the inode cannot open it.
        equal!(fstat(&held)?.st_nlink, 0);
        refused!(
            File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held))),
            NXIO
        );
        refused!(File::open("/mnt/bound"), NXIO);
        // A new region of that name is another file.
        let again = create("one")?;
        ensure!(again.id() != number);
        equal!(fs::metadata(other.path("one"))?.ino(), again.id() + 1);
        refused!(File::open("/mnt/bound"), NXIO);
        Ok(())
    });
    run_command("umount", &["/mnt/bound"])?;
    gone
}

fn owner_changes_mode_owner_and_times() -> Outcome {
    let mount = Mount::new("a")?;
    let setting = Setting::create(region("one", 4).mode(0o600).uid(1000).gid(1000))?;
    let path = mount.path("one");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
    refused!(fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)), PERM);
    chown(&path, Some(1001), Some(1002))?;
    let user = |script: String| {
        Command::new("setpriv")
            .args(["--reuid=1001", "--regid=1002", "--clear-groups", "/bin/sh", "-c"])
            .arg(script)
            .output()
    };
    let as_user = |script: &str| Ok::<_, std::io::Error>(user(script.replace("FILE", &path.to_string_lossy()))?.status.success());
    ensure!(as_user("chmod 660 FILE")?);
    ensure!(!as_user("chown 0 FILE")?);
    ensure!(as_user("touch -d @1000 FILE")?);
    // The inode is a new one each time.
    let file = fs::metadata(&path)?;
    equal!(
        (file.mode() & 0o7777, file.uid(), file.gid(), file.mtime()),
        (0o660, 1001, 1002, 1000)
    );
    ensure!(file.ctime() > 1000);
    // The node keeps its own.
    let node = fs::metadata("/dev/vmem/one")?;
    equal!((node.mode() & 0o7777, node.uid(), node.gid()), (0o600, 1000, 1000));
    // Contents that come are no change; a write is one.
    setting.fill([0])?;
    equal!(fs::metadata(&path)?.mtime(), 1000);
    mount.open("one")?.write_all_at(b"x", 0)?;
    ensure!(fs::metadata(&path)?.mtime() > 1000);
    Ok(())
}

fn size_cannot_be_changed() -> Outcome {
    let mount = Mount::new("a")?;
    let setting = Setting::create(region("one", 4))?;
    setting.fill_all()?;
    let file = mount.open("one")?;
    for size in [0, 1, PAGE_SIZE as u64, 5 * PAGE_SIZE as u64] {
        refused!(file.set_len(size), PERM);
    }
    file.set_len(4 * PAGE_SIZE as u64)?;
    refused!(OpenOptions::new().write(true).truncate(true).open(mount.path("one")), PERM);
    equal!(file.metadata()?.len(), 4 * PAGE_SIZE as u64);
    let area = setting.area()?;
    (0..4).try_for_each(|page| check_page(&area, page, page))
}

fn open_is_permitted_by_mode_and_owner() -> Outcome {
    let mount = Mount::new("a")?;
    let setting = Setting::create(region("one", 1).mode(0o640).uid(0).gid(1000))?;
    setting.fill_all()?;
    let opens = |gid: &str, how: &str| -> Outcome<bool> {
        let mut user = Command::new("setpriv");
        user.args(["--reuid=1000", &format!("--regid={gid}"), "--clear-groups", "/bin/sh", "-c"]);
        Ok(user
            .arg(format!("exec 3{how}{}", mount.path("one").display()))
            .output()?
            .status
            .success())
    };
    ensure!(opens("1000", "<")?);
    ensure!(!opens("1000", "<>")?);
    ensure!(!opens("1001", "<")?);
    // A reader gets no way to write.
    let reader = File::open(mount.path("one"))?;
    refused!(AreaBuilder::default().map(&reader, 0, 1), ACCESS);
    refused!(reader.write_at(b"x", 0), BADF);
    let again = calls::get_map_fd(reader.as_fd())?;
    refused!(AreaBuilder::default().map(&again, 0, 1), ACCESS);
    Ok(())
}

fn descriptor_of_a_file_is_a_map_descriptor() -> Outcome {
    let mount = Mount::new("a")?;
    let setting = Setting::create(region("one", 4))?;
    let file = mount.open("one")?;
    equal!(calls::get_info(file.as_fd())?.id, setting.region.id());
    refused!(calls::ready(file.as_fd()), PERM);
    setting.region.ready()?;
    calls::wait_ready(file.as_fd())?;
    let reader = Program::start(|| Ok(AreaBuilder::default().map(&file, 0, 4)?.page(2)))?;
    equal!(setting.take_request()?, 2);
    setting.fill([2])?;
    crate::setting::check_words(&reader.join()?, 2)?;
    // The file keeps the region as a map descriptor does.
    let (number, name) = (setting.region.id(), "one");
    drop(setting);
    let control = Control::open()?;
    wait_until("the daemon is gone", || Ok(control.attach(name).is_ok()))?;
    equal!(calls::get_info(file.as_fd())?.id, number);
    Ok(())
}

fn mapping_reaches_beyond_the_end() -> Outcome {
    let mount = Mount::new("a")?;
    for poison in [false, true] {
        let builder = region("one", 4);
        let setting = Setting::create(if poison { builder.poison_unreadable() } else { builder })?;
        let file = mount.open("one")?;
        for builder in [AreaBuilder::default(), AreaBuilder::default().private()] {
            let area = builder.map(&file, 2, 10)?;
            let beyond = Program::start(|| Ok(vec![area.load(2 * PAGE_SIZE)]))?;
            equal!(beyond.end()?, End::Killed(rustix::process::Signal::BUS.as_raw()));
            if setting.region.info()?.present == 0 {
                setting.fill_all()?;
            }
            check_page(&area, 0, 2)?;
            check_page(&area, 1, 3)?;
        }
        setting.no_request()?;
        let area = AreaBuilder::default().map(&file, 0, 8)?;
        setting.region.make_vma_anonymous()?;
        check_page(&area, 3, 3)?;
        let beyond = Program::start(|| Ok(vec![area.load(4 * PAGE_SIZE)]))?;
        equal!(beyond.end()?, End::Killed(rustix::process::Signal::BUS.as_raw()));
        // Other descriptors map what there is.
        refused!(AreaBuilder::default().map(&setting.map, 2, 10), INVAL);
        drop((area, file, setting));
        wait_until("the file is gone", || Ok(!mount.path("one").exists()))?;
    }
    Ok(())
}
