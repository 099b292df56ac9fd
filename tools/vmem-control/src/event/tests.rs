// SPDX-License-Identifier: GPL-2.0-or-later
//! What daemons say, in the form in which they say it.

use super::*;

fn region(present_bytes: u64, phase: Phase) -> Region {
    Region {
        name: "ram".to_owned(),
        bytes: 8192,
        present_bytes,
        unreadable_pages: 0,
        phase,
        ..Region::default()
    }
}

#[test]
fn events_have_the_form_of_the_lines_that_vmemd_8_describes() {
    let figures = Figures {
        seconds: 1.5,
        cpu_seconds: 0.5,
        data_bytes: 4096,
        fault_us: Some(Times { p50: 1, p99: 2, max: 3 }),
        regions: vec![region(4096, Phase::Filling)],
        ..Figures::default()
    };
    let fields = r#""seconds":1.5,"cpu_seconds":0.5,"data_bytes":4096,"zero_bytes":0,"duplicate_bytes":0,"staged_bytes":0,"known_bytes":0,"same_bytes":0,"backed_bytes":0,"verified_bytes":0,"wire_bytes":0,"faults":0,"fault_us":{"p50":1,"p99":2,"max":3},"reconnects":0,"regions":[{"name":"ram","bytes":8192,"present_bytes":4096,"unreadable_pages":0,"phase":"filling"}]"#;
    for (event, line) in [
        (
            Event::Progress(figures.clone()),
            format!(r#"{{"event":"progress",{fields}}}"#),
        ),
        (
            Event::End {
                exit_code: 2,
                error: Some("no source".to_owned()),
                figures: Some(figures),
            },
            format!(r#"{{"event":"end","exit_code":2,"error":"no source",{fields}}}"#),
        ),
        (
            Event::End {
                exit_code: 0,
                error: None,
                figures: None,
            },
            r#"{"event":"end","exit_code":0,"error":null}"#.to_owned(),
        ),
        (
            Event::Region(Region {
                path: Some("/run/vmem/ram".to_owned()),
                node: Some("/dev/vmem/ram".to_owned()),
                ..region(0, Phase::Waiting)
            }),
            r#"{"event":"region","name":"ram","path":"/run/vmem/ram","node":"/dev/vmem/ram","bytes":8192,"present_bytes":0,"unreadable_pages":0,"phase":"waiting"}"#.to_owned(),
        ),
        (Event::Dropped { lines: 7 }, r#"{"event":"dropped","lines":7}"#.to_owned()),
        (
            Event::Round(Round {
                round: 2,
                seconds: 0.5,
                sent_pages: 7,
                zero_pages: 1,
                resent_pages: 6,
                known_pages: 3,
                same_pages: 4,
                skipped_pages: 2,
                dirtied_pages: 9,
                left_pages: 8,
                bytes: 28672,
                bytes_per_second: Some(57344),
                dirty_bytes_per_second: Some(73728),
                cpu_seconds: 0.25,
            }),
            concat!(
                r#"{"event":"round","round":2,"seconds":0.5,"sent_pages":7,"zero_pages":1,"resent_pages":6,"known_pages":3,"#,
                r#""same_pages":4,"skipped_pages":2,"#,
                r#""dirtied_pages":9,"left_pages":8,"bytes":28672,"bytes_per_second":57344,"dirty_bytes_per_second":73728,"#,
                r#""cpu_seconds":0.25}"#
            )
            .to_owned(),
        ),
        (
            Event::Settled(Settled {
                reason: "nothing is left".to_owned(),
                fits: true,
                left_bytes: 4096,
                expected_ms: Some(3),
            }),
            r#"{"event":"settled","reason":"nothing is left","fits":true,"left_bytes":4096,"expected_ms":3}"#.to_owned(),
        ),
        (
            Event::Finished(Finished {
                remainder_bytes: 8192,
                fits: Some(true),
                expected_ms: Some(4),
            }),
            r#"{"event":"finished","remainder_bytes":8192,"fits":true,"expected_ms":4}"#.to_owned(),
        ),
        (
            Event::Failed {
                error: "lost".to_owned(),
            },
            r#"{"event":"failed","error":"lost"}"#.to_owned(),
        ),
        (
            Event::Verified(Verified {
                pages: 512,
                different: 1,
                first: vec![RegionPage {
                    region: "ram".to_owned(),
                    page: 7,
                }],
            }),
            r#"{"event":"verified","pages":512,"different":1,"first":[{"region":"ram","page":7}]}"#.to_owned(),
        ),
        (
            Event::Touched(Touched {
                region: "ram".to_owned(),
                runs: vec![(7, 2), (3, 1)],
                missed: 4,
            }),
            r#"{"event":"touched","region":"ram","runs":[[7,2],[3,1]],"missed":4}"#.to_owned(),
        ),
        (
            Event::Back {
                connection: Lane::Urgent,
            },
            r#"{"event":"back","connection":"urgent"}"#.to_owned(),
        ),
    ] {
        assert_eq!(serde_json::to_string(&event).expect("JSON"), line);
        assert_eq!(serde_json::from_str::<Event>(&line).expect("an event"), event);
    }
}

#[test]
fn phase_has_one_name_on_the_wire() {
    for (phase, name) in [
        (Phase::Filling, "\"filling\""),
        (Phase::Waiting, "\"waiting\""),
        (Phase::Populating, "\"populating\""),
        (Phase::Plain, "\"plain\""),
        (Phase::Unreadable, "\"unreadable\""),
    ] {
        assert_eq!(serde_json::to_string(&phase).expect("JSON"), name);
        assert_eq!(serde_json::from_str::<Phase>(name).expect("a phase"), phase);
    }
}

#[test]
fn what_a_later_vmemd_adds_is_ignored() {
    let parse = |line: &str| serde_json::from_str::<Event>(line).expect("an event");
    assert_eq!(parse(r#"{"event":"later","number":3}"#), Event::Unknown);
    assert_eq!(
        parse(r#"{"event":"region","name":"ram","bytes":8192,"present_bytes":0,"phase":"staged","more":1}"#),
        Event::Region(region(0, Phase::Unknown))
    );
}

#[test]
fn status_is_what_the_events_come_to() {
    let mut status = Status::default();
    assert_eq!(status.state, State::Starting);
    let (source, regions) = ("host".to_owned(), vec![region(0, Phase::Filling)]);
    status.apply(&Event::Holding {
        source: source.clone(),
        regions: regions.clone(),
    });
    assert_eq!(status.state, State::Holding);
    status.apply(&Event::Ready { source, regions });
    status.apply(&Event::Region(region(8192, Phase::Plain)));
    assert_eq!((status.state, status.source.as_deref()), (State::Ready, Some("host")));
    let figures = status.figures.clone().expect("figures");
    assert_eq!(figures.regions, [region(8192, Phase::Plain)]);
    let (exit_code, error) = (6, None);
    status.apply(&Event::End {
        exit_code,
        error,
        figures: None,
    });
    assert_eq!((status.state, status.figures), (State::Ended, Some(figures)));
}

#[test]
fn status_has_what_was_said_of_the_rounds_while_nobody_listened() {
    let mut status = Status::default();
    let settled = Settled {
        reason: "switch".to_owned(),
        ..Settled::default()
    };
    status.apply(&Event::Settled(settled.clone()));
    let error = "no log".to_owned();
    status.apply(&Event::Failed { error: error.clone() });
    assert_eq!(
        (status.settled.as_ref(), status.failed.as_ref()),
        (Some(&settled), Some(&error))
    );
    // `finish` can be sent again.
    let finished = Finished {
        remainder_bytes: 4096,
        fits: Some(false),
        expected_ms: None,
    };
    status.apply(&Event::Finished(finished));
    assert_eq!((status.finished, status.failed.as_ref()), (Some(finished), None));
    let rounds = Rounds {
        round: 3,
        ..Rounds::default()
    };
    status.apply(&Event::Rounds(rounds.clone()));
    assert_eq!((status.rounds, status.settled), (Some(rounds), Some(settled)));
}

#[test]
fn answer_of_an_earlier_vmemd_has_nothing_of_rounds() {
    let status: Status =
        serde_json::from_str(r#"{"state":"ready","listening":null,"source":null,"figures":null}"#).expect("a status");
    assert_eq!(
        status,
        Status {
            state: State::Ready,
            ..Status::default()
        }
    );
    let finished: Event = serde_json::from_str(r#"{"event":"finished","remainder_bytes":8192}"#).expect("an event");
    let remainder_bytes = 8192;
    assert_eq!(
        finished,
        Event::Finished(Finished {
            remainder_bytes,
            ..Finished::default()
        })
    );
}
