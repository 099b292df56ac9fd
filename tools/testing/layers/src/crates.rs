// SPDX-License-Identifier: GPL-2.0-or-later
//! The crates, their layers, and which crates of the project each of them uses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde::Deserialize;

/// A crate of the project.
pub(crate) struct Crate {
    pub(crate) name: String,
    pub(crate) description: String,
    /// Higher layers use lower ones. `package.metadata.layer` of its manifest.
    pub(crate) layer: u64,
    /// The crates of the project that it uses, without those that only its tests use.
    pub(crate) uses: Vec<String>,
    /// The first file of its library and of each of its programs.
    pub(crate) roots: Vec<PathBuf>,
}

/// The crates of these workspaces.
pub(crate) fn read(manifests: &[PathBuf]) -> anyhow::Result<Vec<Crate>> {
    let mut crates = Vec::new();
    for manifest in manifests {
        let metadata = metadata(manifest).with_context(|| format!("cargo metadata of {}", manifest.display()))?;
        for package in metadata.packages {
            let name = package.name.clone();
            crates.push(of(package).with_context(|| format!("crate {name}"))?);
        }
    }
    ensure!(!crates.is_empty(), "no crate was found");
    crates.sort_by(|one, other| (one.layer, &one.name).cmp(&(other.layer, &other.name)));
    Ok(crates)
}

/// Of what `cargo metadata` tells, what is needed here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    description: Option<String>,
    dependencies: Vec<Dependency>,
    targets: Vec<Target>,
    metadata: Option<Own>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`; none for an ordinary one.
    kind: Option<String>,
    /// Only what is no registry's has one.
    path: Option<String>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    src_path: PathBuf,
}

#[derive(Deserialize)]
struct Own {
    layer: u64,
}

fn metadata(manifest: &Path) -> anyhow::Result<Metadata> {
    let output = Command::new("cargo")
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
            "--manifest-path",
        ])
        .arg(manifest)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn of(package: Package) -> anyhow::Result<Crate> {
    let own = package.dependencies.into_iter();
    let own = own.filter(|dependency| dependency.path.is_some() && dependency.kind.as_deref() != Some("dev"));
    let is_program = |target: &Target| {
        target
            .kind
            .iter()
            .any(|kind| ["lib", "bin", "cdylib"].contains(&kind.as_str()))
    };
    let programs = package.targets.into_iter().filter(is_program);
    Ok(Crate {
        name: package.name,
        description: package.description.context("its manifest has no description")?,
        layer: package.metadata.context("its manifest has no package.metadata.layer")?.layer,
        uses: own.map(|dependency| dependency.name).collect(),
        roots: programs.map(|target| target.src_path).collect(),
    })
}

/// A line for each use of a crate by one of its own layer or of a lower one.
pub(crate) fn upward(crates: &[Crate]) -> Vec<String> {
    let layers: BTreeMap<&str, u64> = crates.iter().map(|krate| (krate.name.as_str(), krate.layer)).collect();
    let mut faults = Vec::new();
    for krate in crates {
        for used in &krate.uses {
            if layers.get(used.as_str()).is_some_and(|layer| *layer >= krate.layer) {
                faults.push(format!(
                    "{} of layer {} uses {used} of layer {}",
                    krate.name,
                    krate.layer,
                    layers[used.as_str()]
                ));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn krate(name: &str, layer: u64, uses: &[&str]) -> Crate {
        Crate {
            name: name.into(),
            description: String::new(),
            layer,
            uses: uses.iter().map(|used| (*used).to_owned()).collect(),
            roots: Vec::new(),
        }
    }

    #[test]
    fn a_use_of_a_lower_layer_is_no_fault() {
        assert!(upward(&[krate("a", 0, &[]), krate("b", 1, &["a"])]).is_empty());
    }

    #[test]
    fn a_use_of_the_same_or_a_higher_layer_is_a_fault() {
        let faults = upward(&[krate("a", 1, &["b"]), krate("b", 1, &["c"]), krate("c", 2, &[])]);
        assert_eq!(faults, ["a of layer 1 uses b of layer 1", "b of layer 1 uses c of layer 2"]);
    }
}
