// SPDX-License-Identifier: GPL-2.0-or-later
//! The programs of these tests: vmemd as a source and as a daemon, and the sample that reads a region.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use crate::failure::{Outcome, ensure};
use crate::schema;

/// A program beside this one.
pub(crate) fn beside(name: &str) -> Outcome<Command> {
    Ok(Command::new(std::env::current_exe()?.with_file_name(name)))
}

/// A child that does not outlive its test.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn new(command: &mut Command) -> Outcome<Self> {
        Ok(Self(command.spawn()?))
    }

    pub(crate) fn kill(&mut self) -> Outcome {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    /// What it says on standard output.
    pub(crate) fn stdout(&mut self) -> Outcome<ChildStdout> {
        Ok(self.0.stdout.take().ok_or("no output")?)
    }

    /// Waits until it has ended.
    pub(crate) fn wait(&mut self) -> Outcome<ExitStatus> {
        Ok(self.0.wait()?)
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Outcome {
        Ok(kill_process(Pid::from_child(&self.0), signal)?)
    }

    pub(crate) fn terminate(&self) -> Outcome {
        self.signal(Signal::TERM)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// `vmemd serve`.
pub(crate) struct Source {
    pub(crate) process: Process,
    pub(crate) address: String,
}

impl Source {
    pub(crate) fn new(exports: &[&str]) -> Outcome<Self> {
        Self::at("127.0.0.1:0", exports)
    }

    pub(crate) fn at(address: &str, exports: &[&str]) -> Outcome<Self> {
        let mut source = Self::run(address, exports)?;
        // Who writes there when nobody reads must not wait.
        drop(source.process.0.stderr.take());
        Ok(source)
    }

    /// With options; what it says on standard error can be read.
    pub(crate) fn with(options: &[&str], exports: &[&str]) -> Outcome<Self> {
        Self::run("127.0.0.1:0", &[options, exports].concat())
    }

    fn run(address: &str, arguments: &[&str]) -> Outcome<Self> {
        let mut command = beside("vmemd")?;
        command
            .args(["serve", "--listen", address])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = Process(command.spawn()?);
        let output = process.0.stdout.take().ok_or("no output")?;
        for line in BufReader::new(output).lines() {
            if let Some(address) = line?.strip_prefix("listening on ") {
                let address = address.to_owned();
                return Ok(Self { process, address });
            }
        }
        Err("the source did not begin to listen".into())
    }
}

/// `vmemd --source`, which reports as JSON.
pub(crate) struct Daemon {
    pub(crate) process: Process,
    output: BufReader<ChildStdout>,
    heard: String,
}

/// How a daemon ended.
pub(crate) struct End {
    code: Option<i32>,
    pub(crate) output: String,
    pub(crate) errors: String,
}

impl Daemon {
    pub(crate) fn new(source: &str, options: &[&str]) -> Outcome<Self> {
        Self::start(beside("vmemd")?, source, options)
    }

    /// The same, started by another program, which gets its command as arguments.
    pub(crate) fn under(mut wrapper: Command, source: &str, options: &[&str]) -> Outcome<Self> {
        wrapper.arg(beside("vmemd")?.get_program());
        Self::start(wrapper, source, options)
    }

    fn start(mut command: Command, source: &str, options: &[&str]) -> Outcome<Self> {
        command.args(["--source", source, "--json"]).args(options);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process(command.spawn()?);
        let output = BufReader::new(process.0.stdout.take().ok_or("no output")?);
        Ok(Self {
            process,
            output,
            heard: String::new(),
        })
    }

    /// Tells it a word.
    pub(crate) fn tell(&mut self, word: &str) -> Outcome {
        let input = self.process.0.stdin.as_mut().ok_or("it hears nothing")?;
        Ok(writeln!(input, "{word}")?)
    }

    /// Waits until it says this.
    pub(crate) fn wait_line(&mut self, part: &str) -> Outcome {
        let mut line = String::new();
        while !line.contains(part) {
            line.clear();
            ensure!(self.output.read_line(&mut line)? > 0, "no {part} in {}", self.heard);
            self.heard.push_str(&line);
        }
        Ok(())
    }

    /// The value of a text in the last line that has it.
    pub(crate) fn text(&self, name: &str) -> Outcome<String> {
        let (_, rest) = self
            .heard
            .rsplit_once(&format!("\"{name}\":\""))
            .ok_or_else(|| format!("no {name} in {}", self.heard))?;
        Ok(rest.split('"').next().unwrap_or_default().to_owned())
    }

    /// What it says on standard error from now on.
    pub(crate) fn errors(&mut self) -> Outcome<BufReader<ChildStderr>> {
        Ok(BufReader::new(self.process.0.stderr.take().ok_or("it is read already")?))
    }

    /// Waits until it has ended.
    pub(crate) fn end(mut self) -> Outcome<End> {
        let errors = self.process.0.stderr.take();
        let errors = thread::spawn(|| errors.map(std::io::read_to_string).transpose());
        self.output.read_to_string(&mut self.heard)?;
        let errors = errors.join().map_err(|_| "a thread has panicked")??.unwrap_or_default();
        let code = self.process.0.wait()?.code();
        schema::VMEMD.check(&self.heard)?;
        Ok(End {
            code,
            output: self.heard,
            errors,
        })
    }
}

impl End {
    /// It ended with this code.
    pub(crate) fn with_code(self, code: i32) -> Outcome<Self> {
        ensure!(
            self.code == Some(code),
            "exit code {:?}, not {code}: {}{}",
            self.code,
            self.output,
            self.errors
        );
        let last = self.output.lines().last().unwrap_or_default();
        ensure!(
            last.starts_with("{\"event\":\"end\"") && last.contains(&format!("\"exit_code\":{code},")),
            "{last}"
        );
        Ok(self)
    }

    /// The value of a number in the last line that has it.
    pub(crate) fn number(&self, name: &str) -> Outcome<u64> {
        let key = format!("\"{name}\":");
        let rest = self
            .output
            .rsplit_once(&key)
            .ok_or_else(|| format!("no {name} in {}", self.output))?
            .1;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Ok(digits.parse()?)
    }
}

/// The sample that walks a region in random order, hashes it, and then keeps it.
pub(crate) struct Program {
    pub(crate) process: Process,
    hold: ChildStdin,
}

impl Program {
    pub(crate) fn new(name: &str, source: &Path) -> Outcome<Self> {
        let of_file = beside("checksum")?.arg("--file").arg(source).output()?;
        let expected = String::from_utf8(of_file.stdout)?;
        let expected = expected.split_whitespace().next().ok_or("no checksum")?;
        let mut command = beside("checksum")?;
        command.args([name, "--wait", "30", "--random", "7", "--hold", "--expect", expected]);
        let process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut process = Process(process?);
        let hold = process.0.stdin.take().ok_or("no input")?;
        Ok(Self { process, hold })
    }

    /// It has read all pages as they are at the source, and reads the same once more.
    pub(crate) fn succeeds(mut self) -> Outcome {
        drop(self.hold);
        let (output, errors) = (self.process.0.stdout.take(), self.process.0.stderr.take());
        let output = output.map(std::io::read_to_string).transpose()?.unwrap_or_default();
        let errors = errors.map(std::io::read_to_string).transpose()?.unwrap_or_default();
        let status = self.process.0.wait()?;
        ensure!(
            status.success() && output.trim_end().ends_with("again"),
            "{status}: {output}{errors}"
        );
        Ok(())
    }
}
