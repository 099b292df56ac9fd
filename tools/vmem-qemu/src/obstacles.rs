// SPDX-License-Identifier: GPL-2.0-or-later
//! Settings of a QEMU that prevent a migration over one socket, and that are known before it begins.

use serde_json::{Value, json};

use crate::connection::Qmp;
use crate::error::Error;

/// Capabilities with which QEMU does not send one stream into one socket, or does not load it from one. [`Settings`] switches on
/// capabilities that are needed. It does not switch these off, because nothing says why they are on.
///
/// [`Settings`]: crate::migration::Settings
const CAPABILITIES: [&str; 6] = [
    "background-snapshot",
    "mapped-ram",
    "multifd",
    "postcopy-ram",
    "x-colo",
    "zero-copy-send",
];

/// Refuses a QEMU that cannot migrate over one socket.
///
/// # Errors
///
/// [`Error::Obstacle`] names the obstacles, and how to remove them; those of [`Qmp::execute`].
pub fn check(qmp: &mut Qmp) -> Result<(), Error> {
    match all(qmp)?.as_slice() {
        [] => Ok(()),
        found => Err(Error::Obstacle(found.join("; "))),
    }
}

/// Why a QEMU cannot migrate over one socket, and how to mend each of it.
///
/// # Errors
///
/// Those of [`Qmp::execute`].
pub fn all(qmp: &mut Qmp) -> Result<Vec<String>, Error> {
    let mut ask = |command: &str| qmp.execute(command, json!({}));
    let migration = ask("query-migrate")?;
    let capabilities = ask("query-migrate-capabilities")?;
    let parameters = ask("query-migrate-parameters")?;
    Ok(find(&migration, &capabilities, &parameters, has_no_description(qmp)?))
}

/// Whether QEMU writes no description of its devices at the end of the stream. Only this description shows that all of them are saved.
fn has_no_description(qmp: &mut Qmp) -> Result<bool, Error> {
    match qmp.execute("qom-get", json!({"path": "/machine", "property": "suppress-vmdesc"})) {
        Ok(answer) => Ok(answer == json!(true)),
        // A machine without this property writes it.
        Err(Error::Refused { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Describes the obstacles in QEMU's replies, and how to remove them.
fn find(migration: &Value, capabilities: &Value, parameters: &Value, has_no_description: bool) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(status @ ("setup" | "active" | "pre-switchover" | "device" | "cancelling")) = text(migration, "status") {
        found.push(format!("a migration is going on already (query-migrate: {status})"));
    }
    let blocked = migration.get("blocked-reasons").and_then(Value::as_array);
    found.extend(blocked.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned));
    let capabilities = capabilities.as_array().into_iter().flatten();
    let on = capabilities
        .filter(|one| one["state"] == json!(true))
        .filter_map(|one| text(one, "capability"));
    found.extend(
        on.filter(|name| CAPABILITIES.contains(name))
            .map(|name| format!("the migration capability {name} is on, and must be off (migrate-set-capabilities)")),
    );
    if let Some(credentials) = text(parameters, "tls-creds").filter(|name| !name.is_empty()) {
        found.push(format!(
            "the migration parameter tls-creds is {credentials:?}, and must be \"\" (migrate-set-parameters): vmemctl --tls protects the stream"
        ));
    }
    if let Some(mode) = text(parameters, "mode").filter(|mode| *mode != "normal") {
        found.push(format!(
            "the migration parameter mode is {mode}, and must be normal (migrate-set-parameters)"
        ));
    }
    if has_no_description {
        found.push("suppress-vmdesc=on (-machine): start QEMU without that, since its stream has no recognizable end".to_owned());
    }
    found
}

fn text<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value.get(field)?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::tests::{LIMIT, qemu};

    fn capabilities(on: &[&str]) -> Value {
        let all = ["xbzrle", "events", "multifd", "postcopy-ram", "x-ignore-shared"];
        all.iter()
            .map(|name| json!({"capability": name, "state": on.contains(name)}))
            .collect()
    }

    #[test]
    fn ordinary_qemu_has_no_obstacle() {
        let parameters = json!({"max-bandwidth": 134_217_728, "tls-creds": "", "tls-hostname": "", "mode": "normal"});
        for migration in [json!({}), json!({"status": "completed"}), json!({"status": "cancelled"})] {
            assert_eq!(
                find(&migration, &capabilities(&["events", "x-ignore-shared"]), &parameters, false),
                [""; 0],
                "{migration}"
            );
        }
        // An old QEMU does not report all of this.
        assert_eq!(find(&json!({}), &json!([]), &json!({}), false), [""; 0]);
    }

    #[test]
    fn machine_that_describes_no_devices_is_an_obstacle_and_one_that_cannot_say_is_none() {
        const NONE: &str = r#"{"return": {}}"#;
        let check_with = |answer| {
            let answers: &'static [&'static str] = match answer {
                "on" => &[NONE, r#"{"return": []}"#, NONE, r#"{"return": true}"#],
                "off" => &[NONE, r#"{"return": []}"#, NONE, r#"{"return": false}"#],
                _ => &[
                    NONE,
                    r#"{"return": []}"#,
                    NONE,
                    r#"{"error": {"class": "GenericError", "desc": "no property"}}"#,
                ],
            };
            let (socket, thread) = qemu(answers);
            let result = check(&mut Qmp::new(socket, LIMIT).expect("a QEMU"));
            let commands = thread.join().expect("no panic");
            assert_eq!(
                commands[4]["arguments"],
                json!({"path": "/machine", "property": "suppress-vmdesc"})
            );
            result
        };
        let error = check_with("on").expect_err("an obstacle").to_string();
        assert!(error.contains("suppress-vmdesc=on"), "{error}");
        check_with("off").expect("it describes them");
        check_with("none").expect("it describes them");
    }

    #[test]
    fn each_obstacle_is_named() {
        let none = json!({});
        let blocked = json!({"blocked-reasons": ["0000:00:04.0: VFIO migration is not supported in kernel", "no"]});
        let found = find(&blocked, &none, &none, false);
        assert_eq!(found, ["0000:00:04.0: VFIO migration is not supported in kernel", "no"]);
        let found = find(&json!({"status": "active"}), &none, &none, false).join("; ");
        assert!(found.contains("going on already (query-migrate: active)"), "{found}");
        let found = find(&none, &capabilities(&["multifd", "xbzrle"]), &none, false).join("; ");
        assert!(
            found.contains("capability multifd is on") && !found.contains("xbzrle"),
            "{found}"
        );
        let found = find(&none, &none, &json!({"tls-creds": "tls0", "mode": "cpr-reboot"}), false).join("; ");
        assert!(
            found.contains("tls-creds is \"tls0\"") && found.contains("mode is cpr-reboot"),
            "{found}"
        );
    }
}
