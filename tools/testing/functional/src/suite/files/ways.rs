// SPDX-License-Identifier: GPL-2.0-or-later
//! Every way to a region's file: none shows an absent page as zeros, and programs of the system read what the daemon brings.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use vmem::{Fill, PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::AreaBuilder;

use super::served::{LENGTH, PAGES, Served};
use super::{Mount, region};
use crate::failure::{Outcome, ensure, equal, refused};
use crate::program::Program;
use crate::setting::{Setting, bytes_of, check_page, contents};
use crate::watchdog::still_moving;
use crate::world::run_command;

crate::tests![
    reopened_file_waits_and_mapped_memory_cannot_be_reopened,
    file_has_no_handle_and_is_no_program_and_no_swap,
    stacked_and_bound_files_wait,
    loop_device_on_a_file_waits,
    io_uring_reads_wait,
    reads_by_the_kernel_wait_and_blocks_are_not_told,
    locks_and_leases_are_as_on_any_file,
    programs_read_what_the_daemon_brings,
    programs_write_into_a_file,
];

fn reopened_file_waits_and_mapped_memory_cannot_be_reopened() -> Outcome {
    let mount = Mount::new("a")?;
    let setting = Setting::create(region("one", 4))?;
    let file = mount.open("one")?;
    let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let reader = Program::start(|| {
        let mut bytes = vec![0; PAGE_SIZE];
        again.read_exact_at(&mut bytes, PAGE_SIZE as u64)?;
        ensure!(bytes == bytes_of(&contents(1)));
        Ok(vec![])
    })?;
    equal!(setting.take_request()?, 1);
    setting.fill([1])?;
    reader.join()?;
    let area = AreaBuilder::default().map(&file, 0, 4)?;
    let maps = fs::read_dir("/proc/self/map_files")?.flatten().map(|entry| entry.file_name());
    let begin = format!("{:x}-", area.address());
    let name = maps
        .map(|name| name.to_string_lossy().into_owned())
        .find(|name| name.starts_with(&begin));
    let path = format!("/proc/self/map_files/{}", name.ok_or("the area is in no map_files")?);
    refused!(File::open(&path), NXIO);
    drop(area);
    setting.no_request()
}

fn file_has_no_handle_and_is_no_program_and_no_swap() -> Outcome {
    let mount = Mount::new("a")?;
    let served = Served::new(&mount, "one")?;
    let script = "import ctypes, os, errno, struct
c = ctypes.CDLL(None, use_errno=True)
h, m = ctypes.create_string_buffer(b'\\x80\\0\\0\\0' + bytes(140)), ctypes.c_int()
assert c.name_to_handle_at(-100, b'/mnt/a/one', h, ctypes.byref(m), 0) == -1
assert ctypes.get_errno() == errno.EOPNOTSUPP, ctypes.get_errno()
# A handle that is made up, of its inode.
h = ctypes.create_string_buffer(struct.pack('IIII', 8, 1, os.stat('/mnt/a/one').st_ino, 0))
assert c.open_by_handle_at(os.open('/mnt/a', 0), h, 0) == -1
assert ctypes.get_errno() == errno.ESTALE, ctypes.get_errno()";
    run_command("python3", &["-c", script])?;
    ensure!(run_command("swapon", &[&served.path]).is_err());
    served.run("chmod 755 FILE; ! FILE; test \"$(FILE 2>&1 | grep -c 'ermission denied')\" = 1")?;
    let info = served.setting.region.info()?;
    equal!((info.present, info.requested), (0, 0));
    Ok(())
}

fn stacked_and_bound_files_wait() -> Outcome {
    run_command("modprobe", &["overlay"])?;
    let mount = Mount::new("a")?;
    fs::create_dir_all("/mnt/over")?;
    fs::create_dir_all("/mnt/layer")?;
    run_command("mount", &["-t", "tmpfs", "tmpfs", "/mnt/layer"])?;
    for directory in ["upper", "work"] {
        fs::create_dir(Path::new("/mnt/layer").join(directory))?;
    }
    let options = "lowerdir=/mnt/a,upperdir=/mnt/layer/upper,workdir=/mnt/layer/work";
    run_command("mount", &["-t", "overlay", "-o", options, "overlay", "/mnt/over"])?;
    let outcome = (|| {
        let read = Served::new(&mount, "read")?;
        ensure!(fs::read("/mnt/over/read")? == read.bytes, "read through overlayfs");
        read.all_came("read through overlayfs")?;
        let _mapped = Served::new(&mount, "mapped")?;
        let area = AreaBuilder::default()
            .read_only()
            .map(File::open("/mnt/over/mapped")?, 0, PAGES)?;
        (0..PAGES - 1).try_for_each(|page| check_page(&area, page, page))?;
        // A first write copies the file up: with its contents, and the region's is as before.
        let copied = Served::new(&mount, "copied")?;
        copied.run("printf x | dd of=/mnt/over/copied conv=notrunc status=none; test \"$(head -c1 /mnt/over/copied)\" = x")?;
        ensure!(
            fs::read("/mnt/over/copied")?[1..] == copied.bytes[1..],
            "copied up by overlayfs"
        );
        ensure!(fs::read(&copied.path)? == copied.bytes);
        let bound = Served::new(&mount, "bound")?;
        bound.run("touch /mnt/bound; mount --bind FILE /mnt/bound; cmp /mnt/bound COPY; umount /mnt/bound")?;
        bound.all_came("bound")
    })();
    for target in ["/mnt/over", "/mnt/layer"] {
        run_command("umount", &[target])?;
    }
    outcome
}

