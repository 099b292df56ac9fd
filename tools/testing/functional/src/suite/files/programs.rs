// SPDX-License-Identifier: GPL-2.0-or-later
//! Programs that keep data in a file of their own format, on files whose contents come meanwhile: databases, disks, extended attributes.

use std::fs;
use std::os::unix::fs::MetadataExt;

use vmem::PAGE_SIZE;

use super::Mount;
use super::served::Served;
use crate::failure::{Outcome, ensure, equal};
use crate::world::run_command;

crate::tests![
    sqlite_queries_a_database_that_comes_meanwhile,
    sqlite_changes_a_database_without_a_file_beside_it,
    lmdb_reads_an_environment_that_comes_meanwhile,
    qemu_nbd_serves_a_disk_that_comes_meanwhile,
    files_have_no_extended_attributes,
];

/// Runs a shell's script.
fn shell(script: &str) -> Outcome<String> {
    run_command("/bin/sh", &["-ec", script])
}

/// Makes an SQLite database of some 250 pages with this journal mode.
fn database(journal: &str) -> Outcome<Vec<u8>> {
    let script = "rm -f /tmp/base; sqlite3 /tmp/base 'PRAGMA page_size = 4096; PRAGMA journal_mode = JOURNAL;
CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, value INTEGER); CREATE INDEX v ON t(value);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
INSERT INTO t SELECT i, printf(\"name %032d\", i), (i * 7919) % 10007 FROM n;'; test ! -e /tmp/base-wal";
    shell(&script.replace("JOURNAL", journal))?;
    Ok(fs::read("/tmp/base")?)
}

const ONE_ROW: &str = "SELECT name FROM t WHERE value = 4242 ORDER BY id";
const ALL_ROWS: &str = "PRAGMA integrity_check; SELECT count(*), sum(value), sum(length(name)) FROM t;";

/// Opens the file in this way, and gets what it gets from the copy; first from a few pages, then from all.
fn query(mount: &Mount, name: &str, bytes: &[u8], open: &str) -> Outcome {
    let served = Served::with(mount, name, bytes.to_vec())?;
    let compare = |query: &str| {
        let (file, copy) = (open.replace("DB", "FILE"), open.replace("DB", "COPY"));
        let script =
            format!("found=$(sqlite3 {file} '{query}'); test -n \"$found\"; test \"$found\" = \"$(sqlite3 {copy} '{query}')\"");
        served.run(&script).map_err(|failure| format!("{name}: {}", failure.text()))
    };
    compare(ONE_ROW)?;
    let (present, pages) = (served.present()?, served.setting.pages());
    ensure!(
        (1..pages / 4).contains(&present),
        "{name}: {present} pages of {pages} came for one row"
    );
    compare(ALL_ROWS)?;
    served.all_came(name)
}

fn sqlite_queries_a_database_that_comes_meanwhile() -> Outcome {
    let mount = Mount::new("a")?;
    let (plain, wal) = (database("delete")?, database("wal")?);
    for (name, open) in [
        ("default", "DB"),
        ("readonly", "-readonly DB"),
        ("ro", "file:DB?mode=ro"),
        ("immutable", "'file:DB?immutable=1'"),
        ("mapped", "-cmd 'PRAGMA mmap_size = 1000000000' -readonly DB"),
    ] {
        query(&mount, name, &plain, open)?;
    }
    query(&mount, "wal", &wal, "'file:DB?immutable=1'")?;
    // A database in WAL mode wants files beside it, which nobody can make.
    let served = Served::with(&mount, "wal-ro", wal)?;
    for open in ["FILE", "-readonly FILE"] {
        let refused = served.run(&format!("sqlite3 {open} '{ONE_ROW}'")).err();
        let refused = refused.ok_or("SQLite made files beside the region's")?;
        ensure!(
            refused.text().contains("unable to open database file"),
            "sqlite3: {}",
            refused.text()
        );
    }
    Ok(())
}

fn sqlite_changes_a_database_without_a_file_beside_it() -> Outcome {
    let mount = Mount::new("a")?;
    let served = Served::with(&mount, "one", database("delete")?)?;
    let change = "UPDATE t SET value = value + 1 WHERE id % 1000 = 7;";
    let refused = served.run(&format!("sqlite3 FILE '{change}'")).err();
    let refused = refused.ok_or("SQLite made a journal beside the region's file")?;
    ensure!(
        refused.text().contains("unable to open database file"),
        "sqlite3: {}",
        refused.text()
    );
    served.run(&format!(
        "sqlite3 FILE '{ALL_ROWS}' >/tmp/file; sqlite3 COPY '{ALL_ROWS}' | cmp - /tmp/file"
    ))?;
    // With its journal in memory it wants none. The tool's safe mode does not do without any.
    let compare = format!("{ALL_ROWS} SELECT * FROM t");
    served.run(&format!(
        "sqlite3 FILE 'PRAGMA journal_mode = memory; {change}'; sqlite3 COPY '{change}'
         sqlite3 FILE '{compare}' >/tmp/file; sqlite3 COPY '{compare}' | cmp - /tmp/file"
    ))?;
    // Nor can it make the file longer.
    let grow = "PRAGMA journal_mode = memory; INSERT INTO t SELECT id + 20000, name, value FROM t";
    let refused = served.run(&format!("sqlite3 FILE '{grow}'")).err();
    let refused = refused.ok_or("SQLite made the region longer")?;
    ensure!(
        refused.text().contains("database or disk is full"),
        "sqlite3: {}",
        refused.text()
    );
    served.run(&format!(
        "sqlite3 COPY '{change}'; sqlite3 FILE '{compare}' >/tmp/file; sqlite3 COPY '{compare}' | cmp - /tmp/file"
    ))?;
    Ok(())
}

