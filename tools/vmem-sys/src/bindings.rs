// SPDX-License-Identifier: GPL-2.0-or-later
// Generated from include/uapi/linux/vmem.h by bindings/generate.

pub const VMEM_IOC_MAGIC: u32 = 187;
pub const VMEM_NAME_MAX: u32 = 32;
pub const VMEM_SUPER_MAGIC: u32 = 1986880877;
pub const VMEM_MAX_SIZE: u64 = 17592186044416;
pub const VMEM_MAX_BATCH: u32 = 4096;
pub const VMEM_FEATURE_FILL: u32 = 1;
pub const VMEM_FEATURE_POISON: u32 = 2;
pub const VMEM_FEATURE_TRACK: u32 = 4;
pub const VMEM_FEATURE_SNAPSHOT: u32 = 8;
pub const VMEM_FEATURE_STAGE: u32 = 16;
pub const VMEM_FEATURE_FILES: u32 = 32;
pub const VMEM_FEATURE_BACKING: u32 = 64;
pub const VMEM_FEATURE_TRACK_ALL: u32 = 128;
pub const VMEM_FEATURE_RESUME: u32 = 256;
pub const VMEM_CREATE_HUGE: u32 = 1;
pub const VMEM_CREATE_SIGBUS: u32 = 2;
pub const VMEM_CREATE_POISON: u32 = 4;
pub const VMEM_TRACK_FILLS: u32 = 1;
pub const VMEM_TRACK_ALL: u32 = 2;
pub const VMEM_DIRTY_CLEAN: u32 = 1;
pub const VMEM_DIRTY_RANGES: u32 = 2;
pub const VMEM_MAX_MEMBERS: u32 = 64;
pub const VMEM_SNAPSHOT_CLEAN: u32 = 1;
pub const VMEM_SNAPSHOT_ONCE: u32 = 2;
pub const VMEM_MARK_ZERO: u32 = 1;
pub const VMEM_MARK_UNREADABLE: u32 = 2;
pub const VMEM_FILL_STAGE: u32 = 1;
pub const VMEM_BACKING_NONE: u32 = 1;
pub const VMEM_MAX_AROUND: u32 = 512;
pub const VMEM_MAX_BACKINGS: u32 = 1024;
pub const VMEM_STATE_ATTACHED: u32 = 1;
pub const VMEM_STATE_READY: u32 = 2;
pub const VMEM_STATE_PLAIN: u32 = 4;
pub type __s32 = ::core::ffi::c_int;
pub type __u32 = ::core::ffi::c_uint;
pub type __u64 = ::core::ffi::c_ulonglong;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_features {
    pub features: __u64,
    pub max_size: __u64,
    pub page_size: __u32,
    pub max_batch: __u32,
    pub reserved: [__u64; 5usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmem_features"][::core::mem::size_of::<vmem_features>() - 64usize];
    ["Alignment of vmem_features"][::core::mem::align_of::<vmem_features>() - 8usize];
    [
        "Offset of field: vmem_features::features",
    ][::core::mem::offset_of!(vmem_features, features) - 0usize];
    [
        "Offset of field: vmem_features::max_size",
    ][::core::mem::offset_of!(vmem_features, max_size) - 8usize];
    [
        "Offset of field: vmem_features::page_size",
    ][::core::mem::offset_of!(vmem_features, page_size) - 16usize];
    [
        "Offset of field: vmem_features::max_batch",
    ][::core::mem::offset_of!(vmem_features, max_batch) - 20usize];
    [
        "Offset of field: vmem_features::reserved",
    ][::core::mem::offset_of!(vmem_features, reserved) - 24usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_create {
    pub size: __u64,
    pub flags: __u32,
    pub fault_timeout_ms: __u32,
    pub name: [::core::ffi::c_char; 32usize],
    pub mode: __u32,
    pub uid: __u32,
    pub gid: __u32,
    pub vmem_fd: __s32,
    pub shmem_fd: __s32,
    pub reserved0: __u32,
    pub id: __u64,
    pub reserved: [__u64; 2usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmem_create"][::core::mem::size_of::<vmem_create>() - 96usize];
    ["Alignment of vmem_create"][::core::mem::align_of::<vmem_create>() - 8usize];
    [
        "Offset of field: vmem_create::size",
    ][::core::mem::offset_of!(vmem_create, size) - 0usize];
    [
        "Offset of field: vmem_create::flags",
    ][::core::mem::offset_of!(vmem_create, flags) - 8usize];
    [
        "Offset of field: vmem_create::fault_timeout_ms",
    ][::core::mem::offset_of!(vmem_create, fault_timeout_ms) - 12usize];
    [
        "Offset of field: vmem_create::name",
    ][::core::mem::offset_of!(vmem_create, name) - 16usize];
    [
        "Offset of field: vmem_create::mode",
    ][::core::mem::offset_of!(vmem_create, mode) - 48usize];
    [
        "Offset of field: vmem_create::uid",
    ][::core::mem::offset_of!(vmem_create, uid) - 52usize];
    [
        "Offset of field: vmem_create::gid",
    ][::core::mem::offset_of!(vmem_create, gid) - 56usize];
    [
        "Offset of field: vmem_create::vmem_fd",
    ][::core::mem::offset_of!(vmem_create, vmem_fd) - 60usize];
    [
        "Offset of field: vmem_create::shmem_fd",
    ][::core::mem::offset_of!(vmem_create, shmem_fd) - 64usize];
    [
        "Offset of field: vmem_create::reserved0",
    ][::core::mem::offset_of!(vmem_create, reserved0) - 68usize];
    [
        "Offset of field: vmem_create::id",
    ][::core::mem::offset_of!(vmem_create, id) - 72usize];
    [
        "Offset of field: vmem_create::reserved",
    ][::core::mem::offset_of!(vmem_create, reserved) - 80usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_attach {
    pub name: [::core::ffi::c_char; 32usize],
    pub id: __u64,
    pub flags: __u32,
    pub vmem_fd: __s32,
    pub shmem_fd: __s32,
    pub reserved0: __u32,
    pub size: __u64,
    pub reserved: [__u64; 2usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmem_attach"][::core::mem::size_of::<vmem_attach>() - 80usize];
    ["Alignment of vmem_attach"][::core::mem::align_of::<vmem_attach>() - 8usize];
    [
        "Offset of field: vmem_attach::name",
    ][::core::mem::offset_of!(vmem_attach, name) - 0usize];
    [
        "Offset of field: vmem_attach::id",
    ][::core::mem::offset_of!(vmem_attach, id) - 32usize];
    [
        "Offset of field: vmem_attach::flags",
    ][::core::mem::offset_of!(vmem_attach, flags) - 40usize];
    [
        "Offset of field: vmem_attach::vmem_fd",
    ][::core::mem::offset_of!(vmem_attach, vmem_fd) - 44usize];
    [
        "Offset of field: vmem_attach::shmem_fd",
    ][::core::mem::offset_of!(vmem_attach, shmem_fd) - 48usize];
    [
        "Offset of field: vmem_attach::reserved0",
    ][::core::mem::offset_of!(vmem_attach, reserved0) - 52usize];
    [
        "Offset of field: vmem_attach::size",
    ][::core::mem::offset_of!(vmem_attach, size) - 56usize];
    [
        "Offset of field: vmem_attach::reserved",
    ][::core::mem::offset_of!(vmem_attach, reserved) - 64usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_adopt {
    pub fd: __s32,
    pub flags: __u32,
    pub vmem_fd: __s32,
    pub reserved0: __u32,
    pub size: __u64,
    pub id: __u64,
    pub reserved: [__u64; 2usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmem_adopt"][::core::mem::size_of::<vmem_adopt>() - 48usize];
    ["Alignment of vmem_adopt"][::core::mem::align_of::<vmem_adopt>() - 8usize];
    [
        "Offset of field: vmem_adopt::fd",
    ][::core::mem::offset_of!(vmem_adopt, fd) - 0usize];
    [
        "Offset of field: vmem_adopt::flags",
    ][::core::mem::offset_of!(vmem_adopt, flags) - 4usize];
    [
        "Offset of field: vmem_adopt::vmem_fd",
    ][::core::mem::offset_of!(vmem_adopt, vmem_fd) - 8usize];
    [
        "Offset of field: vmem_adopt::reserved0",
    ][::core::mem::offset_of!(vmem_adopt, reserved0) - 12usize];
    [
        "Offset of field: vmem_adopt::size",
    ][::core::mem::offset_of!(vmem_adopt, size) - 16usize];
    [
        "Offset of field: vmem_adopt::id",
    ][::core::mem::offset_of!(vmem_adopt, id) - 24usize];
    [
        "Offset of field: vmem_adopt::reserved",
    ][::core::mem::offset_of!(vmem_adopt, reserved) - 32usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_track {
    pub flags: __u32,
    pub reserved0: __u32,
    pub mappings: __u64,
    pub held: __u64,
    pub reserved: [__u64; 2usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmem_track"][::core::mem::size_of::<vmem_track>() - 40usize];
    ["Alignment of vmem_track"][::core::mem::align_of::<vmem_track>() - 8usize];
    [
        "Offset of field: vmem_track::flags",
    ][::core::mem::offset_of!(vmem_track, flags) - 0usize];
    [
        "Offset of field: vmem_track::reserved0",
    ][::core::mem::offset_of!(vmem_track, reserved0) - 4usize];
    [
        "Offset of field: vmem_track::mappings",
    ][::core::mem::offset_of!(vmem_track, mappings) - 8usize];
    [
        "Offset of field: vmem_track::held",
    ][::core::mem::offset_of!(vmem_track, held) - 16usize];
    [
        "Offset of field: vmem_track::reserved",
    ][::core::mem::offset_of!(vmem_track, reserved) - 24usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_dirty {
    pub pgoff: __u64,
    pub nr_pages: __u64,
    pub out: __u64,
    pub nr: __u32,
    pub flags: __u32,
    pub done: __u64,
    pub dirty: __u64,
    pub held: __u64,
    pub reserved: __u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmem_dirty"][::core::mem::size_of::<vmem_dirty>() - 64usize];
    ["Alignment of vmem_dirty"][::core::mem::align_of::<vmem_dirty>() - 8usize];
    [
        "Offset of field: vmem_dirty::pgoff",
    ][::core::mem::offset_of!(vmem_dirty, pgoff) - 0usize];
    [
        "Offset of field: vmem_dirty::nr_pages",
    ][::core::mem::offset_of!(vmem_dirty, nr_pages) - 8usize];
    [
        "Offset of field: vmem_dirty::out",
    ][::core::mem::offset_of!(vmem_dirty, out) - 16usize];
    [
        "Offset of field: vmem_dirty::nr",
    ][::core::mem::offset_of!(vmem_dirty, nr) - 24usize];
    [
        "Offset of field: vmem_dirty::flags",
    ][::core::mem::offset_of!(vmem_dirty, flags) - 28usize];
    [
        "Offset of field: vmem_dirty::done",
    ][::core::mem::offset_of!(vmem_dirty, done) - 32usize];
    [
        "Offset of field: vmem_dirty::dirty",
    ][::core::mem::offset_of!(vmem_dirty, dirty) - 40usize];
    [
        "Offset of field: vmem_dirty::held",
    ][::core::mem::offset_of!(vmem_dirty, held) - 48usize];
    [
        "Offset of field: vmem_dirty::reserved",
    ][::core::mem::offset_of!(vmem_dirty, reserved) - 56usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_tracking {
    pub tracked: __u64,
    pub mappings: __u64,
    pub dirty: __u64,
    pub faults: __u64,
    pub written: __u64,
    pub cleaned: __u64,
    pub held: __u64,
    pub reserved: __u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmem_tracking"][::core::mem::size_of::<vmem_tracking>() - 64usize];
    ["Alignment of vmem_tracking"][::core::mem::align_of::<vmem_tracking>() - 8usize];
    [
        "Offset of field: vmem_tracking::tracked",
    ][::core::mem::offset_of!(vmem_tracking, tracked) - 0usize];
    [
        "Offset of field: vmem_tracking::mappings",
    ][::core::mem::offset_of!(vmem_tracking, mappings) - 8usize];
    [
        "Offset of field: vmem_tracking::dirty",
    ][::core::mem::offset_of!(vmem_tracking, dirty) - 16usize];
    [
        "Offset of field: vmem_tracking::faults",
    ][::core::mem::offset_of!(vmem_tracking, faults) - 24usize];
    [
        "Offset of field: vmem_tracking::written",
    ][::core::mem::offset_of!(vmem_tracking, written) - 32usize];
    [
        "Offset of field: vmem_tracking::cleaned",
    ][::core::mem::offset_of!(vmem_tracking, cleaned) - 40usize];
    [
        "Offset of field: vmem_tracking::held",
    ][::core::mem::offset_of!(vmem_tracking, held) - 48usize];
    [
        "Offset of field: vmem_tracking::reserved",
    ][::core::mem::offset_of!(vmem_tracking, reserved) - 56usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_snapshot_member {
    pub vmem_fd: __s32,
    pub snapshot_fd: __s32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of vmem_snapshot_member",
    ][::core::mem::size_of::<vmem_snapshot_member>() - 8usize];
    [
        "Alignment of vmem_snapshot_member",
    ][::core::mem::align_of::<vmem_snapshot_member>() - 4usize];
    [
        "Offset of field: vmem_snapshot_member::vmem_fd",
    ][::core::mem::offset_of!(vmem_snapshot_member, vmem_fd) - 0usize];
    [
        "Offset of field: vmem_snapshot_member::snapshot_fd",
    ][::core::mem::offset_of!(vmem_snapshot_member, snapshot_fd) - 4usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_snapshot {
    pub members: __u64,
    pub nr: __u32,
    pub flags: __u32,
    pub limit: __u64,
    pub closed_ns: __u64,
    pub reserved: [__u64; 2usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmem_snapshot"][::core::mem::size_of::<vmem_snapshot>() - 48usize];
    ["Alignment of vmem_snapshot"][::core::mem::align_of::<vmem_snapshot>() - 8usize];
    [
        "Offset of field: vmem_snapshot::members",
    ][::core::mem::offset_of!(vmem_snapshot, members) - 0usize];
    [
        "Offset of field: vmem_snapshot::nr",
    ][::core::mem::offset_of!(vmem_snapshot, nr) - 8usize];
    [
        "Offset of field: vmem_snapshot::flags",
    ][::core::mem::offset_of!(vmem_snapshot, flags) - 12usize];
    [
        "Offset of field: vmem_snapshot::limit",
    ][::core::mem::offset_of!(vmem_snapshot, limit) - 16usize];
    [
        "Offset of field: vmem_snapshot::closed_ns",
    ][::core::mem::offset_of!(vmem_snapshot, closed_ns) - 24usize];
    [
        "Offset of field: vmem_snapshot::reserved",
    ][::core::mem::offset_of!(vmem_snapshot, reserved) - 32usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_snapshot_info {
    pub size: __u64,
    pub dirty: __u64,
    pub pending: __u64,
    pub copied: __u64,
    pub kept: __u64,
    pub done: __u64,
    pub failed: __u64,
    pub reserved: __u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of vmem_snapshot_info",
    ][::core::mem::size_of::<vmem_snapshot_info>() - 64usize];
    [
        "Alignment of vmem_snapshot_info",
    ][::core::mem::align_of::<vmem_snapshot_info>() - 8usize];
    [
        "Offset of field: vmem_snapshot_info::size",
    ][::core::mem::offset_of!(vmem_snapshot_info, size) - 0usize];
    [
        "Offset of field: vmem_snapshot_info::dirty",
    ][::core::mem::offset_of!(vmem_snapshot_info, dirty) - 8usize];
    [
        "Offset of field: vmem_snapshot_info::pending",
    ][::core::mem::offset_of!(vmem_snapshot_info, pending) - 16usize];
    [
        "Offset of field: vmem_snapshot_info::copied",
    ][::core::mem::offset_of!(vmem_snapshot_info, copied) - 24usize];
    [
        "Offset of field: vmem_snapshot_info::kept",
    ][::core::mem::offset_of!(vmem_snapshot_info, kept) - 32usize];
    [
        "Offset of field: vmem_snapshot_info::done",
    ][::core::mem::offset_of!(vmem_snapshot_info, done) - 40usize];
    [
        "Offset of field: vmem_snapshot_info::failed",
    ][::core::mem::offset_of!(vmem_snapshot_info, failed) - 48usize];
    [
        "Offset of field: vmem_snapshot_info::reserved",
    ][::core::mem::offset_of!(vmem_snapshot_info, reserved) - 56usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_range {
    pub pgoff: __u64,
    pub nr_pages: __u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmem_range"][::core::mem::size_of::<vmem_range>() - 16usize];
    ["Alignment of vmem_range"][::core::mem::align_of::<vmem_range>() - 8usize];
    [
        "Offset of field: vmem_range::pgoff",
    ][::core::mem::offset_of!(vmem_range, pgoff) - 0usize];
    [
        "Offset of field: vmem_range::nr_pages",
    ][::core::mem::offset_of!(vmem_range, nr_pages) - 8usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_page_request {
    pub pgoffs: __u64,
    pub nr: __u32,
    pub flags: __u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmem_page_request"][::core::mem::size_of::<vmem_page_request>() - 16usize];
    [
        "Alignment of vmem_page_request",
    ][::core::mem::align_of::<vmem_page_request>() - 8usize];
    [
        "Offset of field: vmem_page_request::pgoffs",
    ][::core::mem::offset_of!(vmem_page_request, pgoffs) - 0usize];
    [
        "Offset of field: vmem_page_request::nr",
    ][::core::mem::offset_of!(vmem_page_request, nr) - 8usize];
    [
        "Offset of field: vmem_page_request::flags",
    ][::core::mem::offset_of!(vmem_page_request, flags) - 12usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_mark {
    pub ranges: __u64,
    pub nr: __u32,
    pub flags: __u32,
    pub done: __u64,
    pub changed: __u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmem_mark"][::core::mem::size_of::<vmem_mark>() - 32usize];
    ["Alignment of vmem_mark"][::core::mem::align_of::<vmem_mark>() - 8usize];
    [
        "Offset of field: vmem_mark::ranges",
    ][::core::mem::offset_of!(vmem_mark, ranges) - 0usize];
    ["Offset of field: vmem_mark::nr"][::core::mem::offset_of!(vmem_mark, nr) - 8usize];
    [
        "Offset of field: vmem_mark::flags",
    ][::core::mem::offset_of!(vmem_mark, flags) - 12usize];
    [
        "Offset of field: vmem_mark::done",
    ][::core::mem::offset_of!(vmem_mark, done) - 16usize];
    [
        "Offset of field: vmem_mark::changed",
    ][::core::mem::offset_of!(vmem_mark, changed) - 24usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_fill_range {
    pub pgoff: __u64,
    pub nr_pages: __u64,
    pub addr: __u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmem_fill_range"][::core::mem::size_of::<vmem_fill_range>() - 24usize];
    [
        "Alignment of vmem_fill_range",
    ][::core::mem::align_of::<vmem_fill_range>() - 8usize];
    [
        "Offset of field: vmem_fill_range::pgoff",
    ][::core::mem::offset_of!(vmem_fill_range, pgoff) - 0usize];
    [
        "Offset of field: vmem_fill_range::nr_pages",
    ][::core::mem::offset_of!(vmem_fill_range, nr_pages) - 8usize];
    [
        "Offset of field: vmem_fill_range::addr",
    ][::core::mem::offset_of!(vmem_fill_range, addr) - 16usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_fill {
    pub ranges: __u64,
    pub nr: __u32,
    pub flags: __u32,
    pub done: __u64,
    pub changed: __u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmem_fill"][::core::mem::size_of::<vmem_fill>() - 32usize];
    ["Alignment of vmem_fill"][::core::mem::align_of::<vmem_fill>() - 8usize];
    [
        "Offset of field: vmem_fill::ranges",
    ][::core::mem::offset_of!(vmem_fill, ranges) - 0usize];
    ["Offset of field: vmem_fill::nr"][::core::mem::offset_of!(vmem_fill, nr) - 8usize];
    [
        "Offset of field: vmem_fill::flags",
    ][::core::mem::offset_of!(vmem_fill, flags) - 12usize];
    [
        "Offset of field: vmem_fill::done",
    ][::core::mem::offset_of!(vmem_fill, done) - 16usize];
    [
        "Offset of field: vmem_fill::changed",
    ][::core::mem::offset_of!(vmem_fill, changed) - 24usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_backing {
    pub fd: __s32,
    pub flags: __u32,
    pub offset: __u64,
    pub pgoff: __u64,
    pub nr_pages: __u64,
    pub around: __u32,
    pub reserved0: __u32,
    pub reserved: [__u64; 2usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmem_backing"][::core::mem::size_of::<vmem_backing>() - 56usize];
    ["Alignment of vmem_backing"][::core::mem::align_of::<vmem_backing>() - 8usize];
    [
        "Offset of field: vmem_backing::fd",
    ][::core::mem::offset_of!(vmem_backing, fd) - 0usize];
    [
        "Offset of field: vmem_backing::flags",
    ][::core::mem::offset_of!(vmem_backing, flags) - 4usize];
    [
        "Offset of field: vmem_backing::offset",
    ][::core::mem::offset_of!(vmem_backing, offset) - 8usize];
    [
        "Offset of field: vmem_backing::pgoff",
    ][::core::mem::offset_of!(vmem_backing, pgoff) - 16usize];
    [
        "Offset of field: vmem_backing::nr_pages",
    ][::core::mem::offset_of!(vmem_backing, nr_pages) - 24usize];
    [
        "Offset of field: vmem_backing::around",
    ][::core::mem::offset_of!(vmem_backing, around) - 32usize];
    [
        "Offset of field: vmem_backing::reserved0",
    ][::core::mem::offset_of!(vmem_backing, reserved0) - 36usize];
    [
        "Offset of field: vmem_backing::reserved",
    ][::core::mem::offset_of!(vmem_backing, reserved) - 40usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_populate {
    pub ranges: __u64,
    pub nr: __u32,
    pub flags: __u32,
    pub done: __u64,
    pub pages: __u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmem_populate"][::core::mem::size_of::<vmem_populate>() - 32usize];
    ["Alignment of vmem_populate"][::core::mem::align_of::<vmem_populate>() - 8usize];
    [
        "Offset of field: vmem_populate::ranges",
    ][::core::mem::offset_of!(vmem_populate, ranges) - 0usize];
    [
        "Offset of field: vmem_populate::nr",
    ][::core::mem::offset_of!(vmem_populate, nr) - 8usize];
    [
        "Offset of field: vmem_populate::flags",
    ][::core::mem::offset_of!(vmem_populate, flags) - 12usize];
    [
        "Offset of field: vmem_populate::done",
    ][::core::mem::offset_of!(vmem_populate, done) - 16usize];
    [
        "Offset of field: vmem_populate::pages",
    ][::core::mem::offset_of!(vmem_populate, pages) - 24usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_present {
    pub pgoff: __u64,
    pub nr_pages: __u64,
    pub bitmap: __u64,
    pub present: __u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmem_present"][::core::mem::size_of::<vmem_present>() - 32usize];
    ["Alignment of vmem_present"][::core::mem::align_of::<vmem_present>() - 8usize];
    [
        "Offset of field: vmem_present::pgoff",
    ][::core::mem::offset_of!(vmem_present, pgoff) - 0usize];
    [
        "Offset of field: vmem_present::nr_pages",
    ][::core::mem::offset_of!(vmem_present, nr_pages) - 8usize];
    [
        "Offset of field: vmem_present::bitmap",
    ][::core::mem::offset_of!(vmem_present, bitmap) - 16usize];
    [
        "Offset of field: vmem_present::present",
    ][::core::mem::offset_of!(vmem_present, present) - 24usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_map_fd {
    pub flags: __u32,
    pub fd: __s32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmem_map_fd"][::core::mem::size_of::<vmem_map_fd>() - 8usize];
    ["Alignment of vmem_map_fd"][::core::mem::align_of::<vmem_map_fd>() - 4usize];
    [
        "Offset of field: vmem_map_fd::flags",
    ][::core::mem::offset_of!(vmem_map_fd, flags) - 0usize];
    [
        "Offset of field: vmem_map_fd::fd",
    ][::core::mem::offset_of!(vmem_map_fd, fd) - 4usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_resume {
    pub flags: __u32,
    pub shmem_fd: __s32,
    pub size: __u64,
    pub id: __u64,
    pub name: [::core::ffi::c_char; 32usize],
    pub reserved: [__u64; 2usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmem_resume"][::core::mem::size_of::<vmem_resume>() - 72usize];
    ["Alignment of vmem_resume"][::core::mem::align_of::<vmem_resume>() - 8usize];
    [
        "Offset of field: vmem_resume::flags",
    ][::core::mem::offset_of!(vmem_resume, flags) - 0usize];
    [
        "Offset of field: vmem_resume::shmem_fd",
    ][::core::mem::offset_of!(vmem_resume, shmem_fd) - 4usize];
    [
        "Offset of field: vmem_resume::size",
    ][::core::mem::offset_of!(vmem_resume, size) - 8usize];
    [
        "Offset of field: vmem_resume::id",
    ][::core::mem::offset_of!(vmem_resume, id) - 16usize];
    [
        "Offset of field: vmem_resume::name",
    ][::core::mem::offset_of!(vmem_resume, name) - 24usize];
    [
        "Offset of field: vmem_resume::reserved",
    ][::core::mem::offset_of!(vmem_resume, reserved) - 56usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vmem_info {
    pub id: __u64,
    pub size: __u64,
    pub flags: __u32,
    pub state: __u32,
    pub present: __u64,
    pub unreadable: __u64,
    pub requested: __u64,
    pub queued: __u64,
    pub waiters: __u64,
    pub oldest_wait_ns: __u64,
    pub faults: __u64,
    pub requests: __u64,
    pub sigbus: __u64,
    pub mappings: __u64,
    pub length: __u64,
    pub backed: __u64,
    pub reserved: __u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmem_info"][::core::mem::size_of::<vmem_info>() - 128usize];
    ["Alignment of vmem_info"][::core::mem::align_of::<vmem_info>() - 8usize];
    ["Offset of field: vmem_info::id"][::core::mem::offset_of!(vmem_info, id) - 0usize];
    [
        "Offset of field: vmem_info::size",
    ][::core::mem::offset_of!(vmem_info, size) - 8usize];
    [
        "Offset of field: vmem_info::flags",
    ][::core::mem::offset_of!(vmem_info, flags) - 16usize];
    [
        "Offset of field: vmem_info::state",
    ][::core::mem::offset_of!(vmem_info, state) - 20usize];
    [
        "Offset of field: vmem_info::present",
    ][::core::mem::offset_of!(vmem_info, present) - 24usize];
    [
        "Offset of field: vmem_info::unreadable",
    ][::core::mem::offset_of!(vmem_info, unreadable) - 32usize];
    [
        "Offset of field: vmem_info::requested",
    ][::core::mem::offset_of!(vmem_info, requested) - 40usize];
    [
        "Offset of field: vmem_info::queued",
    ][::core::mem::offset_of!(vmem_info, queued) - 48usize];
    [
        "Offset of field: vmem_info::waiters",
    ][::core::mem::offset_of!(vmem_info, waiters) - 56usize];
    [
        "Offset of field: vmem_info::oldest_wait_ns",
    ][::core::mem::offset_of!(vmem_info, oldest_wait_ns) - 64usize];
    [
        "Offset of field: vmem_info::faults",
    ][::core::mem::offset_of!(vmem_info, faults) - 72usize];
    [
        "Offset of field: vmem_info::requests",
    ][::core::mem::offset_of!(vmem_info, requests) - 80usize];
    [
        "Offset of field: vmem_info::sigbus",
    ][::core::mem::offset_of!(vmem_info, sigbus) - 88usize];
    [
        "Offset of field: vmem_info::mappings",
    ][::core::mem::offset_of!(vmem_info, mappings) - 96usize];
    [
        "Offset of field: vmem_info::length",
    ][::core::mem::offset_of!(vmem_info, length) - 104usize];
    [
        "Offset of field: vmem_info::backed",
    ][::core::mem::offset_of!(vmem_info, backed) - 112usize];
    [
        "Offset of field: vmem_info::reserved",
    ][::core::mem::offset_of!(vmem_info, reserved) - 120usize];
};
pub const VMEM_ID_KEEP: __u32 = 4294967295;
pub const VMEM_GET_FEATURES: __u32 = 2151725824;
pub const VMEM_CREATE_VMEM: __u32 = 3227564801;
pub const VMEM_ATTACH: __u32 = 3226516226;
pub const VMEM_ADOPT: __u32 = 3224419075;
pub const VMEM_WAIT_READY: __u32 = 47888;
pub const VMEM_READY: __u32 = 47889;
pub const VMEM_GET_PAGE_REQUEST: __u32 = 3222321938;
pub const VMEM_MARK_PAGE_CACHED: __u32 = 3223370515;
pub const VMEM_MAKE_PAGES_PRESENT: __u32 = 3223370516;
pub const VMEM_MAKE_VMA_ANONYMOUS: __u32 = 47893;
pub const VMEM_FILL_PAGES: __u32 = 3223370518;
pub const VMEM_GET_PRESENT: __u32 = 3223370519;
pub const VMEM_GET_INFO: __u32 = 2155920152;
pub const VMEM_GET_MAP_FD: __u32 = 3221797657;
pub const VMEM_SET_BACKING: __u32 = 1077459738;
pub const VMEM_RESUME: __u32 = 3225991963;
pub const VMEM_TRACK: __u32 = 3223894816;
pub const VMEM_UNTRACK: __u32 = 47905;
pub const VMEM_DIRTY: __u32 = 3225467682;
pub const VMEM_GET_TRACKING: __u32 = 2151725859;
pub const VMEM_SNAPSHOT: __u32 = 3224419108;
pub const VMEM_SNAPSHOT_DONE: __u32 = 1074838320;
pub const VMEM_GET_SNAPSHOT: __u32 = 2151725873;
