# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of the Python module vmem. They need the kernel module and root: the functional tests run them (suite/sample/python.rs)."""

import ast
import errno
import faulthandler
import inspect
import mmap
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time
import unittest

import vmem

PAGE = vmem.PAGE_SIZE
PAGES = 64
TOP = pathlib.Path(__file__).resolve().parent.parent

# Another process: maps the region of the descriptor, touches the pages, and prints the first byte of each.
TOUCH = """
import mmap, sys
memory = mmap.mmap(int(sys.argv[1]), int(sys.argv[2]))
print(*[memory[4096 * int(page)] for page in sys.argv[3:]])
"""


def contents(offset, length):
    """Each page has its number and one in each byte."""
    return b"".join(bytes([page % 255 + 1]) * PAGE for page in range(offset // PAGE, (offset + length) // PAGE))


def touch(region, *pages):
    command = [sys.executable, "-c", TOUCH, str(region.fileno()), str(region.size), *map(str, pages)]
    return subprocess.Popen(command, pass_fds=[region.fileno()], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def touched(process):
    try:
        output, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, (process.returncode, errors)
    return [int(word) for word in output.split()]


class Threaded(threading.Thread):
    """A thread with a result."""

    def __init__(self, function):
        super().__init__(daemon=True)
        self.function = function
        self.start()

    def run(self):
        try:
            self.result, self.error = self.function(), None
        except BaseException as error:
            self.result, self.error = None, error

    def end(self):
        self.join(60)
        assert not self.is_alive(), "the thread does not end"
        if self.error:
            raise self.error
        return self.result


def wait_until(what, condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"not within a minute: {what}")


class Serve(unittest.TestCase):
    """Regions that are served from a function."""

    def test_function_answers_the_touches_of_another_process(self):
        length = PAGES * PAGE - 100
        asked = []

        def read(offset, length):
            asked.extend(range(offset // PAGE, (offset + length) // PAGE))
            if offset == 7 * PAGE and length == PAGE:
                return None
            if offset + length == PAGES * PAGE:
                # As a file ends.
                return contents(offset, length)[:-100]
            return bytearray(contents(offset, length)) if offset % (2 * PAGE) else contents(offset, length)

        with vmem.Region.create(length) as region:
            self.assertEqual((region.size, region.length, region.name, region.path), (PAGES * PAGE, length, None, None))
            order = random.Random(1).sample(range(PAGES), PAGES)
            process = touch(region, *order)
            region.serve(read)
            self.assertEqual(touched(process), [0 if page == 7 else page + 1 for page in order])
            self.assertEqual(sorted(asked), list(range(PAGES)))
            info = region.info()
            self.assertEqual((info.present, info.plain, info.unreadable), (PAGES, True, 0))
            self.assertEqual(region.read(length - 1, 101), bytes([PAGES]) + bytes(100))

    def test_pages_are_filled_before_they_are_touched(self):
        with vmem.Region.create(PAGES * PAGE) as region:
            region.fill(2 * PAGE, contents(2 * PAGE, 3 * PAGE))
            self.assertEqual(region.absent(), [(0, 2 * PAGE), (5 * PAGE, (PAGES - 5) * PAGE)])
            self.assertEqual(region.read(3 * PAGE - 1, 2), bytes([3, 4]))
            # A page that is present keeps its contents.
            region.fill(2 * PAGE, bytes(PAGE))
            self.assertEqual(touched(touch(region, 2)), [3])
            for wrong in [(1, bytes(PAGE)), (0, bytes(PAGE - 1)), (PAGES * PAGE, bytes(PAGE))]:
                self.assertRaises(ValueError, region.fill, *wrong)
            self.assertRaises(ValueError, region.read, PAGES * PAGE, 1)

    def test_read_waits_while_the_same_process_serves(self):
        with vmem.Region.create(PAGES * PAGE) as region:
            server = Threaded(lambda: region.serve(contents))
            self.assertEqual(region.read(0, region.size), contents(0, region.size))
            self.assertIsNone(server.end())
            self.assertTrue(region.info().plain)

    def test_serve_is_ended_by_stop_by_an_event_and_by_close(self):
        region = vmem.Region.create(PAGES * PAGE)
        server = Threaded(lambda: region.serve(contents))
        self.assertEqual(region.read(0, 1), b"\1")
        with self.assertRaises(OSError) as raised:
            region.serve(contents)
        self.assertEqual(raised.exception.errno, errno.EBUSY)
        region.stop()
        server.end()
        # Before it begins; and once.
        region.stop()
        region.serve(contents)
        event = threading.Event()
        server = Threaded(lambda: region.serve(contents, stop=event))
        self.assertEqual(region.read(PAGE, 1), b"\2")
        event.set()
        server.end()
        server = Threaded(lambda: region.serve(contents))
        self.assertEqual(region.read(2 * PAGE, 1), b"\3")
        region.close()
        server.end()
        self.assertTrue(region.closed)
        for use in [region.fileno, region.info, lambda: region.serve(contents), lambda: region.read(0, 1)]:
            self.assertRaises(ValueError, use)

    def test_serving_continues_when_all_pages_are_present_if_that_is_wanted(self):
        with vmem.Region.create(PAGE) as region:
            server = Threaded(lambda: region.serve(contents, finish=False))
            self.assertEqual(region.read(0, 1), b"\1")
            server.join(0.5)
            self.assertTrue(server.is_alive())
            region.stop()
            server.end()
            self.assertFalse(region.info().plain)


class Errors(unittest.TestCase):
    """Functions that fail, and calls that are refused."""

    def test_exception_makes_its_page_unreadable_and_the_others_come(self):
        def read(offset, length):
            if offset <= 3 * PAGE < offset + length:
                raise OSError(errno.ENXIO, "bad sector")
            return contents(offset, length)

        errors = []
        with vmem.Region.create(PAGES * PAGE) as region:
            server = Threaded(lambda: region.serve(read, on_error=lambda *error: errors.append(error)))
            with self.assertRaises(OSError) as raised:
                region.read(2 * PAGE, 4 * PAGE)
            self.assertEqual(raised.exception.errno, errno.EIO)
            process = touch(region, 3)
            process.communicate(timeout=60)
            self.assertEqual(process.returncode, -signal.SIGBUS)
            self.assertEqual(touched(touch(region, 2, 4, 5)), [3, 5, 6])
            region.stop()
            server.end()
            self.assertEqual(region.info().unreadable, 1)
            self.assertEqual([(offset, length, error.errno) for offset, length, error in errors], [(3 * PAGE, PAGE, errno.ENXIO)])

    def test_wrong_answer_is_reported_as_an_exception(self):
        answers = {0: b"short", 1: "text", 2: bytes(2 * PAGE)}
        reported = []
        hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: reported.append(unraisable.exc_type)
        try:
            with vmem.Region.create(PAGES * PAGE) as region:
                server = Threaded(lambda: region.serve(lambda offset, length: answers[offset // PAGE]))
                for page in answers:
                    with self.assertRaises(OSError) as raised:
                        region.read(page * PAGE, 1)
                    self.assertEqual(raised.exception.errno, errno.EIO)
                region.stop()
                server.end()
        finally:
            sys.unraisablehook = hook
        self.assertEqual(reported, [ValueError, TypeError, ValueError])

    def test_exception_of_on_error_ends_serving(self):
        def fail(*_):
            raise LookupError("enough")

        with vmem.Region.create(PAGES * PAGE) as region:
            server = Threaded(lambda: region.serve(fail, on_error=fail))
            self.assertRaises(OSError, region.read, 0, 1)
            self.assertRaises(LookupError, server.end)

    def test_signal_ends_serving_and_what_was_asked_for_is_asked_again(self):
        main = threading.main_thread()
        with vmem.Region.create(PAGES * PAGE) as region:
            # While it waits.
            killer = Threaded(lambda: (time.sleep(0.3), signal.pthread_kill(main.ident, signal.SIGINT)))
            self.assertRaises(KeyboardInterrupt, region.serve, contents)
            killer.end()
            # While the signal comes to another thread, which is not the one to handle it.
            killer = Threaded(lambda: (time.sleep(0.3), signal.pthread_kill(killer.ident, signal.SIGINT)))
            self.assertRaises(KeyboardInterrupt, region.serve, contents)
            killer.end()

            # In the function.
            def interrupted(offset, length):
                raise KeyboardInterrupt

            process = touch(region, 5, 6)
            self.assertRaises(KeyboardInterrupt, region.serve, interrupted)
            self.assertEqual(region.info().unreadable, 0)
            server = Threaded(lambda: region.serve(contents))
            self.assertEqual(touched(process), [6, 7])
            region.stop()
            server.end()

    def test_touch_under_the_lock_of_the_serving_process_ends_by_the_time_limit(self):
        script = """
import mmap, threading, vmem
region = vmem.Region.create(4096, fault_timeout=1)
threading.Thread(target=lambda: region.serve(lambda offset, length: bytes(length)), daemon=True).start()
memory = mmap.mmap(region.fileno(), region.size)
print(memory[0])
"""
        process = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
        self.assertEqual(process.returncode, -signal.SIGBUS, process.stderr)

    def test_refused_calls_have_the_errno_of_the_kernel(self):
        self.assertRaises(FileNotFoundError, vmem.Region.open, "nobody")
        self.assertRaises(FileNotFoundError, vmem.Region.attach, "nobody")
        for size, name, number in [(0, None, errno.EINVAL), (PAGE, "a/b", errno.EINVAL)]:
            with self.assertRaises(OSError) as raised:
                vmem.Region.create(size, name)
            self.assertEqual(raised.exception.errno, number, str(raised.exception))
        with open("/proc/self/exe", "rb") as other, self.assertRaises(OSError) as raised:
            vmem.Tracking(other)
        self.assertIn(raised.exception.errno, [errno.EACCES, errno.EINVAL, errno.ENOENT])

    def test_region_with_a_name_is_opened_and_taken_over(self):
        daemon = vmem.Region.create(PAGES * PAGE, "python", mode=0o640)
        self.assertEqual((daemon.name, daemon.path), ("python", "/run/vmem/python"))
        self.assertEqual(os.stat(daemon.path).st_mode & 0o777, 0o640)
        self.assertRaises(FileExistsError, vmem.Region.create, PAGE, "python")
        with vmem.Region.open("python") as by_name, vmem.Region.open(daemon.path, writable=False) as by_path:
            self.assertEqual([by_name.id, by_path.id], [daemon.id] * 2)
            self.assertEqual([by_name.name, by_path.name], ["python"] * 2)
            self.assertRaises(PermissionError, by_name.serve, contents)
            self.assertRaises(PermissionError, by_name.fill, 0, bytes(PAGE))
            with self.assertRaises(OSError) as raised:
                vmem.Region.attach("python")
            self.assertEqual(raised.exception.errno, errno.EBUSY)
            daemon.fill(0, contents(0, PAGE))
            daemon.close()
            self.assertFalse(by_name.info().attached)
            with vmem.Region.attach("python") as daemon:
                self.assertEqual(daemon.absent(), [(PAGE, (PAGES - 1) * PAGE)])
                server = Threaded(lambda: daemon.serve(contents))
                # The file of a region, by Python's own calls, which let other threads run.
                with open(by_path.path, "rb") as file:
                    self.assertEqual(file.read(), contents(0, PAGES * PAGE))
                server.end()


class Snapshots(unittest.TestCase):
    """What was written, and memory as it was at one instant."""

    def settle(self, tracking):
        """Until no page is in the log because the kernel still has it in hand."""
        wait_until("the log is empty", lambda: tracking.clean() == [] and tracking.peek() == [])

    def memory(self):
        fd = os.memfd_create("python")
        self.addCleanup(os.close, fd)
        os.ftruncate(fd, PAGES * PAGE)
        memory = mmap.mmap(fd, PAGES * PAGE)
        memory[:] = contents(0, PAGES * PAGE)
        return fd, memory

    def test_log_has_the_pages_that_were_written(self):
        fd, memory = self.memory()
        with vmem.Tracking(fd) as tracking:
            self.assertEqual(tracking.size, PAGES * PAGE)
            self.settle(tracking)
            for page in [5, 6, 9]:
                memory[page * PAGE] = 0
            os.pwrite(fd, b"x", 20 * PAGE)
            written = [(5 * PAGE, 2 * PAGE), (9 * PAGE, PAGE), (20 * PAGE, PAGE)]
            self.assertEqual(tracking.peek(), written)
            self.assertEqual(tracking.clean(), written)
            self.assertEqual(tracking.clean(), [])
            memory[0] = 0
            self.assertEqual(tracking.clean(), [(0, PAGE)])
            with self.assertRaises(OSError) as raised:
                vmem.Tracking(fd)
            self.assertEqual(raised.exception.errno, errno.EBUSY)
        self.assertRaises(ValueError, tracking.clean)

    def test_snapshot_keeps_what_is_overwritten(self):
        fd, memory = self.memory()
        with vmem.Tracking(fd) as tracking:
            self.settle(tracking)
            memory[3 * PAGE] = 100
            with tracking.snapshot() as snapshot:
                memory[3 * PAGE : 3 * PAGE + 2] = b"\0\0"
                memory[10 * PAGE] = 0
                self.assertEqual(snapshot.written(), [(3 * PAGE, PAGE)])
                self.assertEqual(snapshot.read(3 * PAGE, 2), bytes([100, 4]))
                self.assertEqual(os.pread(snapshot.fileno(), 1, 10 * PAGE), bytes([11]))
                whole = bytearray(contents(0, PAGES * PAGE))
                whole[3 * PAGE] = 100
                self.assertEqual(snapshot.read(0, snapshot.size), whole)
                self.assertEqual(snapshot.data(), [(0, PAGES * PAGE)])
                with self.assertRaises(OSError) as raised:
                    tracking.snapshot()
                self.assertEqual(raised.exception.errno, errno.EBUSY)
            # It was not done: the next one has its page, too.
            with tracking.snapshot() as snapshot:
                self.assertEqual(snapshot.written(), [(3 * PAGE, PAGE), (10 * PAGE, PAGE)])
                snapshot.done(3 * PAGE, PAGE)
                self.assertEqual(snapshot.written(), [(10 * PAGE, PAGE)])
                with self.assertRaises(OSError) as raised:
                    snapshot.read(3 * PAGE, 1)
                self.assertEqual(raised.exception.errno, errno.ENODATA)
                snapshot.done()
            with tracking.snapshot() as snapshot:
                self.assertEqual(snapshot.written(), [])
            self.assertRaises(ValueError, snapshot.written)

    def test_snapshot_of_a_region_waits_for_its_pages(self):
        with vmem.Region.create(PAGES * PAGE) as region:
            server = Threaded(lambda: region.serve(contents))
            with vmem.Tracking(region) as tracking, tracking.snapshot() as snapshot:
                self.assertEqual(snapshot.read(0, snapshot.size), contents(0, snapshot.size))
            server.end()


class Examples(unittest.TestCase):
    """The examples and the stub say what they should."""

    def test_computed_array_is_read_by_another_process(self):
        example = subprocess.Popen([sys.executable, TOP / "examples" / "computed.py", "squares"], stdout=subprocess.PIPE, text=True)
        self.assertIn("/run/vmem/squares: 1024 MiB", example.stdout.readline())
        with open("/run/vmem/squares", "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        for element in [0, 123456789, 2**27 - 1]:
            self.assertEqual(int.from_bytes(memory[8 * element : 8 * element + 8], sys.byteorder), element**2 % 2**64)
        example.send_signal(signal.SIGINT)
        output, _ = example.communicate(timeout=60)
        self.assertEqual((example.returncode, output), (0, "computed 12 KiB in 3 calls\n"))

    def test_written_pages_of_another_process_are_shown(self):
        script = """
import mmap, os, time
fd = os.memfd_create("writer")
os.ftruncate(fd, 1 << 20)
memory = mmap.mmap(fd, 1 << 20)
memory[:] = bytes(1 << 20)
print("ready", flush=True)
while True:
    memory[8 * 4096 : 8 * 4096 + 2] = b"ab"
    time.sleep(0.01)
"""
        writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        self.addCleanup(lambda: (writer.kill(), writer.communicate()))
        self.assertEqual(writer.stdout.readline(), "ready\n")
        command = [sys.executable, TOP / "examples" / "written.py", str(writer.pid), "/memfd:writer", "0.5"]
        output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        self.assertIn("0x8000 4 KiB 61620000000000000000000000000000\n", output)
        self.assertRegex(output, r"\n\d+ of 1024 KiB were written in 0.5 s\n$")

    def test_stub_has_what_the_module_has(self):
        stub = ast.parse((TOP / "vmem" / "__init__.pyi").read_text(encoding="utf-8"))
        classes = {item.name: item for item in stub.body if isinstance(item, ast.ClassDef) and not item.name.startswith("_")}
        self.assertEqual(sorted([*classes, "PAGE_SIZE"]), sorted(vmem.__all__))
        for name, described in classes.items():
            members = {item.name: item.args for item in described.body if isinstance(item, ast.FunctionDef)}
            real = {key: value for key, value in vars(getattr(vmem, name)).items() if key in members or not key.startswith("__")}
            self.assertEqual(sorted(members), sorted(real), name)
            for member, arguments in members.items():
                if member.startswith("__") or not callable(getattr(getattr(vmem, name), member)):
                    continue
                names = [argument.arg for argument in arguments.args + arguments.kwonlyargs]
                self.assertEqual(names, list(inspect.signature(getattr(getattr(vmem, name), member)).parameters), f"{name}.{member}")
                self.assertTrue(inspect.getdoc(getattr(getattr(vmem, name), member)), f"{name}.{member}")


if __name__ == "__main__":
    # A test that does not end says where it is.
    faulthandler.dump_traceback_later(100, exit=True)
    unittest.main(verbosity=2)
