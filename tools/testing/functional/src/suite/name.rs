// SPDX-License-Identifier: GPL-2.0-or-later
//! `/dev/vmem/NAME`, and who may open what.

use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{SeekFrom, seek};
use vmem::{Access, Control, Error, MapHandle, PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::AreaBuilder;
use vmem_sys::{VMEM_ID_KEEP, calls, vmem_create};

use crate::failure::{Outcome, ensure, equal, refused};
use crate::program::Program;
use crate::setting::{Setting, check_page};
use crate::world::{nodes, wait_until};

crate::tests![
    a_named_region_has_a_node_with_its_mode_and_owner,
    a_node_without_a_mode_is_root_s_alone,
    names_have_exactly_the_documented_characters,
    names_must_end_and_be_padded,
    a_taken_name_is_refused_with_eexist,
    a_name_is_free_again_when_its_region_is_gone,
    many_regions_have_nodes_at_once,
    successive_nodes_have_different_numbers,
    the_node_stays_as_long_as_the_region_does,
    seek_to_the_end_gives_the_size,
    an_open_node_maps_and_cannot_serve,
    open_of_a_node_without_permission_is_eacces,
    a_reader_of_the_node_gets_no_way_to_write,
    descriptors_cannot_be_opened_again_through_proc,
    mapped_region_cannot_be_reopened_through_proc,
    the_control_device_is_root_s_alone,
];

fn region(name: &str) -> RegionBuilder {
    RegionBuilder::new(4 * PAGE_SIZE as u64).name(name)
}

fn a_named_region_has_a_node_with_its_mode_and_owner() -> Outcome {
    for (mode, uid, gid) in [(0o600, 0, 0), (0o666, 1000, 1001), (0o440, 65534, 5), (0o777, 1, 0)] {
        let setting = Setting::create(region("guest0").mode(mode).uid(uid).gid(gid))?;
        let node = fs::metadata("/dev/vmem/guest0")?;
        ensure!(node.file_type().is_char_device());
        equal!((node.permissions().mode() & 0o7777, node.uid(), node.gid()), (mode, uid, gid));
        drop(setting);
        wait_until("the node is gone", || Ok(!Path::new("/dev/vmem/guest0").exists()))?;
    }
    Ok(())
}

fn a_node_without_a_mode_is_root_s_alone() -> Outcome {
    let _setting = Setting::create(region("guest0").mode(0))?;
    let node = fs::metadata("/dev/vmem/guest0")?;
    equal!((node.permissions().mode() & 0o7777, node.uid(), node.gid()), (0o600, 0, 0));
    Ok(())
}

/// A region whose name field has these bytes.
fn create_raw(control: &Control, name: &[u8]) -> rustix::io::Result<()> {
    let mut create = vmem_create {
        size: 1,
        uid: VMEM_ID_KEEP,
        gid: VMEM_ID_KEEP,
        ..Default::default()
    };
    for (to, from) in create.name.iter_mut().zip(name) {
        *to = *from as std::ffi::c_char;
    }
    calls::create_vmem(control.as_fd(), create).map(drop)
}

fn names_have_exactly_the_documented_characters() -> Outcome {
    let control = Control::open()?;
    for byte in 1..=255u8 {
        let allowed = byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        for (name, allowed) in [([b'x', byte], allowed), ([byte, b'x'], allowed && byte != b'.')] {
            match create_raw(&control, &name) {
                Ok(()) => ensure!(allowed, "{name:?} is taken"),
                Err(errno) => ensure!(!allowed && errno == rustix::io::Errno::INVAL, "{name:?}: {errno}"),
            }
        }
    }
    for name in [&b"."[..], b"..", b".hidden", b"control"] {
        refused!(create_raw(&control, name), INVAL);
    }
    for name in [&b"-"[..], b"_", b"0", b"controls", b"Control", &[b'x'; 31]] {
        create_raw(&control, name)?;
    }
    Ok(())
}

fn names_must_end_and_be_padded() -> Outcome {
    let control = Control::open()?;
    refused!(create_raw(&control, &[b'x'; 32]), INVAL);
    refused!(create_raw(&control, b"a\0b"), INVAL);
    refused!(create_raw(&control, b"\0b"), INVAL);
    let mut last = [0; 32];
    (last[0], last[31]) = (b'a', 1);
    refused!(create_raw(&control, &last), INVAL);
    Ok(())
}

fn a_taken_name_is_refused_with_eexist() -> Outcome {
    let control = Control::open()?;
    let first = region("twice").create(&control)?;
    ensure!(matches!(region("twice").create(&control), Err(Error::NameTaken)));
    // Also when only a mapping is left of the region.
    let area = AreaBuilder::default().map(&first, 0, 1)?;
    drop(first);
    ensure!(matches!(region("twice").create(&control), Err(Error::NameTaken)));
    ensure!(Path::new("/dev/vmem/twice").exists());
    drop(area);
    Ok(())
}

fn a_name_is_free_again_when_its_region_is_gone() -> Outcome {
    let control = Control::open()?;
    for _ in 0..20 {
        let mut created = None;
        wait_until("the name is free", || match region("again").create(&control) {
            Ok(region) => {
                created = Some(region);
                Ok(true)
            }
            Err(Error::NameTaken) => Ok(false),
            Err(error) => Err(error.into()),
        })?;
        ensure!(Path::new("/dev/vmem/again").exists());
    }
    Ok(())
}

fn many_regions_have_nodes_at_once() -> Outcome {
    let control = Control::open()?;
    let regions: Vec<_> = (0..100)
        .map(|number| region(&format!("r{number}")).create(&control))
        .collect::<Result<_, _>>()?;
    equal!(nodes()?.len(), 100);
    for (number, region) in regions.iter().enumerate() {
        equal!(
            MapHandle::open(&format!("r{number}"), Access::ReadWrite)?.info()?.id,
            region.id()
        );
    }
    Ok(())
}

fn successive_nodes_have_different_numbers() -> Outcome {
    let number = |name: &str| -> Outcome<u64> {
        let _setting = Setting::create(region(name))?;
        Ok(fs::metadata(Path::new("/dev/vmem").join(name))?.rdev())
    };
    let numbers = [number("guest0")?, number("guest1")?, number("guest2")?];
    ensure!(numbers[0] != numbers[1] && numbers[1] != numbers[2], "{numbers:?}");
    Ok(())
}

fn the_node_stays_as_long_as_the_region_does() -> Outcome {
    let setting = Setting::create(region("stays"))?;
    let node = || Path::new("/dev/vmem/stays").exists();
    let Setting { region, map } = setting;
    drop(region);
    ensure!(node(), "it went with the daemon");
    let area = AreaBuilder::default().map(&map, 0, 4)?;
    drop(map);
    ensure!(node(), "it went with the last descriptor");
    let opened = MapHandle::open("stays", Access::ReadWrite)?;
    drop(area);
    ensure!(node(), "it went with the mapping");
    drop(opened);
    wait_until("the node is gone", || Ok(!node()))
}

fn seek_to_the_end_gives_the_size() -> Outcome {
    let setting = Setting::create(region("seek"))?;
    let node = MapHandle::open("seek", Access::ReadOnly)?;
    for fd in [setting.region.as_fd(), setting.map.as_fd(), node.as_fd()] {
        equal!(seek(fd, SeekFrom::End(0))?, 4 * PAGE_SIZE as u64);
        equal!(seek(fd, SeekFrom::Start(0))?, 0);
        equal!(seek(fd, SeekFrom::End(-1))?, 4 * PAGE_SIZE as u64 - 1);
        ensure!(seek(fd, SeekFrom::End(-5 * PAGE_SIZE as i64)).is_err());
    }
    Ok(())
}

fn an_open_node_maps_and_cannot_serve() -> Outcome {
    let setting = Setting::create(region("guest0"))?;
    setting.fill([1])?;
    let node = MapHandle::open("guest0", Access::ReadWrite)?;
    check_page(&AreaBuilder::default().map(&node, 0, 4)?, 1, 1)?;
    refused!(calls::ready(node.as_fd()), PERM);
    refused!(calls::get_page_request(node.as_fd(), &mut [0; 4]), PERM);
    refused!(calls::make_vma_anonymous(node.as_fd()), PERM);
    // Opening it twice gives two of them.
    let again = MapHandle::open("guest0", Access::ReadWrite)?;
    drop(node);
    check_page(&AreaBuilder::default().map(&again, 0, 4)?, 1, 1)
}

/// Whether a shell of this user can open the node like this.
fn can_open(uid: u32, gid: u32, how: &str) -> Outcome<bool> {
    let status = Command::new("/bin/sh")
        .args(["-c", &format!("exec 3{how}/dev/vmem/private")])
        .uid(uid)
        .gid(gid)
        .output()?;
    Ok(status.status.success())
}

fn open_of_a_node_without_permission_is_eacces() -> Outcome {
    let _setting = Setting::create(region("private").mode(0o640).uid(1000).gid(1001))?;
    ensure!(can_open(1000, 1000, "<>")?, "its owner");
    ensure!(can_open(2000, 1001, "<")?, "its group, for reading");
    ensure!(!can_open(2000, 1001, "<>")?, "its group, for writing");
    ensure!(!can_open(2000, 2000, "<")?, "others");
    Ok(())
}

fn a_reader_of_the_node_gets_no_way_to_write() -> Outcome {
    let setting = Setting::create(region("read-only"))?;
    setting.fill_all()?;
    let reader = MapHandle::open("read-only", Access::ReadOnly)?;
    refused!(AreaBuilder::default().map(&reader, 0, 4), ACCESS);
    match calls::get_map_fd(reader.as_fd()) {
        // What it is given can do no more than what it has.
        Ok(given) => refused!(AreaBuilder::default().map(&given, 0, 4), ACCESS),
        Err(errno) => ensure!(
            matches!(errno, rustix::io::Errno::PERM | rustix::io::Errno::ACCESS),
            "{errno}"
        ),
    }
    Ok(())
}

fn descriptors_cannot_be_opened_again_through_proc() -> Outcome {
    let setting = Setting::new(4)?;
    for fd in [setting.region.as_fd(), setting.map.as_fd()] {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        for write in [false, true] {
            refused!(OpenOptions::new().read(true).write(write).open(&path), NXIO);
        }
    }
    Ok(())
}

/// Whoever opened the memory as plain shmem would read absent pages as zeros.
fn mapped_region_cannot_be_reopened_through_proc() -> Outcome {
    let setting = Setting::new(4)?;
    setting.fill([0])?;
    let area = setting.area()?;
    let (start, end) = (area.address(), area.address() + area.size());
    let paths = [
        format!("/proc/self/map_files/{start:x}-{end:x}"),
        format!("/proc/self/fd/{}", setting.region.staging().as_raw_fd()),
    ];
    for path in &paths {
        for write in [false, true] {
            refused!(OpenOptions::new().read(true).write(write).open(path), NXIO);
        }
    }
    setting.fill(1..4)?;
    setting.region.make_vma_anonymous()?;
    for path in &paths {
        OpenOptions::new().read(true).write(true).open(path)?;
    }
    Ok(())
}

fn the_control_device_is_root_s_alone() -> Outcome {
    let node = fs::metadata("/dev/vmem/control")?;
    equal!((node.permissions().mode() & 0o7777, node.uid(), node.gid()), (0o600, 0, 0));
    Program::start(|| {
        let denied = Command::new("/bin/sh")
            .args(["-c", "exec 3</dev/vmem/control"])
            .uid(1000)
            .output()?;
        ensure!(!denied.status.success());
        Ok(vec![])
    })?
    .join()?;
    Ok(())
}
