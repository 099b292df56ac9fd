// SPDX-License-Identifier: GPL-2.0-or-later
//! CREATE_VMEM and ATTACH: what they give, and each field at its extremes.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::fstat;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vmem::{Control, PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::{AreaBuilder, ioctl_at};
use vmem_sys::{
    VMEM_ATTACH, VMEM_CREATE_VMEM, VMEM_FEATURE_BACKING, VMEM_FEATURE_FILES, VMEM_FEATURE_FILL, VMEM_FEATURE_POISON,
    VMEM_FEATURE_RESUME, VMEM_FEATURE_SNAPSHOT, VMEM_FEATURE_STAGE, VMEM_FEATURE_TRACK, VMEM_FEATURE_TRACK_ALL,
    VMEM_GET_FEATURES, VMEM_ID_KEEP, VMEM_MAX_BATCH, VMEM_MAX_SIZE, calls, vmem_attach, vmem_create,
};

use crate::failure::{Outcome, ensure, equal, refused};
use crate::program::Program;
use crate::setting::{Setting, close_on_exec};
use crate::world::{module_users, nodes, wait_until};

crate::tests![
    features_are_those_of_the_header,
    create_gives_region_and_staging_descriptors,
    descriptors_are_close_on_exec,
    numbers_of_regions_are_never_used_twice,
    sizes_round_up_to_pages,
    size_zero_is_refused_with_einval,
    sizes_over_the_limit_are_refused_with_efbig,
    a_region_of_a_tebibyte_needs_little_memory,
    a_region_whose_page_map_needs_too_much_memory_is_enomem,
    unknown_create_flags_are_refused_with_einval,
    reserved_fields_of_create_are_refused_with_einval,
    modes_beyond_0777_are_refused_with_einval,
    a_mode_without_a_name_is_refused_with_einval,
    owners_and_timeouts_take_any_value,
    a_create_whose_answer_cannot_be_written_leaves_nothing,
    create_without_free_descriptors_is_emfile_and_leaves_nothing,
    attach_refuses_every_wrong_field_with_einval,
    attach_to_no_region_is_enoent,
    attach_is_refused_with_ebusy_while_a_daemon_is_attached,
    attach_without_free_descriptors_is_emfile_and_leaves_the_region,
    arguments_that_cannot_be_read_are_efault,
];

/// A create that succeeds.
fn plain() -> vmem_create {
    vmem_create {
        size: PAGE_SIZE as u64,
        uid: VMEM_ID_KEEP,
        gid: VMEM_ID_KEEP,
        ..Default::default()
    }
}

fn name_field(name: &[u8]) -> [std::ffi::c_char; 32] {
    let mut field = [0; 32];
    for (to, from) in field.iter_mut().zip(name) {
        *to = *from as std::ffi::c_char;
    }
    field
}

/// Makes the call and keeps nothing of a region that it gives.
fn create(create: vmem_create) -> rustix::io::Result<u64> {
    let control = Control::open().expect("the control device");
    calls::create_vmem(control.as_fd(), create).map(|served| served.size)
}

fn features_are_those_of_the_header() -> Outcome {
    let setting = Setting::new(1)?;
    let control = Control::open()?;
    for fd in [control.as_fd(), setting.region.as_fd(), setting.map.as_fd()] {
        let features = calls::get_features(fd)?;
        equal!(
            features.features,
            u64::from(
                VMEM_FEATURE_FILL
                    | VMEM_FEATURE_POISON
                    | VMEM_FEATURE_TRACK
                    | VMEM_FEATURE_SNAPSHOT
                    | VMEM_FEATURE_STAGE
                    | VMEM_FEATURE_FILES
                    | VMEM_FEATURE_BACKING
                    | VMEM_FEATURE_TRACK_ALL
                    | VMEM_FEATURE_RESUME
            )
        );
        equal!(features.max_size, VMEM_MAX_SIZE);
        equal!(features.page_size as usize, PAGE_SIZE);
        equal!(features.max_batch, VMEM_MAX_BATCH);
        equal!(features.reserved, [0; 5]);
    }
    Ok(())
}

fn create_gives_region_and_staging_descriptors() -> Outcome {
    let control = Control::open()?;
    let mut argument = plain();
    argument.size = 3 * PAGE_SIZE as u64;
    let served = calls::create_vmem(control.as_fd(), argument)?;
    equal!(served.size, 3 * PAGE_SIZE as u64);
    let info = calls::get_info(served.vmem.as_fd())?;
    equal!((info.id, info.size), (served.id, served.size));
    equal!(fstat(&served.shmem)?.st_size as u64, served.size);
    Ok(())
}

