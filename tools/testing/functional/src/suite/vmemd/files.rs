// SPDX-License-Identifier: GPL-2.0-or-later
//! Regions of vmemd as files: who mounts the file system, where, and what is in its way.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use vmem::{Access, FILES_DIRECTORY, Sharing};

use super::{Daemon, Process, Scratch, Source, beside, check_page, open, wait_info};
use crate::failure::{Outcome, ensure, equal};
use crate::suite::files::Mount;
use crate::world::{is_mounted, run_command, unmount_files, wait_until};

crate::tests![
    daemons_that_start_at_once_mount_the_files_once,
    lock_of_a_user_does_not_keep_a_daemon_from_mounting,
    another_mount_is_used_if_others_reach_it,
    directory_of_the_command_line_is_mounted_or_none_is,
    daemon_that_may_not_mount_uses_nodes_and_says_why,
    directory_with_files_is_not_mounted_over,
    plain_file_over_a_file_is_refused_unless_the_region_is_mapped,
    file_has_the_size_of_its_source_to_the_byte,
];

const PAGES: u64 = 20;

/// A daemon that says that a region of this name is ready, and what its contents come from.
struct Ready(Daemon, Scratch);

impl Ready {
    fn new(name: &str, options: &[&str]) -> Outcome<Self> {
        let file = Scratch::new(name, PAGES)?;
        let daemon = Daemon::new(&format!("file:{}", file.export(name)), options)?;
        Self::wait(daemon, file)
    }

    fn wait(mut daemon: Daemon, file: Scratch) -> Outcome<Self> {
        daemon.wait_line("\"ready\"")?;
        Ok(Self(daemon, file))
    }

    /// The path that it says, and that of the node.
    fn paths(&self) -> Outcome<(String, String)> {
        Ok((self.0.text("path")?, self.0.text("node")?))
    }

    /// Ends it. Returns what it has said on standard error.
    fn errors(self) -> Outcome<String> {
        self.0.process.signal(Signal::TERM)?;
        Ok(self.0.end()?.errors)
    }
}

/// The options of each mount of the file system at this directory.
fn mounts(directory: &str) -> Outcome<Vec<String>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        (fields.get(4) == Some(&directory) && line.contains(" - vmem "))
            .then(|| fields.get(5).map(|options| (*options).to_owned()))
    };
    Ok(text.lines().filter_map(of_line).flatten().collect())
}

fn of_node(name: &str) -> (String, String) {
    let node = format!("/dev/vmem/{name}");
    (node.clone(), node)
}

fn daemons_that_start_at_once_mount_the_files_once() -> Outcome {
    equal!(mounts(FILES_DIRECTORY)?, Vec::<String>::new());
    let names: Vec<String> = (0..8).map(|number| format!("once{number}")).collect();
    let files = names
        .iter()
        .map(|name| Scratch::new(name, PAGES))
        .collect::<Outcome<Vec<_>>>()?;
    let start = |(name, file): (&String, &Scratch)| Daemon::new(&format!("file:{}", file.export(name)), &[]);
    let daemons = names.iter().zip(&files).map(start).collect::<Outcome<Vec<_>>>()?;
    let mut ready = Vec::new();
    for (daemon, file) in daemons.into_iter().zip(files) {
        ready.push(Ready::wait(daemon, file)?);
    }
    for (name, Ready(daemon, file)) in names.iter().zip(&ready) {
        let path = format!("{FILES_DIRECTORY}/{name}");
        equal!(
            (daemon.text("path")?, daemon.text("node")?),
            (path.clone(), format!("/dev/vmem/{name}"))
        );
        ensure!(
            fs::read(&path)? == fs::read(file.path())?,
            "{path} is not what the source has"
        );
    }
    let mounts = mounts(FILES_DIRECTORY)?;
    equal!(mounts.len(), 1);
    for option in ["nosuid", "nodev", "noexec"] {
        ensure!(mounts[0].split(',').any(|has| has == option), "{mounts:?}");
    }
    // It stays, and the next daemon finds it.
    drop(ready);
    let next = Ready::new("next", &[])?;
    equal!(next.paths()?.0, "/run/vmem/next");
    equal!(self::mounts(FILES_DIRECTORY)?.len(), 1);
    unmount_files()?;
    equal!(fs::metadata(FILES_DIRECTORY)?.permissions().mode() & 0o7777, 0o755);
    Ok(())
}

