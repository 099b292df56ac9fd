// SPDX-License-Identifier: GPL-2.0-or-later
//! The crates by their layers, as Documentation/design shows them.

use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::crates::Crate;

const BEGIN: &str = ".. begin layers\n";
const END: &str = ".. end layers\n";

/// The table, from the highest layer to the lowest.
fn table(crates: &[Crate]) -> String {
    let mut rows = vec![[
        "layer".to_owned(),
        "crate".to_owned(),
        "uses".to_owned(),
        "what it is".to_owned(),
    ]];
    for krate in crates.iter().rev() {
        let uses = match krate.uses.join(", ") {
            none if none.is_empty() => "\\-".to_owned(),
            uses => uses,
        };
        rows.push([krate.layer.to_string(), krate.name.clone(), uses, krate.description.clone()]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    let rule = widths.map(|width| "=".repeat(width)).join(" ");
    let mut lines = vec![rule.clone()];
    for (at, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        lines.push(cells.collect::<Vec<_>>().join(" ").trim_end().to_owned());
        if at == 0 {
            lines.push(rule.clone());
        }
    }
    lines.push(rule);
    lines.join("\n")
}

/// The document before the table, with its mark, and after it.
fn parts(text: &str) -> Option<(&str, &str)> {
    let begin = text.find(BEGIN)? + BEGIN.len();
    let end = begin + text[begin..].find(END)?;
    Some((&text[..begin], &text[end..]))
}

fn updated(document: &Path, crates: &[Crate]) -> anyhow::Result<(String, String)> {
    let text = fs::read_to_string(document).with_context(|| document.display().to_string())?;
    let (before, after) = parts(&text).with_context(|| format!("{} has no place for the layers", document.display()))?;
    let updated = format!("{before}\n{}\n\n{after}", table(crates));
    Ok((text, updated))
}

/// A line if the document's table is not that of these crates.
pub(crate) fn compare(document: &Path, crates: &[Crate]) -> anyhow::Result<Option<String>> {
    let (text, updated) = updated(document, crates)?;
    Ok((text != updated).then(|| format!("{}: the layers are not those of the crates (--write)", document.display())))
}

/// Puts the table into the document.
pub(crate) fn write(document: &Path, crates: &[Crate]) -> anyhow::Result<()> {
    let (text, updated) = updated(document, crates)?;
    if text != updated {
        fs::write(document, updated).with_context(|| document.display().to_string())?;
    }
    Ok(())
}
