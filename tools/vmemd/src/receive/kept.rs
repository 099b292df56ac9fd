// SPDX-License-Identifier: GPL-2.0-or-later
//! Regions whose descriptors systemd keeps. A region has a daemon as long as its descriptor is open, so the death of vmemd is no detach: programs wait
//! until systemd has started vmemd again, which goes on with the descriptor.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use vmem::{Error, Name, Region};
use vmem_service::{Kept, Service};
use vmem_source::Export;

use crate::failure::Failure;

/// The regions of this service.
pub(super) struct KeptRegions {
    service: Service,
    /// Those that systemd has passed to this process, and that no export has taken yet.
    passed: BTreeMap<String, (Label, Region)>,
    /// What systemd keeps now.
    labels: Vec<String>,
}

/// What a descriptor is kept as: `NAME@IDENTITY`. The identity is that of the memory that the region is filled from: a region never gets
/// pages of two memories.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Label {
    name: Name,
    identity: u128,
}

impl Label {
    fn parse(text: &str) -> Option<Self> {
        let (name, identity) = text.split_once('@')?;
        Some(Self {
            name: Name::new(name).ok()?,
            identity: u128::from_str_radix(identity, 16).ok()?,
        })
    }

    fn text(&self) -> String {
        format!("{}@{:x}", self.name, self.identity)
    }
}

impl KeptRegions {
    /// Takes what systemd has kept. To be called before anything else is opened.
    pub(super) fn take(service: Service) -> Result<Self, Failure> {
        let mut kept = Self {
            service,
            passed: BTreeMap::new(),
            labels: Vec::new(),
        };
        for Kept { name: label, fd } in Kept::take()? {
            let foreign = |why: String| Failure::Foreign {
                label: label.clone(),
                why,
            };
            let parsed = Label::parse(&label).ok_or_else(|| foreign("vmemd keeps none under such a name".to_owned()))?;
            let (region, name) = Region::resume(fd).map_err(|error| {
                foreign(match error {
                    Error::NotVmem { .. } => "it is not the descriptor of a region".to_owned(),
                    Error::MapOnly { .. } => "it can map a region, but not serve it".to_owned(),
                    error => vmem_cli::chain(&error),
                })
            })?;
            if name.as_ref() != Some(&parsed.name) {
                let found = name.map_or("that has no name".to_owned(), |name| name.to_string());
                return Err(foreign(format!("it is that of the region {found}")));
            }
            tracing::info!("region {}: goes on with the descriptor that systemd has kept", parsed.name);
            kept.labels.push(label);
            kept.passed.insert(parsed.name.to_string(), (parsed, region));
        }
        Ok(kept)
    }

    /// Whether systemd has passed regions to this process.
    pub(super) fn has_any(&self) -> bool {
        !self.labels.is_empty()
    }

    /// The region of this name, if systemd has kept it, for this export.
    pub(super) fn region(&mut self, name: &str, export: &Export) -> Result<Option<Region>, Failure> {
        let Some((label, region)) = self.passed.remove(name) else {
            return Ok(None);
        };
        match label.identity == export.identity {
            true => Ok(Some(region)),
            false => Err(Failure::Engine(vmem_engine::Error::MemoryChanged(label.name))),
        }
    }

    /// Has systemd keep these regions from now on, too, and lets go of those that no export has taken.
    ///
    /// It keeps none if the module cannot ask again for what this process has been asked for.
    pub(super) fn keep<'a>(
        &mut self,
        regions: impl ExactSizeIterator<Item = (&'a str, &'a Export, &'a Region)>,
        can_resume: bool,
    ) {
        self.release_rest();
        let room = self.service.room();
        if room == 0 {
            return;
        }
        if !can_resume {
            return tracing::warn!("systemd keeps no descriptor: the module that is loaded does not know VMEM_RESUME");
        }
        if room < regions.len() {
            let wanted = regions.len();
            return tracing::warn!(
                "systemd keeps no descriptor: there are {wanted} regions, and FileDescriptorStoreMax= is {room}"
            );
        }
        for (name, export, region) in regions {
            let Ok(name) = Name::new(name) else { continue };
            let identity = export.identity;
            let label = Label { name, identity }.text();
            if self.labels.contains(&label) {
                continue;
            }
            match self.service.keep(&label, region.as_fd()) {
                Ok(()) => self.labels.push(label),
                Err(error) => tracing::warn!("systemd cannot keep the descriptor {label}: {error}"),
            }
        }
    }

    /// Has systemd keep none of the regions, and lets go of those that no export has taken.
    pub(super) fn keep_none(&mut self) {
        self.release_rest();
        self.release();
    }

    /// Lets go of the regions that no export has taken.
    fn release_rest(&mut self) {
        for (name, (label, region)) in std::mem::take(&mut self.passed) {
            tracing::warn!("region {name} is let go of: systemd has kept it, but the source has no export for it any more");
            let label = label.text();
            self.labels.retain(|kept| *kept != label);
            drop(region);
            self.service.forget([label.as_str()]);
        }
    }

    /// This vmemd is the last one: systemd keeps nothing any more. The regions have no daemon when their own descriptors are closed, too.
    pub(super) fn release(&mut self) {
        self.passed.clear();
        if !self.labels.is_empty() {
            self.service.forget(self.labels.iter().map(String::as_str));
            self.labels.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_has_name_and_identity() {
        let label = Label {
            name: Name::new("guest0.ram").expect("a name"),
            identity: u128::MAX - 5,
        };
        assert_eq!(label.text(), "guest0.ram@fffffffffffffffffffffffffffffffa");
        assert_eq!(Label::parse(&label.text()), Some(label));
        for other in [
            "",
            "connection",
            "guest0",
            "guest0@",
            "guest0@x",
            "@1",
            "control@1",
            "a/b@1",
            "a@1@2",
        ] {
            assert_eq!(Label::parse(other), None, "{other}");
        }
    }
}
