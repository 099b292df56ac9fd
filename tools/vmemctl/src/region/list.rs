// SPDX-License-Identifier: GPL-2.0
//! `vmemctl region list`: the regions with nodes, and those of which processes have descriptors.

use indicatif::BinaryBytes;
use serde_json::{Value, json};
use vmem::{Descriptor, DescriptorInfo, Node, PAGE_SIZE};
use vmem_cli::chain;
use vmem_cli::output::err;

use super::{NO_MODULE, holders, out, state_of};
use crate::failure::{Failure, Trouble};

/// A region, or memory that is adopted.
#[derive(Debug)]
struct Row {
    /// `None` without a node.
    name: Option<String>,
    memory: DescriptorInfo,
    holders: Vec<Descriptor>,
}

/// Prints all of them.
pub(super) fn run(json: bool) -> Result<(), Failure> {
    let nodes = vmem::nodes().map_err(Trouble::vmem(NO_MODULE))?;
    for node in &nodes {
        if let Err(error) = &node.info {
            err(&format!("vmemctl: region {}: {}", node.name, chain(error)));
        }
    }
    let rows = rows(&nodes, vmem::descriptors());
    if json {
        rows.iter().for_each(|row| out(&row.json().to_string()));
        return Ok(());
    }
    let table: Vec<[String; 7]> = [TITLES.map(str::to_owned)]
        .into_iter()
        .chain(rows.iter().map(Row::columns))
        .collect();
    lines(&table).iter().for_each(|line| out(line));
    Ok(())
}

const TITLES: [&str; 7] = ["NAME", "NUMBER", "SIZE", "STATE", "PRESENT", "MAPPINGS", "OPEN BY"];

impl Row {
    fn columns(&self) -> [String; 7] {
        let present = match &self.memory {
            DescriptorInfo::Region(info) => {
                let pages = info.size.div_ceil(PAGE_SIZE as u64).max(1);
                format!("{:.1} %", 100.0 * info.present as f64 / pages as f64)
            }
            _ => "-".to_owned(),
        };
        [
            self.name.clone().unwrap_or_else(|| "-".to_owned()),
            self.memory.id().to_string(),
            BinaryBytes(self.memory.size()).to_string(),
            state_of(&self.memory).to_owned(),
            present,
            self.memory.mappings().to_string(),
            holders(self.holders.iter()),
        ]
    }

    fn json(&self) -> Value {
        let holder = |descriptor: &Descriptor| json!({"pid": descriptor.pid, "command": descriptor.command, "fd": descriptor.fd});
        json!({
            "event": "region",
            "name": self.name,
            "id": self.memory.id(),
            "bytes": self.memory.size(),
            "state": state_of(&self.memory),
            "mappings": self.memory.mappings(),
            "holders": self.holders.iter().map(holder).collect::<Vec<_>>(),
        })
    }
}

/// One row for each region, those with names first: a region may have a node, descriptors in processes, or both.
fn rows(nodes: &[Node], descriptors: Vec<Descriptor>) -> Vec<Row> {
    let named = nodes.iter().filter_map(|node| {
        let info = node.info.as_ref().ok()?;
        Some(Row {
            name: Some(node.name.to_string()),
            memory: DescriptorInfo::Region(info.clone()),
            holders: Vec::new(),
        })
    });
    let mut rows: Vec<Row> = named.collect();
    let names = rows.len();
    for descriptor in descriptors {
        match rows.iter_mut().find(|row| row.memory.id() == descriptor.memory.id()) {
            Some(row) => row.holders.push(descriptor),
            None => rows.push(Row {
                name: None,
                memory: descriptor.memory.clone(),
                holders: vec![descriptor],
            }),
        }
    }
    rows[names..].sort_by_key(|row| row.memory.id());
    rows
}

/// A table with columns of the same width, numbers at their right.
fn lines(table: &[[String; 7]]) -> Vec<String> {
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let line = |row: &[String; 7]| {
        let cells = row
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(column, (cell, width))| match TITLES[column] {
                "NUMBER" | "SIZE" | "PRESENT" | "MAPPINGS" => format!("{cell:>width$}"),
                _ => format!("{cell:<width$}"),
            });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    table.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(pid: i32, fd: i32, fdinfo: &str) -> Descriptor {
        let memory = DescriptorInfo::parse(fdinfo).expect("vmem's");
        Descriptor {
            pid,
            command: "qemu".to_owned(),
            fd,
            path: "/dev/vmem/a".into(),
            memory,
        }
    }

    const REGION: &str = "vmem-id:\t7\nvmem-size:\t8192\nvmem-state:\t3\nvmem-present:\t1\nvmem-mappings:\t2\n";
    const ADOPTED: &str = "vmem-id:\t5\nvmem-size:\t1048576\nvmem-tracked:\t1\nvmem-mappings:\t1\nvmem-dirty:\t3\n";

    #[test]
    fn descriptors_of_one_region_are_one_row() {
        let rows = rows(
            &[],
            vec![
                descriptor(1, 3, REGION),
                descriptor(1, 4, REGION),
                descriptor(2, 3, ADOPTED),
                descriptor(9, 3, REGION),
            ],
        );
        let found: Vec<(u64, usize)> = rows.iter().map(|row| (row.memory.id(), row.holders.len())).collect();
        assert_eq!(found, [(5, 1), (7, 3)]);
        assert_eq!(holders(rows[1].holders.iter()), "qemu (1), qemu (9)");
        assert_eq!(rows[1].json()["holders"].as_array().map(Vec::len), Some(3));
    }

    #[test]
    fn a_row_says_the_state_in_a_word() {
        let rows = rows(&[], vec![descriptor(1, 3, REGION), descriptor(2, 3, ADOPTED)]);
        assert_eq!(
            rows[0].columns(),
            ["-", "5", "1.00 MiB", "tracked", "-", "1", "qemu (2)"].map(str::to_owned)
        );
        assert_eq!(
            rows[1].columns(),
            ["-", "7", "8.00 KiB", "served", "50.0 %", "2", "qemu (1)"].map(str::to_owned)
        );
    }

    #[test]
    fn columns_stand_below_their_titles() {
        let rows = rows(&[], vec![descriptor(2, 3, ADOPTED)]);
        let table = [TITLES.map(str::to_owned), rows[0].columns()];
        assert_eq!(
            lines(&table),
            [
                "NAME  NUMBER      SIZE  STATE    PRESENT  MAPPINGS  OPEN BY",
                "-          5  1.00 MiB  tracked        -         1  qemu (2)"
            ]
        );
    }
}
