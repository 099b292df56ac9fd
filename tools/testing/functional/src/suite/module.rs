// SPDX-License-Identifier: GPL-2.0-or-later
//! The module cannot go away under anyone.

use rustix::process::Signal;
use vmem::{Access, Control, MapHandle, PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::AreaBuilder;

use crate::failure::{Outcome, ensure, equal};
use crate::program::Program;
use crate::setting::{Setting, check_page, contents};
use crate::world::{insert_module, module_users, remove_module, run_command, wait_until};

crate::tests![
    rmmod_is_refused_while_the_control_device_is_open,
    rmmod_is_refused_while_a_region_descriptor_is_open,
    rmmod_is_refused_while_a_map_descriptor_is_open,
    rmmod_is_refused_while_a_node_is_open,
    rmmod_is_refused_while_a_region_is_only_mapped,
    rmmod_is_refused_while_somebody_waits_for_a_page,
    the_staging_file_alone_keeps_neither_region_nor_module,
    the_module_can_be_inserted_and_removed_again_and_again,
];

/// Tries to remove the module, which must not be possible.
pub(super) fn cannot_remove() -> Outcome {
    match run_command("rmmod", &["vmem"]) {
        Ok(_) => {
            insert_module()?;
            Err("the module was removed while it was in use".into())
        }
        Err(failure) => {
            ensure!(failure.text().contains("in use"), "{}", failure.text());
            Ok(())
        }
    }
}

fn rmmod_is_refused_while_the_control_device_is_open() -> Outcome {
    let control = Control::open()?;
    cannot_remove()?;
    // And it works on.
    RegionBuilder::new(1).create(&control)?;
    Ok(())
}

fn rmmod_is_refused_while_a_region_descriptor_is_open() -> Outcome {
    let region = RegionBuilder::new(1).create(&Control::open()?)?;
    cannot_remove()?;
    region.ready()?;
    Ok(())
}

fn rmmod_is_refused_while_a_map_descriptor_is_open() -> Outcome {
    let Setting { region, map } = Setting::new(1)?;
    drop(region);
    cannot_remove()?;
    map.info()?;
    Ok(())
}

fn rmmod_is_refused_while_a_node_is_open() -> Outcome {
    let setting = Setting::create(RegionBuilder::new(1).name("open"))?;
    let node = MapHandle::open("open", Access::ReadOnly)?;
    drop(setting);
    cannot_remove()?;
    node.info()?;
    Ok(())
}

fn rmmod_is_refused_while_a_region_is_only_mapped() -> Outcome {
    let setting = Setting::new(4)?;
    setting.fill_all()?;
    let area = setting.area()?;
    drop(setting);
    cannot_remove()?;
    check_page(&area, 2, 2)?;
    // A part is enough.
    area.unmap(0..3)?;
    cannot_remove()?;
    check_page(&area, 3, 3)?;
    area.unmap(3..4)?;
    wait_until("nothing uses the module", || Ok(module_users()? == 0))
}

fn rmmod_is_refused_while_somebody_waits_for_a_page() -> Outcome {
    let Setting { region, map } = Setting::new(4)?;
    let reader = Program::start(|| {
        let area = AreaBuilder::default().map(&map, 0, 4)?;
        vmem_functional_sys::close_descriptors(|target| target.contains("[vmem"))?;
        Ok(area.page(1))
    })?;
    wait_until("it waits", || Ok(map.info()?.waiters == 1))?;
    drop((region, map));
    cannot_remove()?;
    reader.signal(Signal::KILL)?;
    reader.join_killed(Signal::KILL)
}

fn the_staging_file_alone_keeps_neither_region_nor_module() -> Outcome {
    let setting = Setting::new(4)?;
    setting.fill_all()?;
    let staging = setting.region.staging().try_clone()?;
    drop(setting);
    wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
    remove_module()?;
    // It is an ordinary file.
    let mut bytes = vec![0; PAGE_SIZE];
    use std::os::unix::fs::FileExt;
    let read = staging.read_exact_at(&mut bytes, 2 * PAGE_SIZE as u64);
    drop(staging);
    insert_module()?;
    read?;
    equal!(bytes, crate::setting::bytes_of(&contents(2)));
    Ok(())
}

fn the_module_can_be_inserted_and_removed_again_and_again() -> Outcome {
    for _ in 0..5 {
        remove_module()?;
        ensure!(!std::path::Path::new("/dev/vmem/control").exists());
        insert_module()?;
        Setting::new(1)?.fill_all()?;
        wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
    }
    Ok(())
}
