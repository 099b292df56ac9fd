// SPDX-License-Identifier: GPL-2.0-or-later
//! What only code in the kernel could notice, in a moment that no test can hit: probes at the kernel's own functions show it each time.

use vmem_functional_sys::AreaBuilder;

use crate::failure::{Outcome, ensure, equal};
use crate::probes::{Hit, Probes};
use crate::setting::Setting;
use crate::world::{insert_module, remove_module};

crate::tests![
    conversion_changes_a_mapping_while_the_tree_of_its_file_is_locked,
    module_exit_waits_last_for_tasks_that_are_in_its_code,
];

/// The lowest bit of a semaphore's count: a task has it for writing.
const WRITER: u64 = 1;

/// The kernel's handling of broken memory finds mappings by that tree, and looks at their files with no other lock.
fn conversion_changes_a_mapping_while_the_tree_of_its_file_is_locked() -> Outcome {
    const MAPPINGS: usize = 3;
    let setting = Setting::new(4)?;
    setting.fill_all()?;
    let areas = (0..MAPPINGS).map(|_| AreaBuilder::default().map(&setting.map, 0, 4));
    let areas = areas.collect::<Result<Vec<_>, _>>()?;
    let count = "vma_set_file count=file->f_mapping->i_mmap_rwsem.count.counter:u64";
    let probes = Probes::new(&[("changed", count)])?;
    setting.region.make_vma_anonymous()?;
    // The tests run in the first thread of the process.
    let own = format!("-{}", std::process::id());
    let mut hits = probes.hits()?;
    hits.retain(|hit| hit.task.ends_with(&own));
    equal!(hits.len(), MAPPINGS);
    for Hit { values, .. } in &hits {
        let count: u64 = values.trim_start_matches("count=").parse()?;
        ensure!(count & WRITER != 0, "the tree is not locked for writing: {count:#x}");
    }
    drop(areas);
    Ok(())
}

/// A task can be in the module's code, preempted on its way out, when nothing refers to the module any more. The unloader itself waits for no such task.
fn module_exit_waits_last_for_tasks_that_are_in_its_code() -> Outcome {
    let probes = Probes::new(&[
        ("files", "unregister_filesystem"),
        ("control", "misc_deregister"),
        ("nodes", "cdev_del"),
        ("waits", "synchronize_rcu_tasks"),
    ])?;
    let removed = remove_module();
    let hits = probes.hits();
    drop(probes);
    removed?;
    insert_module()?;
    let hits = hits?;
    let steps: Vec<_> = hits
        .iter()
        .filter(|hit| hit.task.starts_with("rmmod-"))
        .map(|hit| hit.probe.as_str())
        .collect();
    for step in ["files", "control", "nodes"] {
        ensure!(steps.contains(&step), "{step} is not there: {steps:?}");
    }
    equal!(steps.last(), Some(&"waits"));
    Ok(())
}
