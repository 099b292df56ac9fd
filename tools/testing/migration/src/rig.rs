// SPDX-License-Identifier: GPL-2.0-or-later
//! The machine around the guests: KVM, the network, and the module vmem.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::command::{line, run};
use crate::network::{Network, Wire};
use crate::patience::wait_until;
use crate::{evidence, qemu, slot};

/// Where the kernel and the file system of the guests are.
const IMAGES: [&str; 3] = ["build/guest/vmlinuz", "build/guest/initramfs", "build/guest/initramfs-agent"];

/// Where programs find regions as files.
const FILES: &str = "/run/vmem";

/// What all moves need; taken down when dropped.
pub(crate) struct Rig {
    pub(crate) network: Network,
    module: bool,
}

impl Rig {
    /// Sets it up.
    pub(crate) fn new(wire: &Wire) -> Result<Self> {
        let mut rig = Self::without_module(wire)?;
        rig.insert_module()?;
        Ok(rig)
    }

    /// The same, but vmem is not loaded: for guests that do without.
    pub(crate) fn without_module(wire: &Wire) -> Result<Self> {
        for image in IMAGES {
            ensure!(Path::new(image).exists(), "{image} is missing: run 'make guest'");
        }
        qemu::choose()?;
        evidence::keep(Path::new(slot::DIRECTORIES));
        // Where there is no KVM, QEMU emulates.
        for module in ["kvm-amd", "kvm-intel"] {
            let _ = run("modprobe", &[module]);
        }
        Ok(Self {
            network: Network::new(wire)?,
            module: false,
        })
    }

    /// What accelerates the guests here.
    pub(crate) fn accelerator() -> &'static str {
        if Path::new("/dev/kvm").exists() { "KVM" } else { "TCG" }
    }

    fn insert_module(&mut self) -> Result<()> {
        if Path::new("/dev/vmem/control").exists() {
            return Ok(());
        }
        let module = std::env::var_os("VMEM_KO").map_or_else(|| "build/module/vmem.ko".into(), PathBuf::from);
        run("insmod", &[&module.to_string_lossy()]).context("the module vmem")?;
        self.module = true;
        wait_until("the control device is there", || Ok(Path::new("/dev/vmem/control").exists()))?;
        // As the system does. A program on a host has mounts of its own: nobody else would see one that it makes.
        fs::create_dir_all(FILES).with_context(|| format!("cannot make {FILES}"))?;
        run("mount", &["-t", "vmem", "vmem", FILES])?;
        Ok(())
    }

    /// Takes it down. That something still uses the module is an error.
    pub(crate) fn remove(mut self) -> Result<()> {
        if std::mem::take(&mut self.module) {
            run("umount", &[FILES])?;
            // Processes that have been ended let go of it a moment later.
            wait_until("nobody uses the module", || Ok(line("rmmod vmem").is_ok()))?;
        }
        Ok(())
    }
}
