// SPDX-License-Identifier: GPL-2.0-or-later
//! All tests, by what they are about.

mod access;
mod adopt;
mod advice;
mod backing;
mod boot;
mod call;
mod checkpoint;
mod conversion;
mod create;
mod daemon_death;
mod death;
mod dirty_rate;
mod dump;
mod exit;
mod files;
pub(crate) mod freeze;
mod gup;
mod huge;
mod info;
mod injection;
mod inside;
mod mapping;
mod mark;
mod metrics;
mod module;
mod name;
pub(crate) mod numa;
mod populate;
mod qemu;
mod ready;
mod receive;
mod reclaim;
mod request;
mod rounds;
mod sample;
mod snapshot;
mod stage;
mod stress;
pub(crate) mod track;
mod vmemd;

/// The tests, in the order in which they run.
pub(crate) fn all() -> impl Iterator<Item = crate::Test> {
    [
        create::TESTS,
        name::TESTS,
        access::TESTS,
        files::TESTS,
        files::contents::TESTS,
        files::holes::TESTS,
        files::ways::TESTS,
        files::programs::TESTS,
        files::passthrough::TESTS,
        files::polling::TESTS,
        files::impostor::TESTS,
        call::TESTS,
        request::TESTS,
        mark::TESTS,
        stage::TESTS,
        backing::TESTS,
        backing::refusal::TESTS,
        backing::slow::TESTS,
        backing::truncated::TESTS,
        ready::TESTS,
        daemon_death::TESTS,
        mapping::TESTS,
        populate::TESTS,
        advice::TESTS,
        gup::TESTS,
        dump::TESTS,
        exit::TESTS,
        freeze::TESTS,
        info::TESTS,
        conversion::TESTS,
        reclaim::TESTS,
        huge::TESTS,
        numa::TESTS,
        adopt::TESTS,
        track::TESTS,
        track::dirty::TESTS,
        track::writer::TESTS,
        track::file::TESTS,
        track::mapping::TESTS,
        track::memory::TESTS,
        track::region::TESTS,
        track::all::TESTS,
        track::consistency::TESTS,
        snapshot::TESTS,
        snapshot::reading::TESTS,
        snapshot::increment::TESTS,
        snapshot::writing::TESTS,
        snapshot::region::TESTS,
        snapshot::limit::TESTS,
        snapshot::consistency::TESTS,
        snapshot::guest::TESTS,
        module::TESTS,
        inside::TESTS,
        sample::TESTS,
        sample::snapshot::TESTS,
        sample::region::TESTS,
        sample::region_command::TESTS,
        sample::python::TESTS,
        qemu::TESTS,
        dirty_rate::TESTS,
        checkpoint::TESTS,
        checkpoint::incomplete::TESTS,
        vmemd::fill::TESTS,
        vmemd::backing::TESTS,
        vmemd::files::TESTS,
        vmemd::recognition::TESTS,
        vmemd::holes::TESTS,
        vmemd::seed::TESTS,
        vmemd::loss::TESTS,
        vmemd::nbd::TESTS,
        vmemd::unreadable::TESTS,
        vmemd::node::TESTS,
        vmemd::process::TESTS,
        metrics::TESTS,
        rounds::contents::TESTS,
        rounds::switch::TESTS,
        rounds::settle::TESTS,
        rounds::loss::TESTS,
        rounds::refusal::TESTS,
        rounds::random::TESTS,
        rounds::streams::TESTS,
        receive::TESTS,
        stress::TESTS,
        death::TESTS,
        death::tracker::TESTS,
        injection::TESTS,
        injection::files::TESTS,
        injection::huge::TESTS,
        injection::touch::TESTS,
        injection::track::TESTS,
        injection::region::TESTS,
        injection::snapshot::TESTS,
    ]
    .into_iter()
    .flatten()
    .copied()
}
