// SPDX-License-Identifier: GPL-2.0-or-later
//! A machine as it is looked at.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use vmem::{Control, Error, Features};

use crate::program;

/// The features of the header that these tools are built with.
pub(crate) const FEATURES: [&str; 8] = [
    "fill",
    "poison",
    "track",
    "track_all",
    "snapshot",
    "stage",
    "files",
    "backing",
];

/// What replaces the loaded module by the installed one, when no region is left. The mount of the files keeps a module in use.
pub(crate) const RELOAD: &str = "umount /run/vmem; modprobe -r vmem; modprobe vmem";

/// What has another name on each architecture that vmem is for.
pub(crate) struct Machine {
    /// The architecture, as of `uname -m`.
    name: &'static str,
    /// Debian's name for it.
    pub(crate) debian: &'static str,
    /// The QEMU that runs guests of the same architecture, and the package that has it.
    pub(crate) qemu: &'static str,
    pub(crate) qemu_package: &'static str,
}

pub(crate) const X86_64: Machine = Machine {
    name: "x86_64",
    debian: "amd64",
    qemu: "qemu-system-x86_64",
    qemu_package: "qemu-system-x86",
};

const AARCH64: Machine = Machine {
    name: "aarch64",
    debian: "arm64",
    qemu: "qemu-system-aarch64",
    qemu_package: "qemu-system-arm",
};

/// What the module answers when it is asked for its features.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModuleFeatures {
    /// The features that these tools know, and whether the module has each.
    Known(Vec<(&'static str, bool)>),
    /// There is no control device.
    NoDevice,
    /// This process may not open the control device.
    Forbidden,
    /// Another error, in words: another device, another page size.
    Unusable(String),
}

impl ModuleFeatures {
    /// Asks the module of this machine.
    fn ask() -> Self {
        match Control::open().and_then(|control| control.features()) {
            Ok(features) => {
                let Features {
                    fill,
                    poison,
                    track,
                    track_all,
                    snapshot,
                    stage,
                    files,
                    backing,
                    ..
                } = features;
                let has = [fill, poison, track, track_all, snapshot, stage, files, backing];
                Self::Known(FEATURES.into_iter().zip(has).collect())
            }
            Err(Error::Open { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Self::NoDevice,
            Err(Error::Open { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => Self::Forbidden,
            Err(error) => Self::Unusable(error.to_string()),
        }
    }
}

/// A machine: the files below a root directory, and what no file says.
#[derive(Clone, Debug)]
pub struct Host {
    /// Where its file system is.
    pub root: PathBuf,
    /// The name of the running kernel, as of `uname -r`.
    pub release: String,
    /// The processor's architecture, as of `uname -m`.
    pub machine: String,
    /// The size of the kernel's pages, in bytes.
    pub page_size: usize,
    /// What the module answers.
    pub features: ModuleFeatures,
    /// The time, which certificates are compared with.
    pub now: SystemTime,
    /// The user whom vmem's files belong to: root.
    pub owner: u32,
    /// The vmemd that vmemctl starts.
    pub vmemd: PathBuf,
    /// The first line of `PROGRAM --version`, or why there is none.
    pub version_of: fn(&Path) -> Result<String, String>,
}

impl Host {
    /// This machine, now.
    pub fn this() -> Self {
        let uname = rustix::system::uname();
        Self {
            root: "/".into(),
            release: uname.release().to_string_lossy().into_owned(),
            machine: uname.machine().to_string_lossy().into_owned(),
            page_size: rustix::param::page_size(),
            features: ModuleFeatures::ask(),
            now: SystemTime::now(),
            owner: 0,
            vmemd: vmem_process::vmemd(),
            version_of: program::version_of,
        }
    }

    /// Its architecture, if vmem is for that.
    pub(crate) fn known_machine(&self) -> Option<&'static Machine> {
        [&X86_64, &AARCH64].into_iter().find(|machine| machine.name == self.machine)
    }

    /// Where an absolute path of the machine is.
    pub(crate) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    pub(crate) fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.at(path).exists()
    }

    /// The text of a file, without the end of its line; `None` if it cannot be read.
    pub(crate) fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let text = fs::read(self.at(path)).ok()?;
        Some(String::from_utf8_lossy(&text).trim_end().to_owned())
    }

    /// A file of the running kernel, below /lib/modules.
    pub(crate) fn of_kernel(&self, path: &str) -> PathBuf {
        Path::new("/lib/modules").join(&self.release).join(path)
    }

    /// The first program with this name where root looks for programs.
    pub(crate) fn program(&self, name: &str) -> Option<PathBuf> {
        ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
            .into_iter()
            .map(|directory| self.at(directory).join(name))
            .find(|path| path.is_file())
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A machine of which every file is in a directory of the test.
    pub(crate) struct Fake {
        pub(crate) host: Host,
        _directory: tempfile::TempDir,
    }

    pub(crate) const RELEASE: &str = "7.3.4-test";

    impl Fake {
        pub(crate) fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let host = Host {
                root: directory.path().into(),
                release: RELEASE.to_owned(),
                machine: "x86_64".to_owned(),
                page_size: 4096,
                features: ModuleFeatures::Known(FEATURES.map(|name| (name, true)).to_vec()),
                now: SystemTime::now(),
                owner: rustix::process::geteuid().as_raw(),
                vmemd: "/usr/sbin/vmemd".into(),
                version_of: |path| {
                    Ok(if path.ends_with("vmemd") {
                        format!("vmemd {}", env!("CARGO_PKG_VERSION"))
                    } else {
                        "QEMU emulator version 10.0.2".to_owned()
                    })
                },
            };
            Self {
                host,
                _directory: directory,
            }
        }

        /// With a file; RELEASE in its path is the kernel's.
        pub(crate) fn file(self, path: &str, text: impl AsRef<[u8]>) -> Self {
            let path = self.host.at(path.replace("RELEASE", RELEASE));
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(path, text).expect("a file");
            self
        }

        pub(crate) fn directory(self, path: &str) -> Self {
            fs::create_dir_all(self.host.at(path.replace("RELEASE", RELEASE))).expect("a directory");
            self
        }

        pub(crate) fn with(mut self, change: impl FnOnce(&mut Host)) -> Self {
            change(&mut self.host);
            self
        }
    }
}
