// SPDX-License-Identifier: GPL-2.0-or-later
//! Who may do what, and what those who do not trust each other can do to each other (`Documentation/threat-model.rst`).

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use vmem::{Access, Control, Error, Fill, MapHandle, PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::{
    Area, AreaBuilder, MemoryAt, become_root_of_a_namespace, become_user, catch_signal, caught, wake_op, write_from,
};
use vmem_sys::calls::{self, FillRange};
use vmem_sys::{VMEM_ID_KEEP, VMEM_MARK_ZERO, vmem_attach, vmem_create, vmem_range};

use crate::failure::{Outcome, ensure, equal, errno_of, refused};
use crate::program::Program;
use crate::setting::{Board, Setting, bytes_of, check_page, contents, page};
use crate::world::{module_users, wait_until};

crate::tests![
    opens_are_permitted_as_the_table_of_nodes_says,
    root_in_a_user_namespace_is_nobody_special,
    calls_are_permitted_as_the_table_of_descriptors_says,
    a_user_with_a_node_maps_and_cannot_serve,
    unprivileged_daemon_serves_by_a_passed_region_descriptor,
    a_program_can_end_the_wait_of_its_own_system_call,
    a_time_limit_bounds_how_long_a_system_call_is_held,
    a_program_can_hold_up_conversion_but_no_killed_daemon,
];

const USER: u32 = 1000;

/// How a shell opens a file.
const READ: &str = "<";
const WRITE: &str = "<>";

/// Whether `shell`, a command that runs a script, can open the path.
fn opens(mut shell: Command, path: &str, how: &str) -> Outcome<bool> {
    let script = format!("exec 3{how}/dev/vmem/{path}");
    Ok(shell.args(["-c", &script]).output()?.status.success())
}

fn root() -> Command {
    Command::new("/bin/sh")
}

fn user(gid: u32) -> Command {
    let mut shell = root();
    shell.uid(USER).gid(gid);
    shell
}

/// The user, as root of a user namespace of its own.
fn root_of_a_namespace() -> Command {
    let mut shell = Command::new("unshare");
    shell
        .args(["--user", "--map-root-user", "--mount", "/bin/sh"])
        .uid(USER)
        .gid(USER);
    shell
}

fn opens_are_permitted_as_the_table_of_nodes_says() -> Outcome {
    let node = |name: &str, mode, uid, gid| {
        let builder = RegionBuilder::new(PAGE_SIZE as u64).name(name);
        Setting::create(builder.mode(mode).uid(uid).gid(gid))
    };
    let _regions = [
        node("roots", 0o600, 0, 0)?,
        node("users", 0o600, USER, 0)?,
        node("groups", 0o640, 0, 5)?,
        node("everyones", 0o666, 0, 0)?,
    ];
    // Who opens for reading, and for writing: root; the user; the user in the group; root of a namespace.
    let table = [
        ("control", [true, false, false, false], [true, false, false, false]),
        ("roots", [true, false, false, false], [true, false, false, false]),
        ("users", [true, true, true, true], [true, true, true, true]),
        ("groups", [true, false, true, false], [true, false, false, false]),
        ("everyones", [true; 4], [true; 4]),
    ];
    for (path, reads, writes) in table {
        for (how, expected) in [(READ, reads), (WRITE, writes)] {
            let found = [
                opens(root(), path, how)?,
                opens(user(USER), path, how)?,
                opens(user(5), path, how)?,
                opens(root_of_a_namespace(), path, how)?,
            ];
            ensure!(found == expected, "{path} {how}: {found:?}, not {expected:?}");
        }
    }
    Ok(())
}

fn root_in_a_user_namespace_is_nobody_special() -> Outcome {
    let setting = Setting::create(RegionBuilder::new(PAGE_SIZE as u64).name("roots"))?;
    // That the namespace works, or the rest would prove nothing.
    ensure!(root_of_a_namespace().args(["-c", "test $(id -u) = 0"]).status()?.success());
    for attempt in [
        "mknod /tmp/node c $(stat -c '0x%t 0x%T' /dev/vmem/roots)",
        "mknod /tmp/node c $(stat -c '0x%t 0x%T' /dev/vmem/control)",
        "chmod 666 /dev/vmem/roots",
        "chown 0:0 /dev/vmem/control",
        "mount -t devtmpfs none /mnt",
    ] {
        not_permitted(attempt)?;
    }
    // While there is a use of it, nobody may; and rmmod does not even try.
    drop(setting);
    wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
    not_permitted("rmmod vmem")
}

/// A command that root of a namespace is not permitted; it does not fail in any other way.
fn not_permitted(attempt: &str) -> Outcome {
    let output = root_of_a_namespace().args(["-c", attempt]).output()?;
    ensure!(!output.status.success(), "{attempt} was possible");
    let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
    ensure!(
        said.contains("not permitted") || said.contains("permission denied"),
        "{attempt}: {said}"
    );
    Ok(())
}

/// A call with a descriptor. There is a region with this number.
type Call = fn(BorrowedFd<'_>, u64) -> Result<(), Errno>;

/// Each call, with what it is to return on the control descriptor, the region descriptor and a map descriptor: where the descriptor has the
/// call, it comes as far as to say what is the matter with the region.
#[rustfmt::skip]
const CALLS: [(&str, Call, [Option<Errno>; 3]); 15] = [
    ("GET_FEATURES", |fd, _| calls::get_features(fd).map(drop), [None, None, None]),
    ("CREATE_VMEM", |fd, _| create(fd), [None, Some(Errno::NOTTY), Some(Errno::NOTTY)]),
    ("ATTACH", attach, [Some(Errno::BUSY), Some(Errno::NOTTY), Some(Errno::NOTTY)]),
    ("READY", |fd, _| calls::ready(fd), [Some(Errno::NOTTY), None, Some(Errno::PERM)]),
    ("WAIT_READY", |fd, _| calls::wait_ready(fd), [Some(Errno::NOTTY), None, None]),
    ("GET_INFO", |fd, _| calls::get_info(fd).map(drop), [Some(Errno::NOTTY), None, None]),
    ("GET_PRESENT", |fd, _| calls::get_present(fd, 0, 4, &mut [0]).map(drop), [Some(Errno::NOTTY), None, None]),
    ("GET_MAP_FD", |fd, _| calls::get_map_fd(fd).map(drop), [Some(Errno::NOTTY), None, None]),
    ("GET_PAGE_REQUEST", |fd, _| calls::get_page_request(fd, &mut [0; 4]).map(drop),
        [Some(Errno::NOTTY), Some(Errno::AGAIN), Some(Errno::PERM)]),
    ("MARK_PAGE_CACHED", |fd, _| done(calls::mark_page_cached(fd, &[FIRST], VMEM_MARK_ZERO)), SERVES),
    ("FILL_PAGES", |fd, _| fill(fd), SERVES),
    ("MAKE_PAGES_PRESENT", |fd, _| done(calls::make_pages_present(fd, &[FIRST])), SERVES),
    ("MAKE_VMA_ANONYMOUS", |fd, _| calls::make_vma_anonymous(fd), [Some(Errno::NOTTY), Some(Errno::BUSY), Some(Errno::PERM)]),
    ("RESUME", |fd, _| calls::resume(fd).map(drop), SERVES),
    ("mmap()", |fd, _| map(fd), [Some(Errno::NODEV), None, None]),
];
const SERVES: [Option<Errno>; 3] = [Some(Errno::NOTTY), None, Some(Errno::PERM)];
const FIRST: vmem_range = vmem_range { pgoff: 0, nr_pages: 1 };

fn done(outcome: calls::Outcome) -> Result<(), Errno> {
    outcome.error.map_or(Ok(()), Err)
}

fn create(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let create = vmem_create {
        size: PAGE_SIZE as u64,
        uid: VMEM_ID_KEEP,
        gid: VMEM_ID_KEEP,
        ..Default::default()
    };
    calls::create_vmem(fd, create).map(drop)
}

fn attach(fd: BorrowedFd<'_>, id: u64) -> Result<(), Errno> {
    let attach = vmem_attach {
        id,
        ..Default::default()
    };
    calls::attach(fd, attach).map(drop)
}

fn fill(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let bytes = bytes_of(&contents(1));
    done(calls::fill_pages(fd, &[FillRange::new(1, &bytes).ok_or(Errno::INVAL)?]))
}

fn map(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    match AreaBuilder::default().map(fd, 0, 4) {
        Ok(_) => Ok(()),
        Err(error) => Err(errno_of(&error).unwrap_or(Errno::NOTSUP)),
    }
}

/// A way to become somebody.
type Become = fn() -> Outcome;

/// The descriptor is the right: it does not matter who has it.
fn calls_are_permitted_as_the_table_of_descriptors_says() -> Outcome {
    let users: [(&str, Become); 3] = [
        ("root", || Ok(())),
        ("a user", || Ok(become_user(USER, USER)?)),
        ("root of a namespace", || {
            become_user(USER, USER)?;
            Ok(become_root_of_a_namespace()?)
        }),
    ];
    for (who, become_who) in users {
        let control = Control::open()?;
        let setting = Setting::new(4)?;
        let program = Program::start_with(|| {
            become_who()?;
            let descriptors = [
                ("control", control.as_fd()),
                ("region", setting.region.as_fd()),
                ("map", setting.map.as_fd()),
            ];
            for (name, call, expected) in CALLS {
                for ((what, fd), expected) in descriptors.into_iter().zip(expected) {
                    let found = call(fd, setting.region.id()).err();
                    ensure!(
                        found == expected,
                        "{name} of {who} on the {what} descriptor: {found:?}, not {expected:?}"
                    );
                }
            }
            Ok(vec![])
        })?;
        program.join()?;
    }
    Ok(())
}

fn a_user_with_a_node_maps_and_cannot_serve() -> Outcome {
    let setting = Setting::create(RegionBuilder::new(4 * PAGE_SIZE as u64).name("users").mode(0o666))?;
    setting.fill([1])?;
    let id = setting.region.id();
    Program::start(|| {
        become_user(USER, USER)?;
        let node = MapHandle::open("users", Access::ReadWrite)?;
        check_page(&AreaBuilder::default().map(&node, 0, 4)?, 1, 1)?;
        refused!(calls::ready(node.as_fd()), PERM);
        refused!(calls::get_page_request(node.as_fd(), &mut [0; 4]), PERM);
        refused!(calls::make_vma_anonymous(node.as_fd()), PERM);
        for fill in [
            calls::fill_pages(node.as_fd(), &[]),
            calls::mark_page_cached(node.as_fd(), &[], 0),
        ] {
            equal!(fill.error, Some(Errno::PERM));
        }
        // Nor by what it is given, nor by going round.
        refused!(calls::ready(calls::get_map_fd(node.as_fd())?.as_fd()), PERM);
        let control = Control::open();
        ensure!(matches!(&control, Err(Error::Open { source, .. }) if *source == Errno::ACCESS));
        Ok(vec![id])
    })?
    .join()?;
    Ok(())
}

fn unprivileged_daemon_serves_by_a_passed_region_descriptor() -> Outcome {
    let setting = Setting::new(4)?;
    let reader = setting.reader(2)?;
    setting.wait_waiters(1)?;
    let daemon = Program::start_with(|| {
        become_user(USER, USER)?;
        setting.region.ready()?;
        for wanted in setting.region.next_requests(4)? {
            let bytes = bytes_of(&contents(wanted.get()));
            setting.region.fill(&[Fill::new(wanted, &bytes)?]).complete()?;
        }
        Ok(vec![])
    })?;
    daemon.join()?;
    reader.join()?;
    Ok(())
}

/// A `write()` from a page that has not come, and its result.
fn write_from_page(area: &Area, page: usize) -> Outcome<std::io::Result<usize>> {
    let (_reader, writer) = rustix::pipe::pipe()?;
    let memory = MemoryAt {
        area,
        offset: page * PAGE_SIZE,
        len: 64,
    };
    Ok(write_from(&writer, memory))
}

fn a_program_can_end_the_wait_of_its_own_system_call() -> Outcome {
    const MADV_REMOVE: i32 = 9;
    let setting = Setting::new(4)?;
    let waiter = Program::start(|| {
        equal!(write_from_page(&setting.area()?, 2)??, 64);
        Ok(vec![])
    })?;
    setting.wait_waiters(1)?;
    setting.area()?.advise(2..3, MADV_REMOVE)?;
    waiter.join()?;
    Ok(())
}

fn a_time_limit_bounds_how_long_a_system_call_is_held() -> Outcome {
    let builder = RegionBuilder::new(4 * PAGE_SIZE as u64).fault_timeout(Duration::from_secs(1));
    let setting = Setting::create(builder)?;
    let board = Board::new()?;
    let program = Program::start(|| {
        become_user(USER, USER)?;
        catch_signal(Signal::USR1.as_raw(), true)?;
        let area = setting.area()?;
        board.set(0, 1)?;
        wait_until("signals come", || Ok(caught() > 0))?;
        let before = caught();
        refused!(write_from_page(&area, 2)?, FAULT);
        Ok(vec![(caught() - before) as u64])
    })?;
    // Signals come all the time: one that began the wait anew each time would end it never.
    board.wait(0, 1)?;
    let pid = Pid::from_raw(program.pid()).ok_or("it has a number")?;
    let disturber = Program::start(|| {
        while kill_process(pid, Signal::USR1).is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(vec![])
    })?;
    let told = program.join()?;
    ensure!(told.iter().any(|caught| *caught > 0), "no signal came meanwhile");
    disturber.join()?;
    equal!(setting.region.info()?.waiters, 0);
    Ok(())
}

/// A program whose lock somebody holds is not converted. A futex operation of its own on a page of another region holds it.
fn a_program_can_hold_up_conversion_but_no_killed_daemon() -> Outcome {
    let (complete, slow) = (Setting::new(4)?, Setting::new(4)?);
    complete.fill_all()?;
    let program = Program::start(|| {
        let (area, other) = (complete.area()?, slow.area()?);
        wake_op(&other, 2 * PAGE_SIZE)?;
        check_page(&area, 1, 1)?;
        check_page(&other, 2, 2)?;
        Ok(vec![])
    })?;
    slow.wait_waiters(1)?;
    let daemon = Program::start_with(|| {
        complete.region.make_vma_anonymous()?;
        Ok(vec![])
    })?;
    wait_until("it waits for the lock", || Ok(complete.region.info()?.mappings == 1))?;
    daemon.wait_asleep()?;
    daemon.signal(Signal::KILL)?;
    daemon.join_killed(Signal::KILL)?;
    // When the lock is let go of, all goes on.
    let bytes = bytes_of(&contents(2));
    slow.region.fill(&[Fill::new(page(2), &bytes)?]).complete()?;
    program.join()?;
    complete.region.make_vma_anonymous()?;
    Ok(())
}