fn loop_device_on_a_file_waits() -> Outcome {
    run_command("modprobe", &["loop"])?;
    let mount = Mount::new("a")?;
    for options in ["", "--direct-io=on"] {
        let served = Served::new(&mount, "one")?;
        // It has whole sectors.
        let sectors = LENGTH / 512 * 512;
        served.run(&format!(
            "l=$(losetup -f --show {options} FILE 2>/dev/null); s=0; head -c {sectors} COPY | cmp - $l || s=1; \
             printf changed | dd of=$l bs=7 conv=notrunc,fsync status=none || s=2; losetup -d $l; exit $s"
        ))?;
        ensure!(fs::read(&served.path)?.starts_with(b"changed"));
        served.all_came("loop")?;
        // The last close of the device is a moment after the command.
        let name = served.path.clone();
        drop(served);
        crate::world::wait_until("the device is closed", || Ok(!Path::new(&name).exists()))?;
    }
    Ok(())
}

fn io_uring_reads_wait() -> Outcome {
    let mount = Mount::new("a")?;
    let served = Served::new(&mount, "one")?;
    served.run(
        "qemu-img convert -O raw --image-opts driver=raw,file.driver=file,file.filename=FILE,file.aio=io_uring,file.cache.direct=on /tmp/out; \
         head -c $(stat -c %s COPY) /tmp/out | cmp - COPY",
    )?;
    served.all_came("io_uring")
}

/// The kernel reads a module from a file by itself. Where the blocks of a file are on a disk, programs read them past the file.
fn reads_by_the_kernel_wait_and_blocks_are_not_told() -> Outcome {
    let mount = Mount::new("a")?;
    let served = Served::new(&mount, "one")?;
    let script = "import ctypes, errno, fcntl
f = open('/mnt/a/one', 'rb')
for call, room, refused in (0xc020660b, bytearray(32), errno.EOPNOTSUPP), (1, bytearray(4), errno.EINVAL):
    try: fcntl.ioctl(f, call, room); raise SystemExit('%x was not refused' % call)
    except OSError as e: assert e.errno == refused, e";
    run_command("python3", &["-c", script])?;
    equal!(served.present()?, 0);
    let script = "import ctypes, errno
c = ctypes.CDLL(None, use_errno=True)
f = open('/mnt/a/one', 'rb')
assert c.syscall(313, f.fileno(), b'', 0) == -1
assert ctypes.get_errno() == errno.ENOEXEC, ctypes.get_errno()";
    run_command("python3", &["-c", script])?;
    served.all_came("finit_module")
}

fn locks_and_leases_are_as_on_any_file() -> Outcome {
    let mount = Mount::new("a")?;
    let served = Served::new(&mount, "one")?;
    let (first, second) = (mount.open("one")?, mount.open("one")?);
    flock(&first, FlockOperation::NonBlockingLockExclusive)?;
    refused!(flock(&second, FlockOperation::NonBlockingLockExclusive), AGAIN);
    flock(&first, FlockOperation::Unlock)?;
    flock(&second, FlockOperation::NonBlockingLockExclusive)?;
    drop((first, second));
    let script = "import fcntl, errno
f = open('/mnt/a/one')
fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_RDLCK)
assert fcntl.fcntl(f, fcntl.F_GETLEASE) == fcntl.F_RDLCK
g = open('/mnt/a/one')
fcntl.lockf(f, fcntl.LOCK_SH)";
    run_command("python3", &["-c", script])?;
    equal!(served.setting.region.info()?.present, 0);
    Ok(())
}

