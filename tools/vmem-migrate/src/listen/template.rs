// SPDX-License-Identifier: GPL-2.0-or-later
//! Templates: how guests are received. A template has the arguments of `vmemctl receive`, one a line. `{guest}` stands for the guest's name.
//! No shell reads it.

use std::fs;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Args, Command, FromArgMatches};
use vmem_cli::chain;
use vmem_qemu::command::{self, Sharing};

use crate::error::Cause;
use crate::options::Receive;

/// The template of guests that have none of their own.
const DEFAULT: &str = "default";

/// The longest name of a guest.
const LONGEST_NAME: usize = 64;

/// Refuses a template that no guest could be received by. Templates in a directory may change at any time, so only the default one is checked.
pub(super) fn check(template: &Path) -> Result<(), Cause> {
    let path = if template.is_dir() {
        template.join(DEFAULT)
    } else {
        template.to_owned()
    };
    if template.is_dir() && !path.exists() {
        return Ok(());
    }
    parse(&path, "guest").map(drop)
}

/// How the guest of this name is received. The name comes from another host.
pub(super) fn for_guest(template: &Path, guest: &str) -> Result<Receive, Cause> {
    let path = find(template, guest)?;
    parse(&path, guest)
}

/// How the move of a guest that has come before is resumed. Its command does not matter any more.
pub(super) fn for_resumed(template: &Path, guest: &str) -> Result<Receive, Cause> {
    let path = find(template, guest)?;
    let receive = read(&path, guest, options)?;
    Ok(Receive {
        command: Vec::new(),
        ..receive
    })
}

fn find(template: &Path, guest: &str) -> Result<PathBuf, Cause> {
    if !is_name(guest) {
        return Err(Cause::other(format!(
            "the guest's name {guest:?} cannot be used in a template: a name has 1 to {LONGEST_NAME} letters, digits, '.', '_' and '-' of ASCII, \
             and begins with a letter or a digit"
        )));
    }
    if !template.is_dir() {
        return Ok(template.to_owned());
    }
    let found = [guest, DEFAULT]
        .map(|name| template.join(name))
        .into_iter()
        .find(|path| path.exists());
    // The path is this host's matter, and no other's.
    found.ok_or_else(|| Cause::other(format!("there is no template for guest {guest}, and none named {DEFAULT:?}")))
}

fn is_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

fn parse(path: &Path, guest: &str) -> Result<Receive, Cause> {
    read(path, guest, of_text)
}

fn read(path: &Path, guest: &str, of: impl FnOnce(&str, &str) -> Result<Receive, String>) -> Result<Receive, Cause> {
    let text = fs::read_to_string(path).map_err(Cause::call(format!("template {}: cannot read it", path.display())))?;
    of(&text, guest).map_err(|why| Cause::other(format!("template {}: {why}", path.display())))
}

fn of_text(text: &str, guest: &str) -> Result<Receive, String> {
    let receive = options(text, guest)?;
    if receive.command.is_empty() {
        return Err(
            "there is no command that starts QEMU: a line '--', and then one line for each word of the command".to_owned(),
        );
    }
    command::check(&receive.command, Sharing::Shared).map_err(|error| chain(&error))?;
    Ok(receive)
}

fn options(text: &str, guest: &str) -> Result<Receive, String> {
    let lines = text.lines().map(str::trim);
    let words = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let words = words.map(|word| word.replace("{guest}", guest));
    let options = Receive::augment_args(Command::new("receive").no_binary_name(true).disable_help_flag(true));
    // What follows the first empty line is the usage of a command line.
    let failed = |error: clap::Error| {
        let text = error.to_string();
        let said: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
        said.join(" ").trim_start_matches("error: ").to_owned()
    };
    let matches = options.try_get_matches_from(words).map_err(failed)?;
    if matches.value_source("listen") == Some(ValueSource::CommandLine) {
        return Err("--listen is an option of 'vmemctl listen' itself".to_owned());
    }
    Receive::from_arg_matches(&matches).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "# A guest.\n--qmp\n  /run/{guest}.qmp\n\n--huge\n--\n/bin/true\n-name\nguest={guest},debug-threads=on\n$(x) `y`; z\n";

    #[test]
    fn template_is_the_arguments_of_receive() {
        let receive = of_text(TEXT, "web.1").expect("a template");
        assert_eq!(receive.qmp, Path::new("/run/web.1.qmp"));
        assert!(receive.huge);
        assert_eq!(
            receive.command,
            ["/bin/true", "-name", "guest=web.1,debug-threads=on", "$(x) `y`; z"]
        );
    }

    #[test]
    fn template_that_can_receive_no_guest_is_refused() {
        for (bad, why) in [
            ("--qmp\n/q\n", "no command"),
            ("--\n/bin/true\n", "--qmp"),
            ("--qmp\n/q\n--listen\n80\n--\n/bin/true\n", "--listen"),
            ("--qmp\n/q\n--resume\n", "no command"),
            ("--qmp\n/q\n--resume\n--\n/bin/true\n", "--resume"),
            ("--qmp\n/q\n--region\nname=4G\n--\n/bin/true\n", "--region"),
            ("--qmp\n/q\n--no-such-option\n--\n/bin/true\n", "--no-such-option"),
            ("--qmp\n/q\n--\n/bin/true\n-incoming\ntcp:0:4444\n", "-incoming"),
        ] {
            let refused = of_text(bad, "guest0").expect_err(bad);
            assert!(refused.contains(why), "{bad}: {refused}");
        }
    }

    #[test]
    fn only_plain_names_get_into_a_template() {
        let long = "x".repeat(LONGEST_NAME + 1);
        for bad in [
            "",
            ".",
            "../x",
            "-name",
            "a,b=c",
            "a b",
            "a/b",
            "{qmp}",
            "\u{e9}",
            "a\n",
            long.as_str(),
        ] {
            assert!(!is_name(bad), "{bad}");
            let refused = for_guest(Path::new("/nowhere"), bad).expect_err(bad).to_string();
            assert!(refused.contains("cannot be used in a template"), "{refused}");
        }
        for good in ["guest0", "Web-1.example_org", "0", &long[1..]] {
            assert!(is_name(good), "{good}");
        }
    }

    #[test]
    fn guest_has_a_template_of_its_own_or_the_default_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let refused = for_guest(directory.path(), "a").expect_err("no template").to_string();
        assert!(refused.contains("no template for guest a"), "{refused}");
        fs::write(directory.path().join(DEFAULT), TEXT).expect("a file");
        fs::write(directory.path().join("a"), TEXT.replace("/run", "/own")).expect("a file");
        let qmp = |guest: &str| for_guest(directory.path(), guest).expect("a template").qmp;
        let resumed = for_resumed(directory.path(), "a").expect("a template");
        assert_eq!((resumed.qmp.as_path(), resumed.command.len()), (Path::new("/own/a.qmp"), 0));
        assert_eq!(qmp("a"), Path::new("/own/a.qmp"));
        assert_eq!(qmp("b"), Path::new("/run/b.qmp"));
        check(directory.path()).expect("a template");
        fs::write(directory.path().join(DEFAULT), "nothing").expect("a file");
        assert!(check(directory.path()).is_err());
    }
}