fn descriptors_are_close_on_exec() -> Outcome {
    let setting = Setting::new(1)?;
    ensure!(close_on_exec(&*setting.region)?);
    ensure!(close_on_exec(setting.region.staging())?);
    ensure!(close_on_exec(&setting.map)?);
    Ok(())
}

fn numbers_of_regions_are_never_used_twice() -> Outcome {
    let control = Control::open()?;
    let mut last = 0;
    for _ in 0..50 {
        let region = RegionBuilder::new(1).create(&control)?;
        ensure!(region.id() > last, "{} after {last}", region.id());
        last = region.id();
    }
    Ok(())
}

fn sizes_round_up_to_pages() -> Outcome {
    for (size, rounded) in [
        (1, 1),
        (4095, 1),
        (4096, 1),
        (4097, 2),
        (8191, 2),
        (8192, 2),
        (1 << 30, 1 << 18),
    ] {
        let mut argument = plain();
        argument.size = size;
        equal!(create(argument)?, rounded * PAGE_SIZE as u64);
    }
    Ok(())
}

fn size_zero_is_refused_with_einval() -> Outcome {
    refused!(create(vmem_create { size: 0, ..plain() }), INVAL);
    Ok(())
}

fn sizes_over_the_limit_are_refused_with_efbig() -> Outcome {
    for size in [
        VMEM_MAX_SIZE + 1,
        1 << 45,
        1 << 62,
        u64::MAX - 4095,
        u64::MAX - 4094,
        u64::MAX,
    ] {
        refused!(create(vmem_create { size, ..plain() }), FBIG);
    }
    Ok(())
}

/// A few bits a page: 4 bits are 128 MiB for 2^28 pages.
fn a_region_of_a_tebibyte_needs_little_memory() -> Outcome {
    let before = vmem::available_memory()?;
    let setting = Setting::create(RegionBuilder::new(1 << 40))?;
    let used = before.saturating_sub(vmem::available_memory()?);
    ensure!(used < 256 << 20, "it takes {used} bytes");
    // The far end works as the near one.
    let last = setting.pages() - 1;
    setting.fill([last])?;
    let area = AreaBuilder::default().map(&setting.map, last, 1)?;
    crate::setting::check_page(&area, 0, last)?;
    equal!(setting.region.info()?.present, 1);
    Ok(())
}

/// 3 bits a page are 1.5 GiB for 2^32 pages; more than half of what is available is not taken.
fn a_region_whose_page_map_needs_too_much_memory_is_enomem() -> Outcome {
    let available = vmem::available_memory()?;
    let needed = 3 * (VMEM_MAX_SIZE / PAGE_SIZE as u64) / 8;
    match create(vmem_create {
        size: VMEM_MAX_SIZE,
        ..plain()
    }) {
        Ok(size) => {
            equal!(size, VMEM_MAX_SIZE);
            ensure!(needed <= available / 2, "it took {needed} of {available} bytes");
        }
        Err(errno) => {
            equal!(errno, rustix::io::Errno::NOMEM);
            ensure!(needed > available / 4, "{needed} bytes are not too much of {available}");
        }
    }
    Ok(())
}

fn unknown_create_flags_are_refused_with_einval() -> Outcome {
    for bit in 3..32 {
        for known in 0..8 {
            refused!(
                create(vmem_create {
                    flags: (1 << bit) | known,
                    ..plain()
                }),
                INVAL
            );
        }
    }
    for flags in 0..8 {
        create(vmem_create { flags, ..plain() })?;
    }
    Ok(())
}

fn reserved_fields_of_create_are_refused_with_einval() -> Outcome {
    for value in [1, 1 << 31, u32::MAX] {
        refused!(
            create(vmem_create {
                reserved0: value,
                ..plain()
            }),
            INVAL
        );
    }
    for value in [1, 1 << 63, u64::MAX] {
        refused!(
            create(vmem_create {
                reserved: [value, 0],
                ..plain()
            }),
            INVAL
        );
        refused!(
            create(vmem_create {
                reserved: [0, value],
                ..plain()
            }),
            INVAL
        );
    }
    Ok(())
}

fn modes_beyond_0777_are_refused_with_einval() -> Outcome {
    let named = |mode| vmem_create {
        name: name_field(b"mode"),
        mode,
        ..plain()
    };
    for bit in 9..32 {
        refused!(create(named(1 << bit)), INVAL);
        refused!(create(named((1 << bit) | 0o600)), INVAL);
    }
    for mode in [0, 0o777, 0o600] {
        create(named(mode))?;
    }
    Ok(())
}

