// SPDX-License-Identifier: GPL-2.0
//! What a file uses of its own crate: `use` and paths that begin with `crate`, `self` or `super`. Paths inside of a macro's arguments are not seen;
//! a name of another module that stands there alone is of a `use`.

use std::collections::BTreeSet;

use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, File, Item, ItemMod, ItemUse, UseTree};

/// A path that a file names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Use {
    /// From the crate's first file on.
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
}

/// What the file that is the module `path` uses, without its tests.
pub(crate) fn of(path: &[String], syntax: &File) -> Vec<Use> {
    let mut visitor = Visitor {
        path: path.to_vec(),
        found: BTreeSet::new(),
    };
    visitor.visit_file(syntax);
    visitor.found.into_iter().collect()
}

/// Whether what has these attributes is compiled for tests alone.
pub(crate) fn is_of_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let text = |meta: &syn::MetaList| meta.tokens.to_string();
        attribute.path().is_ident("cfg") && attribute.meta.require_list().is_ok_and(|meta| text(meta) == "test")
    })
}

struct Visitor {
    /// The module that is looked at, which may be one inside the file.
    path: Vec<String>,
    found: BTreeSet<Use>,
}

impl Visitor {
    /// Notes a path, if it is one of this crate's modules.
    fn note(&mut self, segments: &[String], line: usize) {
        let mut path = match segments.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self" | "super") => self.path.clone(),
            _ => return,
        };
        for segment in segments {
            match segment.as_str() {
                "crate" | "self" => (),
                "super" => drop(path.pop()),
                name => path.push(name.to_owned()),
            }
        }
        self.found.insert(Use { path, line });
    }

    fn note_tree(&mut self, before: &[String], tree: &UseTree, line: usize) {
        let with = |name: &syn::Ident| before.iter().cloned().chain([name.to_string()]).collect::<Vec<_>>();
        match tree {
            UseTree::Path(path) => self.note_tree(&with(&path.ident), &path.tree, line),
            UseTree::Name(name) => self.note(&with(&name.ident), line),
            UseTree::Rename(name) => self.note(&with(&name.ident), line),
            UseTree::Glob(_) => self.note(before, line),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.note_tree(before, tree, line)),
        }
    }
}

impl<'ast> Visit<'ast> for Visitor {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Mod(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_of_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        self.path.push(module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.path.pop();
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.note_tree(&[], &item.tree, item.span().start().line);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.note(&segments, path.span().start().line);
        visit::visit_path(self, path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &[&str], text: &str) -> Vec<String> {
        let path: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
        let syntax = syn::parse_file(text).expect("Rust");
        of(&path, &syntax).into_iter().map(|found| found.path.join("::")).collect()
    }

    #[test]
    fn uses_are_told_from_the_crates_first_file() {
        assert_eq!(
            found(&["a", "b"], "use crate::c::{D, e::F}; use super::g; use std::fs;"),
            ["a::g", "c::D", "c::e::F"]
        );
        assert_eq!(found(&["a"], "fn f() -> crate::c::D { super::h() }"), ["c::D", "h"]);
        assert_eq!(found(&["a"], "mod b { use super::c; use super::super::d; }"), ["a::c", "d"]);
    }

    #[test]
    fn what_only_tests_use_is_not_told() {
        assert!(
            found(
                &["a"],
                "#[cfg(test)] mod tests { use crate::b; } #[cfg(test)] fn f(x: crate::c::D) {}"
            )
            .is_empty()
        );
        assert_eq!(found(&["a"], "#[cfg(not(test))] use crate::b;"), ["b"]);
    }
}
