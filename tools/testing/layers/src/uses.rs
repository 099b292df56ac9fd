// SPDX-License-Identifier: GPL-2.0-or-later
//! What a file uses of its own crate, and what it gives names: `use`, and paths that begin with `crate`, `self` or `super`, also in the
//! arguments of macros.

use std::collections::BTreeSet;

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, File, ImplItemFn, Item, ItemMod, ItemUse, Macro, UseTree};

/// A path that a file names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Use {
    /// From the crate's first file on. One that begins with another name than `crate`, `self` or `super` may also be another crate's.
    pub(crate) path: Vec<String>,
    /// What the file calls it from then on, if it is a `use`.
    pub(crate) name: Option<String>,
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
        let is_test = |meta: &syn::MetaList| {
            let text = meta.tokens.to_string();
            text == "test" || text.starts_with("all (test ,")
        };
        attribute.path().is_ident("cfg") && attribute.meta.require_list().is_ok_and(is_test)
    })
}

struct Visitor {
    /// The module that is looked at, which may be one inside the file.
    path: Vec<String>,
    found: BTreeSet<Use>,
}

impl Visitor {
    /// Notes a path, if it can be one of this crate's.
    fn note(&mut self, segments: &[String], name: Option<&str>, line: usize) {
        let mut path = match segments.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self" | "super") => self.path.clone(),
            // By its name a `use` can mean a submodule.
            Some(_) if name.is_some() => self.path.clone(),
            _ => return,
        };
        for segment in segments {
            match segment.as_str() {
                "crate" | "self" => (),
                "super" => drop(path.pop()),
                name => path.push(name.to_owned()),
            }
        }
        let name = name.map(str::to_owned);
        self.found.insert(Use { path, name, line });
    }

    fn note_tree(&mut self, before: &[String], tree: &UseTree, line: usize) {
        let with = |name: &syn::Ident| before.iter().cloned().chain([name.to_string()]).collect::<Vec<_>>();
        match tree {
            UseTree::Path(path) => self.note_tree(&with(&path.ident), &path.tree, line),
            UseTree::Name(name) => self.note(&with(&name.ident), Some(&name.ident.to_string()), line),
            UseTree::Rename(name) => self.note(&with(&name.ident), Some(&name.rename.to_string()), line),
            UseTree::Glob(_) => self.note(before, Some("*"), line),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.note_tree(before, tree, line)),
        }
    }

    /// Notes the paths among the tokens of a macro.
    fn note_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut line = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    let ident_line = ident.span().start().line;
                    let name = ident.to_string();
                    match path.last().map(String::as_str) {
                        Some("::") => drop(path.pop()),
                        _ => self.end_path(&mut path, line),
                    }
                    if !path.is_empty() || matches!(name.as_str(), "crate" | "self" | "super") {
                        path.push(name);
                        line = ident_line;
                    }
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => match path.last().map(String::as_str) {
                    Some(":") => {
                        path.pop();
                        path.push("::".to_owned());
                    }
                    _ => path.push(":".to_owned()),
                },
                TokenTree::Group(group) => {
                    self.end_path(&mut path, line);
                    self.note_tokens(group.stream());
                }
                _ => self.end_path(&mut path, line),
            }
        }
        self.end_path(&mut path, line);
    }

    fn end_path(&mut self, path: &mut Vec<String>, line: usize) {
        path.retain(|segment| !segment.starts_with(':'));
        if !path.is_empty() {
            self.note(path, None, line);
            path.clear();
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
            Item::Enum(item) => &item.attrs,
            Item::Trait(item) => &item.attrs,
            Item::Const(item) => &item.attrs,
            Item::Static(item) => &item.attrs,
            Item::Type(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_of_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast ImplItemFn) {
        if !is_of_tests(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
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
        self.note(&segments, None, path.span().start().line);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, mac: &'ast Macro) {
        self.note_tokens(mac.tokens.clone());
        visit::visit_macro(self, mac);
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
            ["a::b::std::fs", "a::g", "c::D", "c::e::F"],
            "a name alone can be that of a submodule"
        );
        assert_eq!(found(&["a"], "fn f() -> crate::c::D { super::h() }"), ["c::D", "h"]);
        assert_eq!(found(&["a"], "mod b { use super::c; use super::super::d; }"), ["a::c", "d"]);
    }

    #[test]
    fn paths_in_the_arguments_of_a_macro_are_told() {
        let text = "fn f() { println!(\"{}\", crate::a::g(self.x, [super::h::I; 2])) }";
        let mut found = found(&["b", "c"], text);
        found.retain(|path| path != "b::c");
        assert_eq!(found, ["a::g", "b::h::I"]);
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