fn a_mode_without_a_name_is_refused_with_einval() -> Outcome {
    for mode in [1, 0o600, 0o777, u32::MAX] {
        refused!(create(vmem_create { mode, ..plain() }), INVAL);
    }
    Ok(())
}

fn owners_and_timeouts_take_any_value() -> Outcome {
    for value in [0, 1, 65534, 1 << 31, u32::MAX - 1, u32::MAX] {
        let name = name_field(b"owner");
        create(vmem_create {
            name,
            uid: value,
            ..plain()
        })?;
        create(vmem_create {
            name,
            gid: value,
            ..plain()
        })?;
        create(vmem_create {
            fault_timeout_ms: value,
            ..plain()
        })?;
    }
    // What comes out is not looked at when it comes in.
    create(vmem_create {
        vmem_fd: -1,
        shmem_fd: i32::MAX,
        id: u64::MAX,
        ..plain()
    })?;
    Ok(())
}

fn a_create_whose_answer_cannot_be_written_leaves_nothing() -> Outcome {
    let control = Control::open()?;
    let named = vmem_create {
        name: name_field(b"unwritten"),
        ..plain()
    };
    let mut bytes = vec![0; PAGE_SIZE / 8];
    for (word, bytes) in bytes.iter_mut().zip(struct_words(&named)) {
        *word = bytes;
    }
    let area = AreaBuilder::default().private().anonymous(1)?;
    area.write_page(0, &bytes);
    area.protect(0..1, 1)?;
    refused!(ioctl_at(&control, VMEM_CREATE_VMEM, area.address()), FAULT);
    equal!(nodes()?, Vec::<String>::new());
    wait_until("only the control descriptor uses the module", || Ok(module_users()? == 1))?;
    // The name is free again.
    calls::create_vmem(control.as_fd(), named)?;
    Ok(())
}

/// The fields of a create as words, as they lie in memory.
fn struct_words(create: &vmem_create) -> [u64; 12] {
    let pair = |low: u32, high: u32| u64::from(low) | (u64::from(high) << 32);
    let mut words = [0; 12];
    words[0] = create.size;
    words[1] = pair(create.flags, create.fault_timeout_ms);
    for (at, byte) in create.name.iter().enumerate() {
        words[2 + at / 8] |= u64::from(*byte as u8) << (at % 8 * 8);
    }
    words[6] = pair(create.mode, create.uid);
    words[7] = pair(create.gid, create.vmem_fd as u32);
    words[8] = pair(create.shmem_fd as u32, create.reserved0);
    words
}

/// Runs `code` in a process that has room for so many more descriptors.
fn with_free_descriptors(free: u64, code: impl FnOnce() -> Outcome) -> Outcome {
    Program::start(|| {
        // With the holes filled, the limit leaves exactly so many.
        let highest = std::fs::read_dir("/proc/self/fd")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .max()
            .ok_or("no descriptors")?;
        let mut fillers = vec![File::open("/dev/null")?];
        while fillers.iter().all(|filler| filler.as_raw_fd() <= highest) {
            fillers.push(File::open("/dev/null")?);
        }
        let highest = fillers.iter().map(AsRawFd::as_raw_fd).max().unwrap_or(highest);
        let limit = getrlimit(Resource::Nofile);
        let current = Some(highest as u64 + 1 + free);
        setrlimit(Resource::Nofile, Rlimit { current, ..limit })?;
        code()?;
        Ok(vec![])
    })?
    .join()
    .map(drop)
}

fn create_without_free_descriptors_is_emfile_and_leaves_nothing() -> Outcome {
    let control = Control::open()?;
    for free in [0, 1] {
        with_free_descriptors(free, || {
            let named = vmem_create {
                name: name_field(b"none-free"),
                ..plain()
            };
            refused!(calls::create_vmem(control.as_fd(), named), MFILE);
            Ok(())
        })?;
        equal!(nodes()?, Vec::<String>::new());
    }
    with_free_descriptors(2, || {
        calls::create_vmem(control.as_fd(), plain())?;
        Ok(())
    })
}

fn attach(argument: vmem_attach) -> rustix::io::Result<()> {
    let control = Control::open().expect("the control device");
    calls::attach(control.as_fd(), argument).map(drop)
}

