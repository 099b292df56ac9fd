// SPDX-License-Identifier: GPL-2.0-or-later

//! The gate of a snapshot: random histories against one that counts. `image/instant.rs` has it under the model checker.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::model::gate::{CompareExchange, Gate, GateState};
use proptest::prelude::*;

impl CompareExchange for AtomicU64 {
    fn load(&self) -> u64 {
        AtomicU64::load(self, SeqCst)
    }

    fn cmpxchg(&self, old: u64, new: u64) -> Result<(), u64> {
        self.compare_exchange(old, new, SeqCst, SeqCst).map(drop)
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Close,
    Open,
    SetImage,
    ClearImage,
    Enter,
    /// One of those who are inside, if there is one.
    Leave,
}

/// What the gate is to its users.
#[derive(Default)]
struct Naive {
    closed: bool,
    image: bool,
    inside: u64,
}

impl Naive {
    fn state(&self) -> GateState {
        match (self.closed, self.image) {
            (true, _) => GateState::Closed,
            (false, true) => GateState::CopyFirst,
            (false, false) => GateState::Open,
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::Close),
        1 => Just(Step::Open),
        1 => Just(Step::SetImage),
        1 => Just(Step::ClearImage),
        3 => Just(Step::Enter),
        3 => Just(Step::Leave),
    ]
}

proptest! {
    #[test]
    fn gate_does_what_two_flags_and_a_counter_do(steps in prop::collection::vec(step(), 1..80)) {
        let (gate, mut naive) = (Gate::new(AtomicU64::new(0)), Naive::default());
        for step in steps {
            match step {
                Step::Close => {
                    gate.close();
                    naive.closed = true;
                }
                Step::Open => {
                    gate.open();
                    naive.closed = false;
                }
                Step::SetImage => {
                    gate.set_image();
                    naive.image = true;
                }
                Step::ClearImage => {
                    gate.clear_image();
                    naive.image = false;
                }
                Step::Enter => {
                    let state = gate.enter();
                    prop_assert_eq!(state, naive.state());
                    naive.inside += u64::from(state != GateState::Closed);
                }
                Step::Leave if naive.inside > 0 => {
                    gate.leave();
                    naive.inside -= 1;
                }
                Step::Leave => {}
            }
            prop_assert_eq!(gate.check(), naive.state());
            prop_assert_eq!(gate.is_quiet(), naive.closed && naive.inside == 0);
        }
    }
}
