// SPDX-License-Identifier: GPL-2.0-or-later
//! Which versions of vmem a machine has, and whether they fit.

use serde::Serialize;
use serde_json::Value;

use crate::host::{FEATURES, Host, ModuleFeatures, RELOAD};

/// The version of these tools, and of everything that is built from the same source.
pub(crate) const TOOLS: &str = env!("CARGO_PKG_VERSION");

/// The version of the vmemd that vmemctl starts, or why it is not known.
pub(crate) fn vmemd(host: &Host) -> Result<String, String> {
    let line = (host.version_of)(&host.vmemd)?;
    Ok(line.strip_prefix("vmemd ").unwrap_or(&line).to_owned())
}

/// The versions of vmem on a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    /// That of the vmemd that vmemctl starts, or why it is not known.
    pub vmemd: Result<String, String>,
    /// The loaded module's; `None` if it is not loaded.
    pub module: Option<String>,
    /// What the module answers.
    pub features: ModuleFeatures,
}

/// The versions of vmem on a machine, for programs.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename = "version")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VersionLine<'a> {
    /// The version of this vmemctl.
    vmemctl: &'a str,
    /// The version of the vmemd that vmemctl starts; null if none is found.
    vmemd: Option<&'a str>,
    /// The version of the loaded module; null if it is not loaded.
    module: Option<&'a str>,
    /// The features of the header with which these tools are built.
    header: &'a [&'a str],
    /// The features of the header that the module does not have.
    lacks: Vec<&'a str>,
    /// Whether these tools work with the loaded module and with vmemd; null if that is not known.
    fit: Option<bool>,
    /// Why they fit or not, for people.
    text: String,
}

impl Versions {
    /// Those of this machine.
    pub fn of(host: &Host) -> Self {
        let is_loaded = host.exists("/sys/module/vmem");
        Self {
            vmemd: vmemd(host),
            // A module of before there were versions has none.
            module: is_loaded.then(|| host.text("/sys/module/vmem/version").unwrap_or_else(|| "unknown".to_owned())),
            features: host.features.clone(),
        }
    }

    /// Whether these tools work with the loaded module and with vmemd; `None` if there is no module to ask, or only root may ask it. The module fits
    /// if it has every feature of the header that the tools are built with, whatever its version is.
    pub fn fit(&self) -> Option<bool> {
        if !self.vmemd.as_ref().is_ok_and(|version| version == TOOLS) {
            return Some(false);
        }
        self.module.as_ref()?;
        match &self.features {
            ModuleFeatures::Known(_) => Some(self.lacks().is_empty()),
            ModuleFeatures::Forbidden => None,
            ModuleFeatures::NoDevice | ModuleFeatures::Unusable(_) => Some(false),
        }
    }

    /// The features of the header that the module does not have.
    fn lacks(&self) -> Vec<&'static str> {
        match &self.features {
            ModuleFeatures::Known(features) => features.iter().filter(|(_, has)| !has).map(|(name, _)| *name).collect(),
            _ => Vec::new(),
        }
    }

    /// Why they fit or not.
    fn verdict(&self) -> String {
        match &self.vmemd {
            Ok(version) if version == TOOLS => {}
            Ok(version) => {
                return format!("no: vmemd is of version {version}, vmemctl of {TOOLS}; install both from one package");
            }
            Err(why) => return format!("no: vmemd: {why}; install it from vmemctl's package"),
        }
        if self.module.is_none() {
            return "unknown: the module is not loaded; type: modprobe vmem".to_owned();
        }
        match &self.features {
            ModuleFeatures::Known(_) if self.lacks().is_empty() => "yes".to_owned(),
            ModuleFeatures::Known(_) => format!(
                "no: the module lacks {}; end all regions, then type: {RELOAD}",
                self.lacks().join(", ")
            ),
            ModuleFeatures::Forbidden => "unknown: only root may ask the module; type: sudo vmemctl version".to_owned(),
            ModuleFeatures::NoDevice => "no: the module has no /dev/vmem/control here (a container?)".to_owned(),
            ModuleFeatures::Unusable(why) => format!("no: {why}"),
        }
    }

    /// Lines for people.
    pub fn lines(&self) -> Vec<String> {
        vec![
            format!("vmemctl  {TOOLS}"),
            format!("vmemd    {}", self.vmemd.as_ref().unwrap_or_else(|why| why)),
            format!("module   {}", self.module.as_deref().unwrap_or("not loaded")),
            format!("header   {}", FEATURES.join(", ")),
            format!("fit      {}", self.verdict()),
        ]
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let line = VersionLine {
            vmemctl: TOOLS,
            vmemd: self.vmemd.as_deref().ok(),
            module: self.module.as_deref(),
            header: &FEATURES,
            lacks: self.lacks(),
            fit: self.fit(),
            text: self.verdict(),
        };
        // Texts: serializing them does not fail.
        serde_json::to_value(line).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testing::Fake;

    fn loaded() -> Fake {
        Fake::new().file("/sys/module/vmem/version", format!("{TOOLS}\n"))
    }

    fn fit(fake: &Fake) -> Option<bool> {
        let versions = Versions::of(&fake.host);
        assert_eq!(versions.json()["fit"].as_bool(), versions.fit());
        let word = match versions.fit() {
            Some(true) => "fit      yes",
            Some(false) => "fit      no: ",
            None => "fit      unknown: ",
        };
        let lines = versions.lines();
        assert!(lines[4].starts_with(word), "{}", lines[4]);
        versions.fit()
    }

    #[test]
    fn module_with_every_feature_fits_whatever_its_version() {
        assert_eq!(fit(&loaded()), Some(true));
        assert_eq!(fit(&Fake::new().file("/sys/module/vmem/version", "99\n")), Some(true));
        assert_eq!(fit(&Fake::new().directory("/sys/module/vmem")), Some(true));
    }

    #[test]
    fn module_that_is_not_loaded_is_said() {
        let fake = Fake::new().with(|host| host.features = ModuleFeatures::NoDevice);
        assert_eq!(fit(&fake), None);
        assert_eq!(Versions::of(&fake.host).lines()[2], "module   not loaded");
    }

    #[test]
    fn module_without_a_feature_does_not_fit() {
        let fake = loaded().with(|host| host.features = ModuleFeatures::Known(vec![("fill", true), ("files", false)]));
        assert_eq!(fit(&fake), Some(false));
        assert_eq!(Versions::of(&fake.host).json()["lacks"], serde_json::json!(["files"]));
    }

    #[test]
    fn only_root_can_tell() {
        assert_eq!(fit(&loaded().with(|host| host.features = ModuleFeatures::Forbidden)), None);
        let unusable = ModuleFeatures::Unusable("another page size".to_owned());
        assert_eq!(fit(&loaded().with(|host| host.features = unusable)), Some(false));
    }

    #[test]
    fn vmemd_of_another_version_does_not_fit() {
        let with = |version_of| loaded().with(|host| host.version_of = version_of);
        assert_eq!(fit(&with(|_| Ok("vmemd 0.0.1".to_owned()))), Some(false));
        assert_eq!(fit(&with(|_| Ok(format!("vmemd {TOOLS}")))), Some(true));
    }

    #[test]
    fn vmemd_that_is_not_there_does_not_fit() {
        let fake = loaded().with(|host| host.version_of = |_| Err("not found".to_owned()));
        assert_eq!(fit(&fake), Some(false));
        let versions = Versions::of(&fake.host);
        assert_eq!(versions.lines()[1], "vmemd    not found");
        assert!(versions.json()["vmemd"].is_null());
    }
}