fn programs_read_what_the_daemon_brings() -> Outcome {
    let mount = Mount::new("a")?;
    let programs = [
        ("cp", "cp FILE /tmp/out; cmp /tmp/out COPY"),
        ("cat", "cat FILE | cmp - COPY"),
        ("dd", "dd if=FILE of=/tmp/out bs=10000 status=none; cmp /tmp/out COPY"),
        (
            "dd-direct",
            "dd if=FILE of=/tmp/out bs=8k iflag=direct status=none; cmp /tmp/out COPY",
        ),
        ("sha256sum", "test \"$(sha256sum <FILE)\" = \"$(sha256sum <COPY)\""),
        ("cmp", "cmp FILE COPY"),
        (
            "tail",
            "test \"$(cat FILE | tail -c 5000 | sha256sum)\" = \"$(tail -c 5000 COPY | sha256sum)\"",
        ),
        (
            "grep",
            "test \"$(LC_ALL=C grep -c -a -P '\\xc0' FILE)\" = \"$(LC_ALL=C grep -c -a -P '\\xc0' COPY)\"",
        ),
        (
            "mmap",
            "python3 -c \"import mmap; f = open('FILE','rb'); assert mmap.mmap(f.fileno(), 0, prot=1)[:] == open('COPY','rb').read()\"",
        ),
        (
            "memmap",
            "python3 -c \"import numpy as n; assert (n.memmap('FILE', 'u1', 'r') == n.fromfile('COPY', 'u1')).all()\"",
        ),
        (
            "fromfile",
            "python3 -c \"import numpy as n; a = n.fromfile('FILE', 'u1'); assert a.size and (a == n.fromfile('COPY', 'u1')).all()\"",
        ),
        (
            "qemu-img",
            "qemu-img convert -f raw -O raw FILE /tmp/out; head -c $(stat -c %s COPY) /tmp/out | cmp - COPY",
        ),
        (
            "nbdkit",
            "nbdkit -U - --exit-with-parent file FILE --run 'nbdcopy \"$uri\" /tmp/out'; head -c $(stat -c %s COPY) /tmp/out | cmp - COPY",
        ),
    ];
    for (name, script) in programs {
        still_moving();
        let served = Served::new(&mount, name)?;
        served.run(script).map_err(|failure| format!("{name}: {}", failure.text()))?;
        served.all_came(name)?;
    }
    // GNU tar opens every file with O_NONBLOCK: it says what it cannot read, and reads a complete region.
    for options in ["-cf", "-Scf"] {
        let served = Served::new(&mount, "tar")?;
        let tar = format!("tar {options} /tmp/tar -C /mnt/a tar; tar -xOf /tmp/tar | cmp - COPY");
        let refused = served.run(&tar).err().ok_or("tar has not failed")?;
        let said = refused.text();
        // With -S it does not look whether a read has failed: the archive is short, or none. A file without blocks would be a hole for it, and zeros.
        let is_right = match options {
            "-cf" => said.contains("Resource temporarily unavailable"),
            _ => !said.contains(" differ: "),
        };
        ensure!(is_right, "tar {options}: {said}");
        served.run(&format!("cat FILE >/dev/null; {tar}"))?;
    }
    // A file that has its length in front, and one that has it behind.
    npy(&mount)
}

/// `np.load` finds the shape of an array in the file, and the archive of several in its end.
fn npy(mount: &Mount) -> Outcome {
    let script = "import numpy as n
n.save('/tmp/a.npy', n.arange(30000)); n.savez('/tmp/a.npz', one=n.arange(30001), two=n.ones(7))";
    run_command("python3", &["-c", script])?;
    for (name, load) in [
        ("a.npy", "(l == n.arange(30000)).all()"),
        ("a.npz", "(l['one'] == n.arange(30001)).all() and l['two'].sum() == 7"),
    ] {
        let bytes = fs::read(format!("/tmp/{name}"))?;
        let setting = Setting::create(RegionBuilder::new(bytes.len() as u64).name(name))?;
        let mut padded = bytes.clone();
        padded.resize(setting.pages() * PAGE_SIZE, 0xff);
        let path = mount.path(name);
        let program = Program::start(|| {
            let load = format!("import numpy as n; l = n.load('{}'); assert {load}", path.display());
            run_command("python3", &["-c", &load])?;
            Ok(vec![])
        })?;
        // It waits for the file before anything has come.
        setting.wait_waiters(1)?;
        setting
            .region
            .fill(&[Fill::new(crate::setting::page(0), &padded)?])
            .complete()?;
        program.join()?;
    }
    Ok(())
}

fn programs_write_into_a_file() -> Outcome {
    let mount = Mount::new("a")?;
    let served = Served::new(&mount, "one")?;
    served.run(
        "printf hello | dd of=FILE bs=5 seek=1000 conv=notrunc status=none; test \"$(tail -c +5001 FILE | head -c5)\" = hello",
    )?;
    let mut expected = served.bytes.clone();
    expected[5000..5005].copy_from_slice(b"hello");
    ensure!(fs::read(&served.path)? == expected);
    // A copy onto it would begin with an empty file.
    ensure!(served.run("cp COPY FILE").is_err());
    ensure!(fs::read(&served.path)? == expected);
    served.run("fallocate --punch-hole --offset 8192 --length 8192 FILE")?;
    expected[8192..16384].fill(0);
    ensure!(fs::read(&served.path)? == expected);
    let memory: OwnedFd = File::open(&served.path)?.into();
    equal!(rustix::fs::fstat(&memory)?.st_size, LENGTH as i64);
    Ok(())
}
