// SPDX-License-Identifier: GPL-2.0-or-later
//! The modules of a crate, each of which is a file, and what each of them uses of the others.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use syn::{Attribute, Expr, ExprLit, Item, ItemMod, Lit, Meta};

use crate::uses::{self, Use};

/// A file of a crate.
pub(crate) struct Module {
    /// Names of its parents and its own: none for the first file of the crate.
    pub(crate) path: Vec<String>,
    pub(crate) file: PathBuf,
    pub(crate) uses: Vec<Use>,
}

/// The modules of the crate that begins with this file, without those that only its tests have.
pub(crate) fn read(root: &Path) -> anyhow::Result<Vec<Module>> {
    let mut modules = Vec::new();
    let directory = root.parent().context("a file without a directory")?;
    read_file(root, directory, Vec::new(), &mut modules)?;
    Ok(modules)
}

/// Reads `file`, whose children are in `directory`.
fn read_file(file: &Path, directory: &Path, path: Vec<String>, modules: &mut Vec<Module>) -> anyhow::Result<()> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let syntax = syn::parse_file(&text).with_context(|| file.display().to_string())?;
    modules.push(Module {
        path: path.clone(),
        file: file.to_owned(),
        uses: uses::of(&path, &syntax),
    });
    let own_directory = file.parent().context("a file without a directory")?;
    read_children(&syntax.items, (own_directory, directory), &path, modules)
}

/// Reads the files that these items name. Those with a `path` are relative to the first directory, the others in the second.
fn read_children(
    items: &[Item],
    (own, directory): (&Path, &Path),
    path: &[String],
    modules: &mut Vec<Module>,
) -> anyhow::Result<()> {
    for item in items {
        let Item::Mod(module) = item else { continue };
        if uses::is_of_tests(&module.attrs) {
            continue;
        }
        let name = module.ident.to_string();
        let path: Vec<String> = path.iter().cloned().chain([name.clone()]).collect();
        let given = given_path(&module.attrs)?;
        match (&module.content, given) {
            (Some((_, items)), given) => {
                let inner = match given {
                    Some(given) => own.join(given),
                    None => directory.join(&name),
                };
                read_children(items, (&inner, &inner), &path, modules)?;
            }
            (None, Some(given)) => {
                // Its children are beside it, as those of a `mod.rs` are.
                let file = own.join(given);
                let children = file.parent().context("a file without a directory")?.to_owned();
                read_file(&file, &children, path, modules)?;
            }
            (None, None) => {
                let (file, children) = find(module, directory)?;
                read_file(&file, &children, path, modules)?;
            }
        }
    }
    Ok(())
}

/// The file of a module, and the directory of its children.
fn find(module: &ItemMod, directory: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let children = directory.join(module.ident.to_string());
    for file in [children.with_extension("rs"), children.join("mod.rs")] {
        if file.exists() {
            return Ok((file, children));
        }
    }
    bail!("{} has no file of its module {}", directory.display(), module.ident)
}

/// What `#[path = "..."]` says.
fn given_path(attributes: &[Attribute]) -> anyhow::Result<Option<String>> {
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("path")) {
        let Meta::NameValue(meta) = &attribute.meta else { continue };
        match &meta.value {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => return Ok(Some(text.value())),
            _ => bail!("a path that is no text"),
        }
    }
    Ok(None)
}
