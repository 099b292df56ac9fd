// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl region list`: lists the regions with nodes, and those of which processes have descriptors.

use vmem::{Descriptor, DescriptorInfo, Info, Node, PAGE_SIZE};
use vmem_cli::output::err;
use vmem_cli::{Error, chain};

use super::line::{Holder, ListLine};
use super::{State, adoption, figures_of, holders, out, state};

/// A row: a region, adopted memory, or both.
#[derive(Debug)]
struct Row {
    id: u64,
    size: u64,
    /// `None`: the region has no node.
    name: Option<String>,
    /// `None`: the memory is no region.
    region: Option<Info>,
    holders: Vec<Descriptor>,
}

/// Prints the list.
pub(super) fn run(json: bool) -> Result<(), Error> {
    let nodes = vmem::nodes().map_err(Error::call(vmem_cli::NO_MODULE))?;
    for node in &nodes {
        if let Err(error) = &node.info {
            err(&format!("vmemctl: region {}: {}", node.name, chain(error)));
        }
    }
    let rows = rows(&nodes, vmem::descriptors());
    if json {
        rows.iter().for_each(|row| out(&super::json(&row.line())));
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
    /// A row of memory that no process has open.
    fn new(id: u64, size: u64) -> Self {
        Self {
            id,
            size,
            name: None,
            region: None,
            holders: Vec::new(),
        }
    }

    fn hold(&mut self, descriptor: Descriptor) {
        if let DescriptorInfo::Region(info) = &descriptor.memory {
            self.region.get_or_insert_with(|| info.clone());
        }
        self.holders.push(descriptor);
    }

    /// The state of the memory: that of the region, and that of its adoption.
    fn state(&self) -> String {
        let words = self.region.as_ref().map(state).into_iter();
        let words = words.chain(figures_of(&self.holders).map(adoption));
        words.map(State::word).collect::<Vec<_>>().join(", ")
    }

    /// The number of mappings that are not plain. The mappings of a plain region are not plain while it is tracked.
    fn mappings(&self) -> u64 {
        let of_region = self.region.as_ref().map_or(0, |info| info.mappings);
        of_region.max(figures_of(&self.holders).map_or(0, |figures| figures.mappings))
    }

    fn columns(&self) -> [String; 7] {
        let present = self.region.as_ref().map_or("-".to_owned(), |info| {
            let pages = info.size.div_ceil(PAGE_SIZE as u64).max(1);
            format!("{:.1} %", 100.0 * info.present as f64 / pages as f64)
        });
        [
            self.name.clone().unwrap_or_else(|| "-".to_owned()),
            self.id.to_string(),
            vmem_cli::bytes(self.size),
            self.state(),
            present,
            self.mappings().to_string(),
            holders(self.holders.iter()),
        ]
    }

    fn line(&self) -> ListLine<'_> {
        let figures = figures_of(&self.holders);
        ListLine::Region {
            name: self.name.as_deref(),
            id: self.id,
            bytes: self.size,
            state: self.region.as_ref().map(state).or(figures.map(adoption)),
            present: self.region.as_ref().map(|info| info.present),
            tracked: figures.is_some_and(|figures| figures.tracked),
            mappings: self.mappings(),
            holders: self.holders.iter().map(Holder::of).collect(),
        }
    }
}

/// Makes one row for each region, those with names first. A region may have a node, descriptors in processes, or both.
fn rows(nodes: &[Node], descriptors: Vec<Descriptor>) -> Vec<Row> {
    let named = nodes.iter().filter_map(|node| {
        let info = node.info.as_ref().ok()?;
        Some(Row {
            name: Some(node.name.to_string()),
            region: Some(info.clone()),
            ..Row::new(info.id, info.size)
        })
    });
    let mut rows: Vec<Row> = named.collect();
    let names = rows.len();
    for descriptor in descriptors {
        let (id, size) = (descriptor.memory.id(), descriptor.memory.size());
        let at = rows.iter().position(|row| row.id == id).unwrap_or_else(|| {
            rows.push(Row::new(id, size));
            rows.len() - 1
        });
        rows[at].hold(descriptor);
    }
    rows[names..].sort_by_key(|row| row.id);
    rows
}

/// The lines of a table, with columns of equal width and numbers on the right.
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

    fn json(row: &Row) -> serde_json::Value {
        crate::schema::valid("vmemctl-region", &row.line())
    }

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
        let found: Vec<(u64, usize)> = rows.iter().map(|row| (row.id, row.holders.len())).collect();
        assert_eq!(found, [(5, 1), (7, 3)]);
        assert_eq!(holders(rows[1].holders.iter()), "qemu (1), qemu (9)");
        assert_eq!(json(&rows[1])["holders"].as_array().map(Vec::len), Some(3));
    }

    #[test]
    fn state_of_a_row_is_one_word() {
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
    fn tracked_region_is_one_row_with_both_states() {
        let of_plain = "vmem-id:\t7\nvmem-size:\t8192\nvmem-state:\t7\nvmem-present:\t2\nvmem-mappings:\t0\n";
        let tracked = ADOPTED.replace("vmem-id:\t5", "vmem-id:\t7").replace("1048576", "8192");
        let row = |region| rows(&[], vec![descriptor(1, 3, &tracked), descriptor(2, 3, region)]);
        let served = row(REGION);
        assert_eq!(
            served[0].columns(),
            ["-", "7", "8.00 KiB", "served, tracked", "50.0 %", "2", "qemu (1), qemu (2)"].map(str::to_owned)
        );
        assert_eq!(json(&served[0])["state"], "served");
        assert_eq!(json(&served[0])["tracked"], true);
        assert_eq!(served.len(), 1);
        assert_eq!(
            row(of_plain)[0].columns()[3..6],
            ["plain, tracked", "100.0 %", "1"].map(str::to_owned)
        );
    }

    #[test]
    fn columns_are_aligned_with_their_titles() {
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
