// SPDX-License-Identifier: GPL-2.0-or-later
//! The schemas of what `vmemctl --json` and `vmemd --json` print, in `Documentation/schema`. They are made from the types, and the files are
//! compared with them. `make schemas` renews the files.

mod lines;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value, json};
use vmem_migrate::report::{CommonLine, MoveLine};

use crate::checkpoint::line::{CheckpointLine, CreateLine};
use crate::region::line::{ListLine, RegionLine};

/// With this variable in the environment, the files are written instead of compared.
const WRITE: &str = "VMEM_WRITE_SCHEMAS";

/// What the lines of all commands have in common.
const PROMISE: &str = "Each line of standard output is such an object. Consumers ignore events, fields and words that they do not know: later \
                       versions add some, and neither remove any nor change what they mean. Texts for people may change.";

type Lines = fn(&mut SchemaGenerator) -> Schema;

fn lines<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// The outputs: the name of the file, what prints the lines, and their types.
fn outputs() -> Vec<(&'static str, &'static str, Vec<Lines>)> {
    let common = lines::<CommonLine<'_>>;
    vec![
        ("vmemd", "vmemd --json", vec![lines::<vmem_control::Event>]),
        (
            "vmemctl-move",
            "vmemctl migrate, receive, listen, recover, forget, set and abort, with --json",
            vec![lines::<MoveLine<'_>>, common],
        ),
        (
            "vmemctl-status",
            "vmemctl status --json",
            vec![lines::<vmem_migrate::StatusLine<'_>>, common],
        ),
        (
            "vmemctl-check",
            "vmemctl check --json",
            vec![lines::<vmem_migrate::CheckLine<'_>>, common],
        ),
        (
            "vmemctl-dirty-rate",
            "vmemctl dirty-rate --json",
            vec![lines::<crate::dirty_rate::DirtyRateLine<'_>>, common],
        ),
        (
            "vmemctl-region",
            "vmemctl region --json",
            vec![lines::<ListLine<'_>>, lines::<RegionLine<'_>>, common],
        ),
        (
            "vmemctl-checkpoint",
            "vmemctl checkpoint --json",
            vec![lines::<CheckpointLine<'_>>, lines::<CreateLine<'_>>, common],
        ),
        (
            "vmemctl-tls",
            "vmemctl tls --json",
            vec![lines::<crate::tls::TlsLine<'_>>, common],
        ),
        (
            "vmemctl-doctor",
            "vmemctl doctor --json",
            vec![lines::<vmem_doctor::Finding>, lines::<crate::host::DoctorLine>, common],
        ),
        (
            "vmemctl-version",
            "vmemctl version --json",
            vec![lines::<vmem_doctor::VersionLine<'_>>, common],
        ),
        (
            "control",
            "a control socket: answers and events of vmemd, and of a vmemctl that migrates a guest (Documentation/control.rst)",
            vec![lines::<vmem_control::Reply>, lines::<vmem_control::Event>],
        ),
        (
            "control-request",
            "a control socket: requests of clients (Documentation/control.rst)",
            vec![lines::<vmem_control::Call>],
        ),
    ]
}

fn schema(name: &str, of: &str, types: &[Lines]) -> Value {
    let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let any: Vec<Schema> = types.iter().map(|lines| lines(&mut generator)).collect();
    let definitions: Map<String, Value> = generator.take_definitions(true);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": format!("urn:vmem:schema:{name}"),
        "$comment": "SPDX-License-Identifier: GPL-2.0. Made by make schemas; do not edit.",
        "title": format!("A line of {of}"),
        "description": PROMISE,
        "anyOf": any,
        "$defs": definitions,
    })
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Documentation/schema")
}

fn path(name: &str) -> PathBuf {
    directory().join(format!("{name}.schema.json"))
}

/// The line as JSON. Fails if the published schema does not allow it.
pub(crate) fn valid(name: &str, line: &impl Serialize) -> Value {
    let line = serde_json::to_value(line).expect("JSON");
    let errors = errors(name, &line);
    assert!(errors.is_empty(), "{name}: {line}: {errors:?}");
    line
}

/// What the published schema has against a line.
fn errors(name: &str, line: &Value) -> Vec<String> {
    let schema = fs::read(path(name)).expect("a schema");
    let schema = serde_json::from_slice(&schema).expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    validator.iter_errors(line).map(|error| error.to_string()).collect()
}

#[test]
fn published_schemas_are_those_of_the_types() {
    let mut names = BTreeSet::new();
    for (name, of, types) in outputs() {
        let made = format!("{:#}\n", schema(name, of, &types));
        let path = path(name);
        if std::env::var_os(WRITE).is_some() {
            fs::write(&path, &made).expect("a file");
        }
        let published = fs::read_to_string(&path).unwrap_or_default();
        let first = made
            .lines()
            .zip(published.lines())
            .find(|(made, published)| made != published);
        assert!(
            made == published,
            "{} is not what the types say; first the types, then the file: {first:?}. If the change is meant, and only adds: \
             make schemas",
            path.display()
        );
        names.insert(path.file_name().expect("a name").to_owned());
    }
    let found = fs::read_dir(directory()).expect("a directory");
    let found: BTreeSet<_> = found.map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(found, names);
}

/// The properties below a schema that have no description.
fn undescribed(at: &str, value: &Value, found: &mut Vec<String>) {
    if let Some(Value::Object(properties)) = value.get("properties") {
        for (name, property) in properties {
            if property.get("description").is_none() && property.get("const").is_none() {
                found.push(format!("{at}/{name}"));
            }
        }
    }
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(name, field)| undescribed(&format!("{at}/{name}"), field, found)),
        Value::Array(items) => items.iter().for_each(|item| undescribed(at, item, found)),
        _ => {}
    }
}

#[test]
fn each_field_has_a_description_and_no_schema_forbids_more_fields() {
    for (name, of, types) in outputs() {
        let schema = schema(name, of, &types);
        let mut found = Vec::new();
        undescribed(name, &schema, &mut found);
        assert!(found.is_empty(), "{found:#?}");
        assert!(!schema.to_string().contains("\"additionalProperties\":false"), "{name}");
    }
}
