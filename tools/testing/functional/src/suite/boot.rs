// SPDX-License-Identifier: GPL-2.0-or-later
//! A guest without a system, that writes to a small part of its memory without end.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::Outcome;

/// Where the guest writes: segments of 64 KiB, from `FIRST` on.
pub(super) const SEGMENT: usize = 64 << 10;
pub(super) const FIRST: usize = SEGMENT;
pub(super) const SEGMENTS: usize = 8;

/// A boot sector: for each segment in turn, and again without end, adds one to AX and fills the segment with it.
const BOOT: [u8; 31] = [
    0xfa, // cli
    0x31, 0xc0, // xor ax, ax
    0xbb, 0x00, 0x10, // mov bx, 1000h
    0x8e, 0xc3, // next: mov es, bx
    0x31, 0xff, // xor di, di
    0x40, // inc ax
    0xb9, 0x00, 0x80, // mov cx, 8000h
    0xf3, 0xab, // rep stosw
    0x81, 0xc3, 0x00, 0x10, // add bx, 1000h
    0x81, 0xfb, 0x00, 0x90, // cmp bx, 9000h
    0x72, 0xec, // jb next
    0xbb, 0x00, 0x10, // mov bx, 1000h
    0xeb, 0xe7, // jmp next
];

/// A disk whose boot sector is that guest. The file is removed when it is dropped.
pub(super) struct BootDisk {
    path: PathBuf,
    drive: String,
}

impl BootDisk {
    pub(super) fn new() -> Outcome<Self> {
        let path = std::env::temp_dir().join(format!("vmem-boot-{}", std::process::id()));
        let mut sector = [0; 512];
        sector[..BOOT.len()].copy_from_slice(&BOOT);
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        fs::write(&path, sector)?;
        let drive = format!("file={},format=raw,if=ide", path.display());
        Ok(Self { path, drive })
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// QEMU's options to boot from it.
    pub(super) fn options(&self) -> [&str; 3] {
        ["-drive", &self.drive, "-snapshot"]
    }
}

impl Drop for BootDisk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
