// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl checkpoint`: checkpoints of an unmodified QEMU whose guest writes without end, and of a program, restored and compared with what
//! was written at the instant.

mod agent;
mod clones;
mod disks;
mod encrypted;
mod export;
mod guest;
mod hooks;
pub(super) mod incomplete;
mod mount;
mod nbd;
mod order;
mod program;
mod s3;
mod squash;
mod store;

use crate::failure::Outcome;
use guest::Guest;
use store::Store;

crate::tests![
    checkpoints_of_a_guest_have_its_memory_and_devices_at_one_instant,
    checkpoint_of_a_paused_guest_leaves_it_paused,
    restore_refuses_a_qemu_that_has_opened_another_file,
    checkpoint_that_is_killed_leaves_the_guest_running_and_nothing_half,
    checkpoint_without_room_for_copies_fails_and_the_next_has_its_pages,
    checkpoint_has_the_disks_at_the_instant_and_the_guest_goes_on_with_overlays,
    checkpoint_is_exported_as_raw_files_and_as_a_stream_that_qemu_loads,
    checkpoint_freezes_file_systems_and_thaws_them,
    checkpoint_that_is_killed_while_file_systems_are_frozen_has_them_thawed,
    checkpoint_has_commands_executed_around_its_instant,
    checkpoints_of_a_program_have_its_memory_at_one_instant,
    one_memory_of_a_checkpoint_is_restored_and_a_part_of_one_exported,
    checkpoint_that_a_killed_restore_has_read_is_removed,
    encrypted_checkpoint_is_restored_with_its_key_and_no_other,
    checkpoints_in_s3_are_made_restored_and_removed,
    restore_goes_on_when_its_s3_server_is_back,
    mounted_checkpoints_are_files_with_holes_and_cannot_be_written,
    mounted_checkpoint_has_errors_for_damaged_pages_and_while_the_store_is_away,
    mount_that_is_killed_leaves_no_reader_that_waits,
    restore_fetches_first_what_was_touched_first_in_the_restore_before,
    restore_records_pages_that_came_before_they_were_touched,
    squash_of_checkpoints_that_are_being_restored_loses_no_page,
    squash_by_access_has_the_next_restore_read_the_store_in_a_row,
    checkpoint_is_read_over_nbd_by_libnbd_and_qemu,
    checkpoint_is_a_disk_of_the_kernel_over_nbd,
    checkpoint_fills_a_region_over_nbd,
    checkpoint_is_read_over_nbd_with_tls_and_by_nobody_else,
    clones_of_a_guest_share_one_base_and_have_their_own_writes,
    clone_of_a_base_is_checkpointed_with_the_base_as_its_parent,
    checkpoint_of_a_clone_has_its_disk_at_the_instant,
    base_fetches_each_page_once_for_all_who_map_it,
    base_goes_on_when_its_vmemd_or_a_clone_is_killed,
];

fn checkpoints_of_a_guest_have_its_memory_and_devices_at_one_instant() -> Outcome {
    guest::exact(&Store::new()?, &mut Guest::new()?)
}

fn checkpoint_of_a_paused_guest_leaves_it_paused() -> Outcome {
    guest::paused(&Store::new()?, &mut Guest::new()?)
}

fn restore_refuses_a_qemu_that_has_opened_another_file() -> Outcome {
    guest::with_another_file(&Store::new()?, &mut Guest::new()?)
}

fn checkpoint_that_is_killed_leaves_the_guest_running_and_nothing_half() -> Outcome {
    guest::killed(&Store::new()?, &mut Guest::new()?)
}

fn checkpoint_without_room_for_copies_fails_and_the_next_has_its_pages() -> Outcome {
    guest::without_room(&Store::new()?, &mut Guest::new()?)
}

fn checkpoint_has_the_disks_at_the_instant_and_the_guest_goes_on_with_overlays() -> Outcome {
    disks::kept(&Store::new()?, &mut Guest::with_disk()?)
}

fn checkpoint_is_exported_as_raw_files_and_as_a_stream_that_qemu_loads() -> Outcome {
    export::loaded(&Store::new()?, &mut Guest::new()?)
}

fn checkpoint_freezes_file_systems_and_thaws_them() -> Outcome {
    agent::frozen(&Store::new()?, &mut Guest::new()?)
}

fn checkpoint_that_is_killed_while_file_systems_are_frozen_has_them_thawed() -> Outcome {
    agent::killed(&Store::new()?, &mut Guest::new()?)
}

fn checkpoint_has_commands_executed_around_its_instant() -> Outcome {
    hooks::executed(&Store::new()?)
}

fn checkpoints_of_a_program_have_its_memory_at_one_instant() -> Outcome {
    program::exact(&Store::new()?)
}

fn one_memory_of_a_checkpoint_is_restored_and_a_part_of_one_exported() -> Outcome {
    program::parts(&Store::new()?)
}

fn checkpoint_that_a_killed_restore_has_read_is_removed() -> Outcome {
    program::killed(&Store::new()?)
}

fn encrypted_checkpoint_is_restored_with_its_key_and_no_other() -> Outcome {
    encrypted::restored()
}

fn checkpoints_in_s3_are_made_restored_and_removed() -> Outcome {
    s3::used()
}

fn restore_goes_on_when_its_s3_server_is_back() -> Outcome {
    s3::away()
}

fn mounted_checkpoints_are_files_with_holes_and_cannot_be_written() -> Outcome {
    mount::read()
}

fn mounted_checkpoint_has_errors_for_damaged_pages_and_while_the_store_is_away() -> Outcome {
    mount::damaged()
}

fn mount_that_is_killed_leaves_no_reader_that_waits() -> Outcome {
    mount::killed()
}

fn restore_fetches_first_what_was_touched_first_in_the_restore_before() -> Outcome {
    order::followed(&Store::new()?)
}

fn restore_records_pages_that_came_before_they_were_touched() -> Outcome {
    order::of_prefetched(&Store::new()?)
}

fn squash_of_checkpoints_that_are_being_restored_loses_no_page() -> Outcome {
    squash::while_it_is_read(&Store::new()?)
}

fn squash_by_access_has_the_next_restore_read_the_store_in_a_row() -> Outcome {
    squash::by_access(&Store::new()?)
}

fn checkpoint_is_read_over_nbd_by_libnbd_and_qemu() -> Outcome {
    nbd::read_by_tools(&Store::new()?)
}

fn checkpoint_is_a_disk_of_the_kernel_over_nbd() -> Outcome {
    nbd::read_by_the_kernel(&Store::new()?)
}

fn checkpoint_fills_a_region_over_nbd() -> Outcome {
    nbd::read_by_vmemd(&Store::new()?)
}

fn checkpoint_is_read_over_nbd_with_tls_and_by_nobody_else() -> Outcome {
    nbd::read_over_tls(&Store::new()?)
}

fn clones_of_a_guest_share_one_base_and_have_their_own_writes() -> Outcome {
    clones::of_guest(&Store::new()?, &Guest::with_generation_id()?)
}

fn clone_of_a_base_is_checkpointed_with_the_base_as_its_parent() -> Outcome {
    clones::checkpointed(&Store::new()?, &Guest::with_generation_id()?)
}

fn checkpoint_of_a_clone_has_its_disk_at_the_instant() -> Outcome {
    clones::with_disks(&Store::new()?, &Guest::with_disk_and_generation_id()?)
}

fn base_fetches_each_page_once_for_all_who_map_it() -> Outcome {
    clones::fetched_once(&Store::new()?)
}

fn base_goes_on_when_its_vmemd_or_a_clone_is_killed() -> Outcome {
    clones::killed(&Store::new()?)
}
