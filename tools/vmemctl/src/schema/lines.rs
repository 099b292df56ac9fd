// SPDX-License-Identifier: GPL-2.0-or-later
//! Lines as programs print them are what the published schemas say.

use serde::Deserialize;
use serde_json::{Value, json};
use vmem_control::{Answer, Call, Duty, Event, Reply, Request, Status};
use vmem_store::{Fragmentation, Rewritten, SquashReport, Statistics, VerifyReport};

use super::{CheckpointLine, CommonLine, MoveLine, errors, valid};
use crate::checkpoint::line::{Details, Summary};

#[test]
fn dropped_lines_are_said_as_the_schema_says() {
    let line: Value = serde_json::from_str(&vmem_cli::output::dropped(3)).expect("JSON");
    assert_eq!(line, valid("vmemctl-move", &CommonLine::Dropped { lines: 3 }));
    valid("vmemd", &line);
}

#[test]
fn events_of_vmemd_are_valid_and_other_objects_are_not() {
    let regions = json!([{"name": "ram", "path": "/run/vmem/ram", "bytes": 8192, "present_bytes": 4096, "unreadable_pages": 0, "phase": "filling"}]);
    let figures = json!({"seconds": 1.5, "fault_us": {"p50": 1, "p99": 2, "max": 3}, "regions": regions});
    let with = |fields: Value, more: &Value| {
        let mut fields = fields;
        let more = more.as_object().expect("an object").clone();
        fields.as_object_mut().expect("an object").extend(more);
        fields
    };
    for line in [
        json!({"event": "holding", "source": "a:1", "regions": regions}),
        json!({"event": "listening", "address": "[::1]:8636"}),
        json!({"event": "ready", "source": "a:1", "regions": []}),
        json!({"event": "order", "order": "x", "error": null}),
        with(json!({"event": "progress"}), &figures),
        with(json!({"event": "region"}), &regions[0]),
        json!({"event": "lost", "connection": "urgent", "error": "reset"}),
        json!({"event": "back", "connection": "stream"}),
        json!({"event": "short", "name": "ram"}),
        json!({"event": "touched", "region": "ram", "runs": [[0, 7]], "missed": 0}),
        json!({"event": "rounds", "mode": "auto", "round": 1}),
        json!({"event": "round", "round": 1, "seconds": 0.5, "sent_pages": 7}),
        json!({"event": "settled", "reason": "it fits", "fits": true, "left_bytes": 0, "expected_ms": null}),
        json!({"event": "finished", "remainder_bytes": 0}),
        json!({"event": "migration", "guest": "a", "phase": "rounds", "rounds": {"mode": "auto", "round": 1}}),
        json!({"event": "failed", "error": "no"}),
        json!({"event": "verified", "pages": 7, "different": 1, "first": [{"region": "ram", "page": 3}]}),
        json!({"event": "end", "exit_code": 0, "error": null}),
        with(json!({"event": "end", "exit_code": 3, "error": "no"}), &figures),
    ] {
        let event = Event::deserialize(&line).expect("an event");
        let printed = valid("vmemd", &event);
        valid("control", &event);
        assert_eq!(printed["event"], line["event"]);
    }
    for bad in [
        json!({}),
        json!({"event": "lost", "connection": "slow", "error": "reset"}),
        json!({"event": "lost", "connection": "urgent"}),
        json!({"event": "short", "region": "ram"}),
        json!({"event": "finished", "remainder_bytes": -1}),
    ] {
        assert!(!errors("vmemd", &bad).is_empty(), "{bad}");
    }
    assert!(errors("vmemd", &json!({"event": "short", "name": "ram", "later": 1})).is_empty());
}

#[test]
fn messages_of_the_control_protocol_are_valid() {
    for request in [
        Request::Hello { oldest: 1, latest: 1 },
        Request::Status,
        Request::Set(vmem_control::Change {
            bandwidth: Some(7),
            ..vmem_control::Change::default()
        }),
        Request::Stop,
    ] {
        valid("control-request", &Call { id: 7, request });
    }
    let process = vmem_process::Identity::own().expect("a process");
    for answer in [
        Answer::Hello {
            version: 1,
            session: String::new(),
            duty: Duty::Migrate,
            process,
        },
        Answer::Status(Box::<Status>::default()),
        Answer::Done,
        Answer::Error {
            kind: vmem_control::ErrorKind::TooLong,
            text: "no".to_owned(),
        },
    ] {
        valid("control", &Reply { id: 7, answer });
    }
}

#[test]
fn lines_of_moves_are_valid() {
    let vmemd = json!({"event": "later", "field": 1});
    valid("vmemctl-move", &MoveLine::Pages { vmemd: &vmemd });
    valid(
        "vmemctl-move",
        &MoveLine::Running {
            total_seconds: 1.0,
            downtime_seconds: None,
        },
    );
    valid("vmemctl-move", &MoveLine::Changed { guest: "a" });
    valid(
        "vmemctl-status",
        &CommonLine::Failed {
            exit_code: 1,
            error: "no",
        },
    );
}

#[test]
fn lines_of_checkpoints_are_valid() {
    let (tags, labels) = (
        ["daily".to_owned()].into(),
        [("run-state".to_owned(), "running".to_owned())].into(),
    );
    let summary = |details| {
        CheckpointLine::Checkpoint(Box::new(Summary {
            checkpoint: "a@1".to_owned(),
            created_ms: 1,
            parent: None,
            memory_bytes: 4096,
            stored_pages: 1,
            pack_bytes: 4096,
            run_state: None,
            tags: &tags,
            protected: false,
            encrypted: false,
            details,
        }))
    };
    valid("vmemctl-checkpoint", &summary(None));
    valid(
        "vmemctl-checkpoint",
        &summary(Some(Details {
            disks: &[],
            labels: &labels,
            statistics: Statistics::default(),
            fragmentation: Fragmentation::default(),
        })),
    );
    for order in [None, Some(None), Some(Some("a@1".to_owned()))] {
        let has_order = order.is_some();
        let line = CheckpointLine::Squashed {
            checkpoint: "a@3".to_owned(),
            dry_run: true,
            report: SquashReport::default(),
            order,
        };
        assert_eq!(valid("vmemctl-checkpoint", &line).get("order").is_some(), has_order);
    }
    let checkpoint = "a@1".to_owned();
    let (report, rewritten) = (VerifyReport::default(), Rewritten::default());
    for line in [
        CheckpointLine::Verified {
            checkpoint: checkpoint.clone(),
            report,
        },
        CheckpointLine::Rewritten {
            checkpoint,
            report: rewritten,
        },
        CheckpointLine::StoreAway { error: "no".to_owned() },
        CheckpointLine::Complete,
    ] {
        valid("vmemctl-checkpoint", &line);
    }
}