fn lmdb_reads_an_environment_that_comes_meanwhile() -> Outcome {
    let mount = Mount::new("a")?;
    let make = "import lmdb, os
if os.path.exists('/tmp/base'): os.remove('/tmp/base')
e = lmdb.open('/tmp/base', subdir=False, lock=False, map_size=4 << 20)
with e.begin(write=True) as t:
    for i in range(4000): t.put(b'key %06d' % i, b'value %d ' % (i * i) * 10)
e.close()";
    run_command("python3", &["-c", make])?;
    let bytes = fs::read("/tmp/base")?;
    let open = "import lmdb
def open(p): return lmdb.open(p, subdir=False, readonly=True, lock=False, map_size=64 << 20)
f, c = open('FILE').begin(), open('COPY').begin()\n";
    let served = Served::with(&mount, "one", bytes)?;
    let python = |script: &str| served.run(&format!("python3 -c \"{open}{script}\""));
    python("assert f.get(b'key 002345') == b'value 5499025 ' * 10")?;
    let (present, pages) = (served.present()?, served.setting.pages());
    ensure!((1..20).contains(&present), "{present} pages of {pages} came for one key");
    python("l = list(f.cursor()); assert len(l) == 4000 and l == list(c.cursor()); assert f.stat() == c.stat()")?;
    // Pages that LMDB has freed stay absent: nothing reads them.
    ensure!(served.present()? > pages / 2, "{} pages of {pages} came", served.present()?);
    // With a lock, or for writing, it wants a file beside it or another size.
    for options in ["readonly=True", "lock=False, writemap=True, map_size=64 << 20"] {
        let script = format!("python3 -c \"import lmdb; lmdb.open('FILE', subdir=False, {options})\"");
        let refused = served.run(&script).err().ok_or("LMDB opened it")?;
        ensure!(
            refused.text().contains("Operation not permitted"),
            "{options}: {}",
            refused.text()
        );
    }
    // A change of the data makes the file longer, and is given up.
    let put = "import lmdb; e = lmdb.open('FILE', subdir=False, lock=False, map_size=64 << 20)
with e.begin(write=True) as t: t.put(b'key 000001', b'x' * 100000)";
    let refused = served
        .run(&format!("python3 -c \"{put}\""))
        .err()
        .ok_or("LMDB made the region longer")?;
    println!("  {}", refused.text().lines().last().unwrap_or_default());
    served.run("cmp FILE COPY")?;
    Ok(())
}

fn qemu_nbd_serves_a_disk_that_comes_meanwhile() -> Outcome {
    let mount = Mount::new("a")?;
    let serve = |served: &Served, options: &str, client: &str| {
        served.run(&format!(
            "u='nbd+unix:///?socket=/tmp/nbd'; rm -f /tmp/nbd
             qemu-nbd {options} -f raw -t -k /tmp/nbd --fork --pid-file=/tmp/nbd.pid FILE
             s=0; ({client}) || s=1; p=$(cat /tmp/nbd.pid); kill $p; while [ -e /proc/$p ]; do sleep 0.05; done; exit $s"
        ))
    };
    let served = Served::new(&mount, "read")?;
    serve(
        &served,
        "-r",
        "set -e; nbdinfo \"$u\" | grep -q is_read_only:.true; nbdcopy \"$u\" /tmp/out; head -c $(stat -c %s COPY) /tmp/out | cmp - COPY",
    )?;
    served.all_came("qemu-nbd")?;
    let served = Served::new(&mount, "compare")?;
    serve(
        &served,
        "-r --aio=io_uring --cache=none",
        "qemu-img compare -f raw -F raw \"$u\" COPY",
    )?;
    served.all_came("qemu-nbd with io_uring")?;
    // Writes, and discards, which give memory back.
    let served = Served::new(&mount, "write")?;
    let io = "qemu-io -f raw -c 'write -P 0x5a 5000 4000' -c 'discard 65536 32768' -c flush \"$u\" >/dev/null";
    serve(&served, "--discard=unmap", io)?;
    let mut expected = served.bytes.clone();
    expected[5000..9000].fill(0x5a);
    expected[65536..65536 + 32768].fill(0);
    equal!(
        served.setting.region.staging().metadata()?.blocks(),
        2 * (PAGE_SIZE as u64 / 512)
    );
    ensure!(fs::read(&served.path)? == expected, "other bytes than were written");
    Ok(())
}

fn files_have_no_extended_attributes() -> Outcome {
    let mount = Mount::new("a")?;
    let served = Served::new(&mount, "one")?;
    for command in [
        "setfattr -n user.x -v y FILE",
        "setfattr -n trusted.x -v y FILE",
        "setfattr -x user.x FILE",
        "getfattr -n user.x FILE",
    ] {
        let refused = served
            .run(command)
            .err()
            .ok_or_else(|| format!("{command} was not refused"))?;
        ensure!(
            refused.text().contains("Operation not supported"),
            "{command}: {}",
            refused.text()
        );
    }
    equal!(served.run("getfattr -d -m - FILE 2>/dev/null")?, "");
    equal!(served.present()?, 0);
    Ok(())
}
