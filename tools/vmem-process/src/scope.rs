// SPDX-License-Identifier: GPL-2.0-or-later
//! Scopes of systemd for the processes that outlive vmemctl.
//!
//! When a unit or a login session ends, systemd kills every process in its control group (`KillMode=control-group`,
//! `KillUserProcesses=yes`). The end of `vmemctl receive` would then be the end of the guest that it has just received. So QEMU and vmemd
//! get control groups of their own, as libvirt and machined do for their machines.
//!
//! `systemd-run --scope` asks systemd for the scope, enters the scope and then executes the program. The program keeps the process number
//! of the child that vmemctl started, never runs outside its scope, and all that it starts is in the scope as well. A D-Bus client in
//! vmemctl could move the process only after its start.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::text::clean;

const SYSTEMD_RUN: &str = "systemd-run";

/// The options that start a program in a scope. `None` if no scope is needed or available. They are the same for all programs that this
/// process starts.
static OPTIONS: OnceLock<Option<&'static [&'static str]>> = OnceLock::new();

/// The options of `systemd-run`, the preferred ones first. systemd before version 254 does not know the last option of the first line.
/// Later versions may replace `${NAME}` in the program's arguments without that option.
const WAYS: [&[&str]; 2] = [
    &[
        "--scope",
        "--quiet",
        "--collect",
        "--no-ask-password",
        "--slice=machine.slice",
        "--expand-environment=no",
    ],
    &[
        "--scope",
        "--quiet",
        "--collect",
        "--no-ask-password",
        "--slice=machine.slice",
    ],
];

/// Decides whether processes that are started later get scopes: if `wanted`, on a host that systemd runs, and if this process is in a unit or a session.
/// Returns a note for the user if scopes are needed and not available.
pub fn prepare(wanted: bool) -> Option<String> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let unit = unit(&groups).filter(|_| wanted && Path::new("/run/systemd/system").is_dir());
    let (options, note) = match unit {
        None => (None, None),
        Some(unit) => match try_out() {
            Ok(options) => (Some(options), None),
            Err(why) => (
                None,
                Some(format!(
                    "QEMU and vmemd stay in {unit}, because systemd gives them no scope of their own ({why}): when {unit} ends, systemd ends \
                     them and the guest, unless it has KillMode=process"
                )),
            ),
        },
    };
    // Only the first decision counts.
    let _ = OPTIONS.set(options);
    note
}

/// A command that starts `program` in a scope of its own, if [`prepare`] has found that scopes are available. The name of the scope has
/// `kind` and `name`, which tells whose program it is.
pub fn command(program: impl AsRef<OsStr>, kind: &str, name: &str) -> Command {
    let Some(options) = OPTIONS.get().copied().flatten() else {
        return Command::new(program);
    };
    let mut command = Command::new(SYSTEMD_RUN);
    command
        .args(options)
        .arg(format!("--unit={}", unit_name(kind, name, SystemTime::now())))
        .arg(format!("--description={kind} of vmem ({name})"))
        .arg("--")
        .arg(program);
    command
}

/// A unique name. A scope of the same guest may still exist, because it lives as long as its QEMU.
fn unit_name(kind: &str, guest: &str, now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("vmem-{kind}-{}-{:x}.scope", clean(guest, 64), since.as_nanos())
}

/// Makes a scope for `true`, to find out whether scopes are available. Returns the options that work.
fn try_out() -> Result<&'static [&'static str], String> {
    let mut why = String::new();
    for options in WAYS {
        let tried = Command::new(SYSTEMD_RUN)
            .args(options)
            .args(["--", "true"])
            .stdin(Stdio::null())
            .output();
        match tried {
            Ok(output) if output.status.success() => return Ok(options),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                why = format!("{SYSTEMD_RUN}: {}", said.lines().last().unwrap_or("it does not say why"));
            }
            Err(error) => return Err(format!("{SYSTEMD_RUN}: {error}")),
        }
    }
    Err(why)
}

/// The unit or session that a process with these control groups (`/proc/PID/cgroup`) ends with.
fn unit(groups: &str) -> Option<&str> {
    let path = groups.lines().find_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, path) = line.split_once(':')?;
        matches!(controllers, "" | "name=systemd").then_some(path)
    })?;
    path.split('/')
        .rev()
        .find(|part| part.ends_with(".service") || part.ends_with(".scope"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn unit_is_found_for_services_and_sessions_and_not_for_the_root() {
        for (groups, found) in [
            ("0::/system.slice/receive@guest0.service\n", Some("receive@guest0.service")),
            ("0::/user.slice/user-0.slice/session-3.scope\n", Some("session-3.scope")),
            ("0::/system.slice/ssh.service/below\n", Some("ssh.service")),
            (
                "4:memory:/a.service\n1:name=systemd:/user.slice/session-c1.scope\n",
                Some("session-c1.scope"),
            ),
            ("0::/\n", None),
            ("0::/machine.slice\n", None),
            ("4:memory:/a.service\n", None),
            ("", None),
        ] {
            assert_eq!(unit(groups), found, "{groups}");
        }
    }

    #[test]
    fn scopes_of_one_guest_have_unique_names() {
        let name = |nanoseconds| unit_name("qemu", "in.guest 0/a", UNIX_EPOCH + Duration::from_nanos(nanoseconds));
        assert_eq!(name(255), "vmem-qemu-in_guest_0_a-ff.scope");
        assert_ne!(name(255), name(256));
    }

    #[test]
    fn without_scopes_the_program_itself_is_started() {
        // No test calls prepare(), which decides for the whole process.
        let command = command("/bin/true", "qemu", "in.guest0");
        assert_eq!(command.get_program(), "/bin/true");
        assert_eq!(command.get_args().count(), 0);
    }
}
