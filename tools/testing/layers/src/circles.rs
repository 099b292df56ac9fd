// SPDX-License-Identifier: GPL-2.0-or-later
//! Modules that use each other in a circle. A module and its submodules are one: a submodule can use what its parent has, and the parent
//! uses its submodules. Modules of the same parent, each with its submodules, use each other in one direction only.

use std::collections::{BTreeMap, BTreeSet};

use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;

use crate::modules::Module;

/// Of the children of one parent: who uses whom, and where for the first time.
type Level<'a> = BTreeMap<(&'a str, &'a str), String>;

/// What is known of a crate: its modules, and the names that each of them gives to paths.
struct Names<'a> {
    modules: BTreeSet<&'a [String]>,
    given: BTreeMap<(&'a [String], &'a str), &'a [String]>,
}

impl<'a> Names<'a> {
    fn of(modules: &'a [Module]) -> Self {
        let mut given = BTreeMap::new();
        for module in modules {
            for used in &module.uses {
                if let Some(name) = &used.name {
                    given.insert((module.path.as_slice(), name.as_str()), used.path.as_slice());
                }
            }
        }
        Self {
            modules: modules.iter().map(|module| module.path.as_slice()).collect(),
            given,
        }
    }

    /// The module that has what this path means: also where another module only passes it on.
    fn module_of(&self, path: &[String]) -> Option<&'a [String]> {
        let mut path = path.to_vec();
        // Enough for every chain of names, and an end for names that mean each other.
        for _ in 0..16 {
            let module = (0..=path.len()).rev().find_map(|len| self.modules.get(&path[..len]))?;
            let meant = path
                .get(module.len())
                .and_then(|name| self.given.get(&(module, name.as_str())));
            match meant {
                Some(meant) if *meant != path.as_slice() => path = [meant, &path[module.len() + 1..]].concat(),
                _ => return Some(module),
            }
        }
        None
    }
}

/// A line for each circle, and one for each use that is a part of it.
pub(crate) fn find(modules: &[Module]) -> Vec<String> {
    let names = Names::of(modules);
    let mut levels: BTreeMap<&[String], Level<'_>> = BTreeMap::new();
    for module in modules {
        for used in &module.uses {
            let Some(target) = names.module_of(&used.path) else { continue };
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
        let parent = [&["crate".to_owned()], parent].concat().join("::");
        faults.push(format!("circle in {parent}: {}", circle.join(", ")));
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
        // "path as name" is a `use`.
        let of = |used: &&str| {
            let (path, name) = used
                .split_once(" as ")
                .map_or((*used, None), |(path, name)| (path, Some(name)));
            Use {
                path: names(path),
                name: name.map(str::to_owned),
                line: 1,
            }
        };
        Module {
            path: names(path),
            file: format!("{path}.rs").into(),
            uses: uses.iter().map(of).collect(),
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
    fn a_circle_by_way_of_names_that_the_crate_passes_on_is_one() {
        let root = module("", &["a::X as X", "b::Y as Z"]);
        let faults = find(&[root, module("a", &["Z"]), module("b", &["X::new"])]);
        assert_eq!(faults[0], "circle in crate: b, a");
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