fn attach_refuses_every_wrong_field_with_einval() -> Outcome {
    let control = Control::open()?;
    let region = RegionBuilder::new(1).name("attached").create(&control)?;
    let id = region.id();
    drop(region.map_handle()?);
    let held = region.map_handle()?;
    drop(region);
    let right = vmem_attach {
        id,
        ..Default::default()
    };
    for bit in 0..32 {
        refused!(
            attach(vmem_attach {
                flags: 1 << bit,
                ..right
            }),
            INVAL
        );
        refused!(
            attach(vmem_attach {
                reserved0: 1 << bit,
                ..right
            }),
            INVAL
        );
    }
    for value in [1, u64::MAX] {
        refused!(
            attach(vmem_attach {
                reserved: [value, 0],
                ..right
            }),
            INVAL
        );
        refused!(
            attach(vmem_attach {
                reserved: [0, value],
                ..right
            }),
            INVAL
        );
    }
    let name = name_field(b"attached");
    refused!(attach(vmem_attach { name, ..right }), INVAL);
    for wrong in [&b"a/b"[..], b".a", b"control", &[b'a'; 32], b"a\0b", b"a\xff"] {
        refused!(
            attach(vmem_attach {
                name: name_field(wrong),
                ..Default::default()
            }),
            INVAL
        );
    }
    // Out fields may hold anything.
    attach(vmem_attach {
        vmem_fd: -1,
        shmem_fd: -1,
        size: u64::MAX,
        ..right
    })?;
    attach(vmem_attach {
        name,
        ..Default::default()
    })?;
    drop(held);
    Ok(())
}

fn attach_to_no_region_is_enoent() -> Outcome {
    let region = RegionBuilder::new(1).create(&Control::open()?)?;
    for id in [0, region.id() + 1, u64::MAX] {
        refused!(
            attach(vmem_attach {
                id,
                ..Default::default()
            }),
            NOENT
        );
    }
    refused!(
        attach(vmem_attach {
            name: name_field(b"nobody"),
            ..Default::default()
        }),
        NOENT
    );
    // The number of a region that is gone.
    let id = region.id();
    drop(region);
    wait_until("the region is gone", || {
        Ok(matches!(Control::open()?.attach_id(id), Err(vmem::Error::NoSuchRegion)))
    })
}

fn attach_is_refused_with_ebusy_while_a_daemon_is_attached() -> Outcome {
    let control = Control::open()?;
    let region = RegionBuilder::new(1).name("busy").create(&control)?;
    let (id, held) = (region.id(), region.map_handle()?);
    refused!(
        attach(vmem_attach {
            id,
            ..Default::default()
        }),
        BUSY
    );
    refused!(
        attach(vmem_attach {
            name: name_field(b"busy"),
            ..Default::default()
        }),
        BUSY
    );
    // A duplicate of the descriptor is the daemon as well.
    let duplicate = region.as_fd().try_clone_to_owned()?;
    drop(region);
    refused!(
        attach(vmem_attach {
            id,
            ..Default::default()
        }),
        BUSY
    );
    drop(duplicate);
    let next = control.attach_id(id)?;
    refused!(
        attach(vmem_attach {
            id,
            ..Default::default()
        }),
        BUSY
    );
    drop((next, held));
    Ok(())
}

fn attach_without_free_descriptors_is_emfile_and_leaves_the_region() -> Outcome {
    let control = Control::open()?;
    let region = RegionBuilder::new(1).create(&control)?;
    let (id, held) = (region.id(), region.map_handle()?);
    drop(region);
    for free in [0, 1] {
        with_free_descriptors(free, || {
            refused!(
                calls::attach(
                    control.as_fd(),
                    vmem_attach {
                        id,
                        ..Default::default()
                    }
                ),
                MFILE
            );
            Ok(())
        })?;
        ensure!(!held.info()?.attached);
    }
    control.attach_id(id)?;
    Ok(())
}

fn arguments_that_cannot_be_read_are_efault() -> Outcome {
    let control = Control::open()?;
    let nothing = AreaBuilder::default().private().anonymous(2)?;
    nothing.protect(1..2, 0)?;
    // Nowhere, in the kernel's half, and half in memory.
    for address in [
        0,
        1 << 63,
        usize::MAX - 7,
        nothing.address() + PAGE_SIZE,
        nothing.address() + PAGE_SIZE - 8,
    ] {
        for number in [VMEM_GET_FEATURES, VMEM_CREATE_VMEM, VMEM_ATTACH] {
            refused!(ioctl_at(&control, number, address), FAULT);
        }
    }
    Ok(())
}
