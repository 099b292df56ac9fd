// SPDX-License-Identifier: GPL-2.0
//! All tests, by what they are about.

mod advice;
mod call;
mod conversion;
mod create;
mod daemon_death;
mod dump;
mod gup;
mod mapping;
mod mark;
mod populate;
mod ready;
mod request;

/// The tests, in the order in which they run.
pub(crate) fn all() -> impl Iterator<Item = crate::Test> {
    [
        create::TESTS,
        call::TESTS,
        request::TESTS,
        mark::TESTS,
        ready::TESTS,
        daemon_death::TESTS,
        mapping::TESTS,
        populate::TESTS,
        advice::TESTS,
        gup::TESTS,
        dump::TESTS,
        conversion::TESTS,
    ]
    .into_iter()
    .flatten()
    .copied()
}