/// Any user can lock a directory that is open to all.
fn lock_of_a_user_does_not_keep_a_daemon_from_mounting() -> Outcome {
    fs::create_dir_all(FILES_DIRECTORY)?;
    let mut user = Command::new("setpriv");
    user.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    user.args(["flock", "--no-fork", FILES_DIRECTORY, "sleep", "1000"]);
    let _locker = Process::new(user.stdin(Stdio::null()).stdout(Stdio::null()))?;
    let directory = fs::File::open(FILES_DIRECTORY)?;
    wait_until("the directory is locked", || {
        let lock = flock(&directory, FlockOperation::NonBlockingLockExclusive);
        if lock.is_ok() {
            flock(&directory, FlockOperation::Unlock)?;
        }
        Ok(lock.is_err())
    })?;
    drop(directory);
    equal!(Ready::new("locked", &[])?.paths()?.0, "/run/vmem/locked");
    Ok(())
}

fn another_mount_is_used_if_others_reach_it() -> Outcome {
    {
        let _mount = Mount::new("other")?;
        let daemon = Ready::new("elsewhere", &[])?;
        equal!(daemon.paths()?, ("/mnt/other/elsewhere".into(), "/dev/vmem/elsewhere".into()));
        ensure!(!is_mounted());
    }
    let _mount = Mount::new("closed/other")?;
    fs::set_permissions("/mnt/closed", Permissions::from_mode(0o700))?;
    let daemon = Ready::new("reached", &[])?;
    equal!(daemon.paths()?.0, "/run/vmem/reached");
    // The first choice is its own place, also if another mount is older.
    let daemon = Ready::new("again", &[])?;
    equal!(daemon.paths()?.0, "/run/vmem/again");
    Ok(())
}

fn directory_of_the_command_line_is_mounted_or_none_is() -> Outcome {
    let daemon = Ready::new("none", &["--files", "none"])?;
    equal!(daemon.paths()?, of_node("none"));
    ensure!(!is_mounted());
    let errors = daemon.errors()?;
    ensure!(!errors.contains("mount"), "{errors}");
    let named = Ready::new("named", &["--files", "/mnt/named"])?;
    equal!(named.paths()?.0, "/mnt/named/named");
    equal!(mounts("/mnt/named")?.len(), 1);
    let second = Ready::new("second", &["--files", "/mnt/named"])?;
    equal!(second.paths()?.0, "/mnt/named/second");
    equal!(mounts("/mnt/named")?.len(), 1);
    ensure!(!is_mounted());
    drop((named, second));
    run_command("umount", &["/mnt/named"])?;
    let refused = beside("vmemd")?.args(["--source", "x", "--files", "named"]).output()?;
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    Ok(())
}

/// Runs its arguments as root of a user namespace that has all users.
fn in_user_namespace(file: &Scratch, name: &str) -> Outcome<Daemon> {
    let mut unshare = Command::new("unshare");
    // What it waits for is said over standard input, which stays vmemd's.
    unshare.args(["--user", "--mount", "/bin/sh", "-c", "read line; exec \"$@\"", "sh"]);
    let mut daemon = Daemon::under(unshare, &format!("file:{}", file.export(name)), &[])?;
    let pid = daemon.process.0.id();
    let own = fs::read_link("/proc/self/ns/user")?;
    wait_until("the namespace is there", || {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm"))?;
        Ok(comm.trim() == "sh" && fs::read_link(format!("/proc/{pid}/ns/user"))? != own)
    })?;
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{map}"), "0 0 65536")?;
    }
    let input = daemon.process.0.stdin.as_mut().ok_or("it has no input")?;
    writeln!(input)?;
    Ok(daemon)
}

fn daemon_that_may_not_mount_uses_nodes_and_says_why() -> Outcome {
    let file = Scratch::new("less", PAGES)?;
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]);
    let daemon = Daemon::under(setpriv, &format!("file:{}", file.export("less")), &[])?;
    let less = Ready::wait(daemon, file)?;
    let file = Scratch::new("inner", PAGES)?;
    let inner = Ready::wait(in_user_namespace(&file, "inner")?, file)?;
    for (name, daemon) in [("less", less), ("inner", inner)] {
        equal!(daemon.paths()?, of_node(name));
        ensure!(fs::metadata(format!("/dev/vmem/{name}")).is_ok());
        let errors = daemon.errors()?;
        ensure!(
            errors.contains("cannot mount the files of regions at /run/vmem") && errors.contains("CAP_SYS_ADMIN"),
            "{name}: {errors}"
        );
    }
    ensure!(!is_mounted());
    // With a mount that is there, they need none of their own.
    let _mount = Mount::new("there")?;
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]);
    let file = Scratch::new("found", PAGES)?;
    let daemon = Daemon::under(setpriv, &format!("file:{}", file.export("found")), &[])?;
    equal!(Ready::wait(daemon, file)?.paths()?.0, "/mnt/there/found");
    Ok(())
}

