// SPDX-License-Identifier: GPL-2.0-or-later
//! Children, signals, and one process that looks into another.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{Area, checked};

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
}

/// A child process. It is killed when this is dropped, if it still runs.
#[derive(Debug)]
pub struct Child {
    pid: libc::pid_t,
    end: Option<End>,
}

/// Makes a child that runs `run` and exits with what it returns. Nothing of the parent is dropped in the child.
///
/// Other threads of the parent, which the child does not have, hold no lock that `run` takes: they wait in system calls, or make calls of vmem.
/// (One that is about to say that something is wrong holds that of the standard error: the run has failed then.)
pub fn fork(run: impl FnOnce() -> i32) -> io::Result<Child> {
    // SAFETY: the C library makes its own locks right in the child; of others, see above.
    let pid = checked(unsafe { libc::fork() })?;
    if pid == 0 {
        let status = run();
        // SAFETY: it ends the child, without what the parent has to do at its own end.
        unsafe { libc::_exit(status) }
    }
    Ok(Child { pid, end: None })
}

impl Child {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends it a signal.
    pub fn kill(&self, signal: i32) -> io::Result<()> {
        if self.end.is_some() {
            return Ok(());
        }
        // SAFETY: the process is this value's child, not yet waited for: the number is no other's.
        checked(unsafe { libc::kill(self.pid, signal) }).map(drop)
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> io::Result<End> {
        self.wait_with(0).map(|end| end.unwrap_or(End::Exited(-1)))
    }

    /// Its end, if it has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<End>> {
        self.wait_with(libc::WNOHANG)
    }

    fn wait_with(&mut self, flags: i32) -> io::Result<Option<End>> {
        if self.end.is_some() {
            return Ok(self.end);
        }
        let mut status = 0;
        loop {
            // SAFETY: `status` is a place for the status.
            match checked(unsafe { libc::waitpid(self.pid, &mut status, flags) }) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
        self.end = Some(if libc::WIFSIGNALED(status) {
            End::Killed(libc::WTERMSIG(status))
        } else {
            End::Exited(libc::WEXITSTATUS(status))
        });
        Ok(self.end)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // A child that is waited for already has no more to end.
        let _ = self.kill(libc::SIGKILL);
        let _ = self.wait();
    }
}

/// Closes those descriptors of this process whose name in `/proc/self/fd` is `chosen`. Nobody may use them afterwards: this is for a
/// child, which has copies of all that the parent has open.
pub fn close_descriptors(chosen: impl Fn(&str) -> bool) -> io::Result<()> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        let target = std::fs::read_link(&path).unwrap_or_default();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.parse::<i32>().ok());
        if let (Some(number), true) = (number, chosen(&target.to_string_lossy())) {
            numbers.push(number);
        }
    }
    for number in numbers {
        // SAFETY: the descriptor is open, and by the contract of this function nobody uses it any more.
        checked(unsafe { libc::close(number) })?;
    }
    Ok(())
}

/// Makes this process an ordinary user's, without groups and for good.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: no group is read.
    checked(unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: it has no addresses.
    checked(unsafe { libc::setresgid(gid, gid, gid) })?;
    // SAFETY: as before.
    checked(unsafe { libc::setresuid(uid, uid, uid) }).map(drop)
}

/// Makes this process, an ordinary user's with one thread, root of a user namespace of its own.
pub fn become_root_of_a_namespace() -> io::Result<()> {
    // SAFETY: it has no addresses.
    let uid = unsafe { libc::getuid() };
    // SAFETY: as before.
    let gid = unsafe { libc::getgid() };
    // Who has changed its user owns nothing of its own in /proc.
    // SAFETY: as before.
    checked(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) })?;
    // SAFETY: as before.
    checked(unsafe { libc::unshare(libc::CLONE_NEWUSER) })?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

static CAUGHT: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_: libc::c_int) {
    CAUGHT.fetch_add(1, Ordering::SeqCst);
}

/// From now on `signal` is counted, and restarts the system call that it interrupts, or does not.
pub fn catch_signal(signal: i32, restart: bool) -> io::Result<()> {
    // SAFETY: all bytes zero is a `sigaction` without flags and without a mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = count as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = if restart { libc::SA_RESTART } else { 0 };
    // SAFETY: the handler does what a signal handler may do: it counts.
    checked(unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) }).map(drop)
}

extern "C" fn exit_with_code(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler that asks for it a `siginfo_t`.
    let code = unsafe { (*info).si_code };
    // SAFETY: `_exit` may be called in a handler.
    unsafe { libc::_exit(code) }
}

/// From now on SIGBUS ends this process, with the signal's code as its status.
pub fn exit_with_bus_code() -> io::Result<()> {
    // SAFETY: all bytes zero is a `sigaction` without flags and without a mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = exit_with_code as extern "C" fn(_, _, _) as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler does what a signal handler may do: it ends the process.
    checked(unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) }).map(drop)
}

