// SPDX-License-Identifier: GPL-2.0-or-later
//! What vmemd gives up before it reads a byte of the network.
//!
//! A region is served by whoever has its descriptor, and created by whoever has that of the control device: nothing else of what root may do
//! is needed once both are open. All of this holds for the calling thread and those that it starts later. So it is done before there are
//! others.

use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, path_beneath_rules,
};
use rustix::process::{Gid, Resource, Rlimit, Uid, geteuid, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// Privileges cannot be given up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrivilegeError {
    #[error("cannot become user {uid}, group {gid}")]
    User {
        uid: u32,
        gid: u32,
        #[source]
        source: io::Error,
    },
    #[error("cannot give up the privileges of root")]
    Capabilities(#[source] io::Error),
    #[error("cannot give up access to files")]
    Files(#[from] RulesetError),
}

/// Who vmemd is from then on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl User {
    /// Nobody: who has no files and is in no group.
    pub(crate) const NOBODY: Self = Self { uid: 65534, gid: 65534 };

    /// The user and the group of `USER[:GROUP]`; without a group, the one with the user's number.
    pub(crate) fn new((uid, gid): (u32, Option<u32>)) -> Self {
        Self {
            uid,
            gid: gid.unwrap_or(uid),
        }
    }
}

/// What has to stay possible.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Needs {
    /// Nothing.
    Descriptors,
    /// Files that are given back are marked, whoever owns them (setxattr(2) looks at who calls it).
    Marks,
}

/// Directories that looking up a host's name, the time zone and the memory that is left read from.
const READABLE: [&str; 7] = ["/etc", "/usr", "/lib", "/lib64", "/run", "/proc", "/sys"];

/// The nice value of urgent threads takes this limit, or a privilege (getrlimit(2): 20 less the nice value).
const NICE: u64 = 30;

/// Files that are opened later.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Files {
    /// What is in these directories can be read.
    pub(crate) readable: Vec<PathBuf>,
    /// What is in these can be made, written and removed, too.
    pub(crate) writable: Vec<PathBuf>,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            readable: READABLE.map(PathBuf::from).to_vec(),
            writable: Vec::new(),
        }
    }
}

impl Files {
    /// Permits reading in the directory of `--tls`, too: its files can be renewed. The user that vmemd becomes must be permitted to, besides.
    pub(crate) fn and_certificates(mut self, directory: Option<&PathBuf>) -> Self {
        self.readable.extend(directory.cloned());
        self
    }
}

/// Gives up what is not needed: becomes `user`, if this is root, has no capabilities but for `needs`, gets no new
/// privileges by execve(2), and opens no files but `files`. Returns what could not be given up and is not worth an end.
pub(crate) fn drop_to(user: User, needs: Needs, files: &Files) -> Result<Option<&'static str>, PrivilegeError> {
    // Before root is gone: urgent threads go before others.
    let nice = getrlimit(Resource::Nice);
    let _ = setrlimit(
        Resource::Nice,
        Rlimit {
            current: Some(NICE),
            maximum: nice.maximum.map(|maximum| maximum.max(NICE)),
        },
    );
    if geteuid().is_root() {
        become_user(user, needs).map_err(|source| PrivilegeError::User {
            uid: user.uid,
            gid: user.gid,
            source,
        })?;
    }
    keep_capabilities(needs).map_err(PrivilegeError::Capabilities)?;
    let files = restrict_files(files)?;
    Ok((files == RulesetStatus::NotEnforced).then_some("the kernel has no Landlock: vmemd can open what its user can"))
}

fn become_user(user: User, needs: Needs) -> io::Result<()> {
    set_keep_capabilities(needs != Needs::Descriptors)?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

fn keep_capabilities(needs: Needs) -> io::Result<()> {
    let wanted = match needs {
        Needs::Descriptors => CapabilitySet::empty(),
        Needs::Marks => CapabilitySet::DAC_OVERRIDE,
    };
    let permitted = rustix::thread::capabilities(None)?.permitted & wanted;
    set_no_new_privs(true)?;
    clear_ambient_capability_set()?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: permitted,
            permitted,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}

/// From now on only `files` can be opened. Those that are open stay what they are.
fn restrict_files(files: &Files) -> Result<RulesetStatus, RulesetError> {
    let abi = ABI::V3;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    // A file that is written gets its name by a rename from another directory.
    let write = read | AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile | AccessFs::Truncate | AccessFs::Refer;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .create()?
        .add_rules(path_beneath_rules(&files.readable, read))?
        .add_rules(path_beneath_rules(&files.writable, write))?
        .restrict_self()?;
    Ok(status.ruleset)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// In a thread of its own, because it is for good.
    fn after<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = std::thread::spawn(|| {
            drop_to(User::NOBODY, Needs::Descriptors, &Files::default()).expect("fewer privileges");
            run()
        });
        thread.join().expect("no panic")
    }

    #[test]
    fn what_is_open_stays_usable_and_nothing_else_can_be_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("secret");
        fs::write(&path, "secret").expect("a file");
        let open = fs::File::options().write(true).open(&path).expect("the file");
        let (status, found, made) = after(move || {
            use std::os::unix::fs::FileExt;
            open.write_all_at(b"S", 0).expect("an open file stays writable");
            let status = fs::read_to_string("/proc/thread-self/status").expect("status");
            (
                status,
                fs::read(&path).is_ok(),
                fs::write(path.with_file_name("new"), "").is_ok(),
            )
        });
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
            line.split_whitespace().next().expect("a value").to_owned()
        };
        assert_eq!(field("NoNewPrivs:"), "1");
        for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
            assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{set}");
        }
        assert!(!made, "a new file");
        if geteuid().is_root() {
            assert_eq!(field("Uid:"), "65534");
            assert!(!found, "root's file");
        }
    }
}
