// SPDX-License-Identifier: GPL-2.0
//! Modules that use each other in a circle. A module and its submodules are one: a submodule can use what its parent has, and the parent
//! uses its submodules. Modules of the same parent, each with its submodules, use each other in one direction only.

use std::collections::{BTreeMap, BTreeSet};

use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;

use crate::modules::Module;

/// Of the children of one parent: who uses whom, and where for the first time.
type Level<'a> = BTreeMap<(&'a str, &'a str), String>;

/// A line for each circle, and one for each use that is a part of it.
pub(crate) fn find(modules: &[Module]) -> Vec<String> {
    let known: BTreeSet<&[String]> = modules.iter().map(|module| module.path.as_slice()).collect();
    let mut levels: BTreeMap<&[String], Level<'_>> = BTreeMap::new();
    for module in modules {
        for used in &module.uses {
            let target = (0..=used.path.len()).rev().find_map(|len| known.get(&used.path[..len]));
            let Some(target) = target else { continue };
            let common = module
                .path
                .iter()
                .zip(target.iter())
                .take_while(|(one, other)| one == other)
                .count();
            // Else one is a submodule of the other, or the other itself.
            if let (Some(from), Some(to)) = (module.path.get(common), target.get(common)) {
                let place = format!("{}:{}", module.file.display(), used.line);
                levels
                    .entry(&module.path[..common])
                    .or_default()
                    .entry((from, to))
                    .or_insert(place);
            }
        }
    }
    levels.iter().flat_map(|(parent, level)| in_level(parent, level)).collect()
}

fn in_level(parent: &[String], level: &Level<'_>) -> Vec<String> {
    let graph: DiGraphMap<&str, ()> = level.keys().copied().collect();
    let mut faults = Vec::new();
    for circle in tarjan_scc(&graph).into_iter().filter(|circle| circle.len() > 1) {
        let parent: String = parent.iter().map(|name| format!("::{name}")).collect();
        faults.push(format!("circle in crate{parent}: {}", circle.join(", ")));
        let inside = level
            .iter()
            .filter(|((from, to), _)| circle.contains(from) && circle.contains(to));
        faults.extend(inside.map(|((from, to), place)| format!("    {place}: {from} uses {to}")));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uses::Use;

    fn module(path: &str, uses: &[&str]) -> Module {
        let names = |path: &str| path.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Module {
            path: names(path),
            file: format!("{path}.rs").into(),
            uses: uses
                .iter()
                .map(|path| Use {
                    path: names(path),
                    line: 1,
                })
                .collect(),
        }
    }

    #[test]
    fn modules_that_use_each_other_are_a_circle() {
        let faults = find(&[module("", &["a"]), module("a", &["b::X"]), module("b", &["a::Y"])]);
        assert_eq!(
            faults,
            ["circle in crate: b, a", "    a.rs:1: a uses b", "    b.rs:1: b uses a"]
        );
    }

    #[test]
    fn a_circle_by_way_of_submodules_is_one() {
        let modules = [
            module("", &[]),
            module("a", &[]),
            module("a::c", &["b"]),
            module("b", &["a::X"]),
        ];
        assert_eq!(find(&modules)[0], "circle in crate: b, a");
    }

    #[test]
    fn a_module_and_its_submodules_are_one() {
        let modules = [
            module("", &["a"]),
            module("a", &["a::c", "X"]),
            module("a::c", &["a::Y", "X"]),
            module("a::d", &["a::c"]),
        ];
        assert!(find(&modules).is_empty());
    }
}