/// Handlers of `signal` run on this page of the area, and are counted.
pub fn catch_signal_on(signal: i32, area: &Area, page: usize) -> io::Result<()> {
    let stack = libc::stack_t {
        ss_sp: area.at(page * crate::PAGE, crate::PAGE).cast(),
        ss_flags: 0,
        ss_size: crate::PAGE,
    };
    // SAFETY: the stack is inside its area, to which no reference exists, and nothing else is written to that page.
    checked(unsafe { libc::sigaltstack(&stack, std::ptr::null_mut()) })?;
    // SAFETY: all bytes zero is a `sigaction` without flags and without a mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = count as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = libc::SA_ONSTACK;
    // SAFETY: the handler does what a signal handler may do: it counts.
    checked(unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) }).map(drop)
}

/// `mlockall`.
pub fn lock_all(flags: i32) -> io::Result<()> {
    // SAFETY: it has no addresses.
    checked(unsafe { libc::mlockall(flags) }).map(drop)
}

/// `FUTEX_WAKE_OP` that adds nothing to the word at `offset`: the kernel touches it with the lock of the address space held.
pub fn wake_op(area: &Area, offset: usize) -> io::Result<()> {
    let own = 0u32;
    let futex = libc::FUTEX_WAKE_OP | libc::FUTEX_PRIVATE_FLAG;
    let add_nothing = libc::FUTEX_OP(libc::FUTEX_OP_ADD, 0, libc::FUTEX_OP_CMP_EQ, 0);
    let (first, second) = (&raw const own, area.at(offset, 4));
    // SAFETY: the second word is inside its area, to which no reference exists; nobody waits for either.
    checked(unsafe { libc::syscall(libc::SYS_futex, first, futex, 1, 1usize, second, add_nothing) } as libc::c_int).map(drop)
}

/// From now on `signal` does what it does by default.
pub fn reset_signal(signal: i32) -> io::Result<()> {
    // SAFETY: the default action is a handler for any signal.
    match unsafe { libc::signal(signal, libc::SIG_DFL) } {
        libc::SIG_ERR => Err(crate::errno()),
        _ => Ok(()),
    }
}

/// How many signals were caught in this process.
pub fn caught() -> usize {
    CAUGHT.load(Ordering::SeqCst)
}

/// The kernel's number of the calling thread.
pub fn this_thread() -> i32 {
    // SAFETY: it has no arguments and cannot fail.
    unsafe { libc::gettid() }
}

/// The list of robust futexes of the calling thread is this one from now on, `offset` bytes after the begin of the area: its exit
/// walks it.
pub fn set_robust_list(area: &Area, offset: usize) -> io::Result<()> {
    let head = area.address().wrapping_add(offset);
    const SIZE: usize = 3 * size_of::<usize>();
    // SAFETY: the kernel reads the list, whatever it is, as any user memory. The tests have no robust futexes that would miss it.
    checked(unsafe { libc::syscall(libc::SYS_set_robust_list, head, SIZE) } as libc::c_int).map(drop)
}

/// Sends a signal to one thread of a process.
pub fn interrupt_thread(pid: i32, thread: i32, signal: i32) -> io::Result<()> {
    // SAFETY: it sends a signal to a thread of the tests', which has a handler for it (`catch_signal`).
    checked(unsafe { libc::syscall(libc::SYS_tgkill, pid, thread, signal) } as libc::c_int).map(drop)
}

/// Reads a word of another process by ptrace: attaches, waits until it has stopped, reads, and lets it go.
pub fn peek_by_ptrace(pid: i32, address: usize) -> io::Result<u64> {
    let mut word = 0u64;
    let to = &raw mut word;
    // SAFETY: the raw call, unlike the C library's, stores the word through its last argument.
    let peek = || unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_PEEKDATA, pid, address, to) };
    while_stopped(pid, || checked(peek() as libc::c_int).map(drop))?;
    Ok(word)
}

/// Writes a word of another process, a child of the test's, by ptrace.
pub fn poke_by_ptrace(pid: i32, address: usize, word: u64) -> io::Result<()> {
    // SAFETY: what is written is the other process's memory.
    let poke = || unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_POKEDATA, pid, address, word) };
    while_stopped(pid, || checked(poke() as libc::c_int).map(drop))
}

/// Makes a call while another process, a child of the test's, is stopped by ptrace.
fn while_stopped(pid: i32, call: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let null = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: PTRACE_ATTACH stops the other process.
    checked(unsafe { libc::ptrace(libc::PTRACE_ATTACH, pid, null, null) } as libc::c_int)?;
    let mut status = 0;
    // SAFETY: `status` is a place for the status.
    checked(unsafe { libc::waitpid(pid, &mut status, libc::__WALL) })?;
    let result = call();
    // SAFETY: PTRACE_DETACH lets the process go on.
    let detached = checked(unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, null, null) } as libc::c_int);
    result.and(detached.map(drop))
}
