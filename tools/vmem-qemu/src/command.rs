// SPDX-License-Identifier: GPL-2.0-or-later
//! The user's command that starts QEMU: checks of its options, and substitution of its placeholders.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::Error;

/// How QEMU is to map the regions of a guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// `share=on`: the guest's writes get into the region.
    Shared,
    /// `share=off,readonly=on,rom=off`: a page that the guest writes is copied, and the region does not change.
    Private,
}

/// Refuses a command whose QEMU could never take a guest, or would not map its regions as `sharing` says.
///
/// A program that itself starts QEMU may add options of its own, so a missing option is no error here.
///
/// # Errors
///
/// [`Error::Command`].
pub fn check(command: &[String], sharing: Sharing) -> Result<(), Error> {
    let [program, arguments @ ..] = command else { return Ok(()) };
    check_program(program, std::env::var_os("PATH").as_deref())?;
    for (at, word) in arguments.iter().enumerate() {
        let value = arguments.get(at + 1).map_or("", String::as_str);
        // QEMU accepts its options with one dash or two.
        match word.strip_prefix('-').map(|name| name.strip_prefix('-').unwrap_or(name)) {
            Some("object") => check_object(value, sharing)?,
            Some("mem-prealloc") => return Err(touches_memory("-mem-prealloc", "Leave it out")),
            Some("overcommit") if is_on(value, "mem-lock") => {
                return Err(touches_memory(
                    "-overcommit mem-lock=on (libvirt: <locked/>)",
                    "Use mem-lock=on-fault, or leave it out",
                ));
            }
            Some("incoming") if value != "defer" => {
                return Err(refused(format!(
                    "QEMU's command has -incoming {value}: it must be -incoming defer, since vmemctl tells QEMU where the guest comes from"
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Checks a value of `-object`.
fn check_object(value: &str, sharing: Sharing) -> Result<(), Error> {
    let json = value
        .starts_with('{')
        .then(|| serde_json::from_str::<Value>(value).ok())
        .flatten();
    let text = |name: &str| match &json {
        Some(object) => object
            .get(name)
            .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)),
        None => keyval(value, name).map(str::to_owned),
    };
    let kind = match &json {
        Some(_) => text("qom-type").unwrap_or_default(),
        None => text("qom-type").unwrap_or_else(|| value.split(',').next().unwrap_or_default().to_owned()),
    };
    if !kind.starts_with("memory-backend-") {
        return Ok(());
    }
    let id = text("id").unwrap_or_default();
    if text("prealloc").is_some_and(|value| means_on(&value)) {
        return Err(touches_memory(
            &format!("prealloc=on for memory backend {id:?} (libvirt: <allocation mode='immediate'/>)"),
            "Leave it out",
        ));
    }
    let is_region = text("mem-path").is_some_and(|path| path.contains("{memory:"));
    let is_on = |name: &str| text(name).is_some_and(|value| means_on(&value));
    match sharing {
        _ if !is_region => Ok(()),
        Sharing::Shared if !is_on("share") => Err(refused(format!(
            "QEMU's command has memory backend {id:?} without share=on: QEMU's writes would not get into the region"
        ))),
        Sharing::Private if is_on("share") || !is_on("readonly") || !text("rom").is_some_and(|value| means_off(&value)) => {
            Err(refused(format!(
                "QEMU's command has memory backend {id:?} without share=off,readonly=on,rom=off (QEMU 8.2 and later): a clone must not be \
                 able to change the memory that it shares with others"
            )))
        }
        _ => Ok(()),
    }
}

fn touches_memory(what: &str, remedy: &str) -> Error {
    refused(format!(
        "QEMU's command has {what}: QEMU would touch all of its memory before it takes a guest, and wait for pages that come only with the \
         guest. {remedy}"
    ))
}

/// The value of a key in QEMU's `key=value,key=value`. A key without a value is "on".
fn keyval<'a>(options: &'a str, key: &str) -> Option<&'a str> {
    // If a key is given twice, the last one counts. QEMU doubles a comma in a value, but no value that is checked here has one.
    let found = options
        .split(',')
        .rev()
        .map(|option| option.split_once('=').unwrap_or((option, "on")));
    found.filter(|(name, _)| *name == key).map(|(_, value)| value).next()
}

fn is_on(options: &str, key: &str) -> bool {
    keyval(options, key).is_some_and(means_on)
}

fn means_on(value: &str) -> bool {
    matches!(value, "on" | "yes" | "true" | "y")
}

fn means_off(value: &str) -> bool {
    matches!(value, "off" | "no" | "false" | "n")
}

/// Refuses a program that does not exist.
fn check_program(program: &str, path: Option<&std::ffi::OsStr>) -> Result<(), Error> {
    let is_program = |file: PathBuf| {
        file.metadata()
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let found = if program.contains('/') {
        is_program(PathBuf::from(program))
    } else {
        // Without PATH, the system searches its default directories, which are not known here.
        path.is_none_or(|path| std::env::split_paths(path).any(|directory| is_program(directory.join(program))))
    };
    if found {
        Ok(())
    } else {
        Err(refused(format!("QEMU's command: there is no program {program:?}")))
    }
}

/// The nodes of a guest's memory: the ID of each backend, and the file that it gets.
pub type Nodes<'a> = &'a [(String, PathBuf)];

/// Replaces the placeholders in the words of the command: `{qmp}` by the socket, `{memory:ID}` by the node of that backend. All other
/// braces belong to QEMU, for example in JSON.
///
/// # Errors
///
/// [`Error::Command`]: a placeholder names a backend that the guest does not have.
pub fn fill_in(command: &[String], qmp: &Path, nodes: Nodes<'_>) -> Result<Vec<String>, Error> {
    command
        .iter()
        .map(|word| fill_in_word(word, Some(qmp), MEMORY, nodes))
        .collect()
}

/// Replaces the placeholders `{disk:NAME}` by the file of that disk, and nothing else.
///
/// # Errors
///
/// [`Error::Command`]: a placeholder names a disk that the guest does not have.
pub fn fill_in_disks(command: &[String], disks: Nodes<'_>) -> Result<Vec<String>, Error> {
    command.iter().map(|word| fill_in_word(word, None, DISK, disks)).collect()
}

/// Placeholders with a name: how they begin, and what they stand for.
type Kind = (&'static str, &'static str);

const MEMORY: Kind = ("memory:", "memory backend");
const DISK: Kind = ("disk:", "disk");

fn fill_in_word(word: &str, qmp: Option<&Path>, kind: Kind, nodes: Nodes<'_>) -> Result<String, Error> {
    let mut done = String::new();
    let mut rest = word;
    while let Some((before, after)) = rest.split_once('{') {
        done.push_str(before);
        rest = if let (Some(qmp), Some(after)) = (qmp, after.strip_prefix("qmp}")) {
            done.push_str(&qmp.display().to_string());
            after
        } else if let Some(named) = after.strip_prefix(kind.0) {
            let (id, after) = named
                .split_once('}')
                .ok_or_else(|| refused(format!("{word:?} has a {{{} without a }}", kind.0)))?;
            done.push_str(&node_of(id, kind, nodes)?.display().to_string());
            after
        } else {
            // A placeholder may follow the brace.
            done.push('{');
            after
        };
    }
    done.push_str(rest);
    Ok(done)
}

fn node_of<'a>(id: &str, kind: Kind, nodes: Nodes<'a>) -> Result<&'a Path, Error> {
    let node = nodes.iter().find(|(backend, _)| backend == id);
    node.map(|(_, node)| node.as_path()).ok_or_else(|| {
        let known: Vec<_> = nodes.iter().map(|(backend, _)| backend.escape_debug().to_string()).collect();
        let known = known.join(", ");
        refused(format!("the guest has no {} {id}; it has {known}", kind.1))
    })
}

fn refused(why: String) -> Error {
    Error::Command(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(word: &str) -> Result<String, Error> {
        let nodes = [("ram", "a"), ("pc.ram", "b"), ("ram-node1", "c")];
        let nodes = nodes.map(|(id, node)| (id.to_owned(), Path::new("/dev/vmem").join(node)));
        fill_in_word(word, Some(Path::new("/run/q")), MEMORY, &nodes)
    }

    fn refusal(words: &[&str]) -> String {
        let mut command = vec!["/bin/sh".to_owned()];
        command.extend(words.iter().map(|word| (*word).to_owned()));
        check(&command, Sharing::Shared).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn clone_has_private_memory_of_a_file_that_it_cannot_write() {
        let check = |options: &str| {
            let object = format!("memory-backend-file,id=ram,size=4G,mem-path={{memory:ram}},{options}");
            check(&["/bin/sh", "-object", &object].map(str::to_owned), Sharing::Private)
        };
        check("share=off,readonly=on,rom=off").expect("private and read-only");
        check("rom=off,readonly=on").expect("share is off unless given");
        let json = r#"{"qom-type":"memory-backend-file","id":"ram","mem-path":"{memory:ram}","share":false,"readonly":true,"rom":"off"}"#;
        super::check(&["/bin/sh", "-object", json].map(str::to_owned), Sharing::Private).expect("as libvirt writes it");
        for options in [
            "share=on,readonly=on,rom=off",
            "share=off",
            "share=off,readonly=on",
            "share=off,rom=off",
        ] {
            let error = check(options).expect_err(options).to_string();
            assert!(error.contains("without share=off,readonly=on,rom=off"), "{options}: {error}");
        }
    }

    #[test]
    fn placeholders_become_the_socket_and_the_nodes() {
        for (word, meant) in [
            ("-m", "-m"),
            (
                "id=pc.ram,mem-path={memory:pc.ram},share=on",
                "id=pc.ram,mem-path=/dev/vmem/b,share=on",
            ),
            ("unix:{qmp},server=on", "unix:/run/q,server=on"),
            ("{qmp}{qmp}{memory:ram}", "/run/q/run/q/dev/vmem/a"),
        ] {
            assert_eq!(put(word).expect("a word"), meant);
        }
        let error = put("{memory:disk}").expect_err("a refusal").to_string();
        assert_eq!(error, "the guest has no memory backend disk; it has ram, pc.ram, ram-node1");
        assert!(put("{memory:ram").is_err());
    }

    #[test]
    fn disks_are_filled_in_and_other_placeholders_stay() {
        let disks = [("vda".to_owned(), PathBuf::from("/o/a.qcow2"))];
        let words = ["file={disk:vda},format=qcow2", "unix:{qmp}", "mem-path={memory:ram}"].map(str::to_owned);
        let filled = fill_in_disks(&words, &disks).expect("words");
        assert_eq!(
            filled,
            ["file=/o/a.qcow2,format=qcow2", "unix:{qmp}", "mem-path={memory:ram}"]
        );
        let error = fill_in_disks(&["{disk:vdb}".to_owned()], &disks)
            .expect_err("a refusal")
            .to_string();
        assert_eq!(error, "the guest has no disk vdb; it has vda");
    }

    /// Words of command lines that libvirt 11.3.0 wrote, with the path of the memory replaced as howto-qemu says.
    #[test]
    fn placeholders_in_json_of_libvirt_become_the_nodes() {
        let ram = r#"{"qom-type":"memory-backend-file","id":"pc.ram","mem-path":"{memory:pc.ram}","share":true,"x-use-canonical-path-for-ramblock-id":false,"size":134217728}"#;
        assert_eq!(put(ram).expect("a word"), ram.replace("{memory:pc.ram}", "/dev/vmem/b"));
        let node = r#"{"qom-type":"memory-backend-file","id":"ram-node1","mem-path":"{memory:ram-node1}","share":true,"size":1073741824,"host-nodes":[1],"policy":"bind"}"#;
        assert_eq!(put(node).expect("a word"), node.replace("{memory:ram-node1}", "/dev/vmem/c"));
    }

    #[test]
    fn other_braces_stay_unchanged() {
        for word in [
            r#"{"qom-type":"secret","id":"masterKey0","format":"raw","file":"/var/lib/libvirt/qemu/domain-1-guest0/master-key.aes"}"#,
            r#"{"driver":"pcie-root-port","port":16,"chassis":1,"id":"pci.1","bus":"pcie.0","multifunction":true,"addr":"0x2"}"#,
            r#"{"node-name":"libvirt-1-format","driver":"qcow2","file":{"driver":"file","filename":"/a","cache":{"direct":true}},"backing":null}"#,
            r#"{"driver":"virtio-blk-pci","iothread-vq-mapping":[{"iothread":"io1"},{"iothread":"io2"}]}"#,
            "{}",
            "}{",
            "{",
            "a{b",
            "{memory}",
            "{{qmp",
        ] {
            assert_eq!(put(word).expect("a word"), word);
        }
        assert_eq!(put("{{qmp}}").expect("a word"), "{/run/q}");
    }

    #[test]
    fn command_that_preallocates_memory_is_refused() {
        for words in [
            &[
                "-object",
                "memory-backend-file,id=ram,size=4G,mem-path={memory:ram},share=on,prealloc=on",
            ][..],
            &[
                "--object",
                "memory-backend-file,prealloc=yes,id=ram,share=on,mem-path={memory:ram}",
            ],
            &[
                "-object",
                "memory-backend-file,id=ram,prealloc,share=on,mem-path={memory:ram}",
            ],
            &[
                "-object",
                r#"{"qom-type":"memory-backend-file","id":"pc.ram","mem-path":"{memory:pc.ram}","share":true,"prealloc":true,"prealloc-threads":2,"size":134217728}"#,
            ],
            &["-mem-prealloc"],
            &["-overcommit", "mem-lock=on"],
            &["-m", "4G", "-overcommit", "cpu-pm=off,mem-lock=true"],
        ] {
            let refusal = refusal(words);
            assert!(
                refusal.contains("wait for pages that come only with the guest"),
                "{words:?}: {refusal}"
            );
        }
        for words in [
            &[
                "-object",
                "memory-backend-file,id=ram,size=4G,mem-path={memory:ram},share=on,prealloc=off",
            ][..],
            &[
                "-object",
                "memory-backend-file,id=ram,prealloc=on,prealloc=off,share=on,mem-path={memory:ram}",
            ],
            &[
                "-object",
                r#"{"qom-type":"memory-backend-file","id":"pc.ram","mem-path":"{memory:pc.ram}","share":true,"prealloc":false}"#,
            ],
            &["-object", "iothread,id=prealloc=on"],
            &["-overcommit", "mem-lock=off"],
            &["-overcommit", "mem-lock=on-fault,cpu-pm=on"],
            &["-name", "mem-lock=on"],
        ] {
            assert_eq!(refusal(words), "", "{words:?}");
        }
    }

    #[test]
    fn region_backend_without_share_is_refused() {
        let private = refusal(&["-object", "memory-backend-file,id=ram,size=4G,mem-path={memory:ram}"]);
        assert!(private.contains("\"ram\" without share=on"), "{private}");
        let private = refusal(&[
            "-object",
            r#"{"qom-type":"memory-backend-file","id":"pc.ram","mem-path":"{memory:pc.ram}","share":false}"#,
        ]);
        assert!(private.contains("\"pc.ram\" without share=on"), "{private}");
        assert_eq!(refusal(&["-object", "memory-backend-file,id=nvdimm,mem-path=/a"]), "");
    }

    #[test]
    fn incoming_other_than_defer_is_refused() {
        assert!(refusal(&["-incoming", "tcp:0:4444"]).contains("-incoming tcp:0:4444"));
        assert_eq!(refusal(&["-incoming", "defer"]), "");
        assert_eq!(refusal(&[]), "", "a program may add it");
    }

    #[test]
    fn missing_program_is_refused() {
        let check = |program, path: Option<&str>| check_program(program, path.map(AsRef::as_ref)).is_ok();
        assert!(check("/bin/sh", None) && check("sh", Some("/nowhere:/bin")) && check("sh", None));
        assert!(!check("/bin/no-such", None) && !check("no-such", Some("/bin")) && !check("/bin", None));
        assert!(!check("/etc/passwd", None), "not executable");
    }
}