fn directory_with_files_is_not_mounted_over() -> Outcome {
    fs::create_dir_all(FILES_DIRECTORY)?;
    let early = Path::new(FILES_DIRECTORY).join("early");
    fs::write(&early, "what a program wrote that came too early")?;
    let checked = || -> Outcome {
        let daemon = Ready::new("late", &[])?;
        equal!(daemon.paths()?, of_node("late"));
        let errors = daemon.errors()?;
        ensure!(errors.contains("/run/vmem has files, which a mount would hide"), "{errors}");
        let file = Scratch::new("early", PAGES)?;
        let end = Daemon::new(&format!("file:{}", file.export("early")), &[])?
            .end()?
            .with_code(5)?;
        ensure!(end.errors.contains("/run/vmem/early is a plain file"), "{}", end.errors);
        ensure!(!end.output.contains("\"ready\""), "{}", end.output);
        let serve = beside("vmemd")?
            .args(["serve", "--listen", "127.0.0.1:0", "other=/run/vmem/early"])
            .stdin(Stdio::null())
            .output()?;
        let errors = String::from_utf8_lossy(&serve.stderr);
        ensure!(
            serve.status.code() == Some(1) && errors.contains("a plain file in the place"),
            "{errors}"
        );
        Ok(())
    }();
    fs::remove_file(&early)?;
    checked?;
    let daemon = Ready::new("early", &[])?;
    equal!(daemon.paths()?.0, "/run/vmem/early");
    Ok(())
}

fn plain_file_over_a_file_is_refused_unless_the_region_is_mapped() -> Outcome {
    let mut first = Ready::new("covered", &["--no-background"])?;
    let handle = open("covered")?;
    let from_file = format!("file:{}", first.1.export("covered"));
    first.0.process.kill()?;
    wait_info(&handle, "the daemon has gone", |info| !info.attached)?;
    fs::write("/mnt/plain", "")?;
    run_command("mount", &["--bind", "/mnt/plain", "/run/vmem/covered"])?;
    let checked = || -> Outcome {
        let end = Daemon::new(&from_file, &["--resume"])?.end()?.with_code(5)?;
        ensure!(end.errors.contains("/run/vmem/covered is a plain file"), "{}", end.errors);
        let memory = handle.map(Access::ReadWrite, Sharing::Shared)?;
        let next = Daemon::new(&from_file, &["--resume"])?;
        check_page(&memory, 17)?;
        let end = next.end()?.with_code(0)?;
        ensure!(
            end.errors.contains("region covered: /run/vmem/covered is a plain file"),
            "{}",
            end.errors
        );
        Ok(())
    }();
    run_command("umount", &["/run/vmem/covered"])?;
    drop((first, handle));
    checked
}

fn file_has_the_size_of_its_source_to_the_byte() -> Outcome {
    /// Not one of whole pages.
    const LENGTH: usize = 3 * 4096 + 777;
    let mount = Mount::new("a")?;
    let path = "/dev/shm/odd";
    let bytes: Vec<u8> = (0..LENGTH).map(|at| (at % 251) as u8 | 1).collect();
    fs::write(path, &bytes)?;
    let check = |name: &str, daemon: &mut Daemon| -> Outcome {
        daemon.wait_line("\"ready\"")?;
        let found = fs::read(mount.path(name))?;
        ensure!(found == bytes, "{name} has {} bytes, or others", found.len());
        Ok(())
    };
    check("near", &mut Daemon::new(&format!("file:near={path}"), &[])?)?;
    let source = Source::new(&[&format!("far={path}")])?;
    let mut far = Daemon::new(&source.address, &["--no-background"])?;
    check("far", &mut far)?;
    // The next host's source is this region, by its node, which has no size.
    let next = Source::new(&["next=/dev/vmem/far"])?;
    let checked = check("next", &mut Daemon::new(&next.address, &[])?);
    fs::remove_file(path)?;
    checked
}
