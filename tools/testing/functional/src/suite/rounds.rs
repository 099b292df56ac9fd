// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory that is sent in rounds while its program writes to it: `vmemd serve --rounds` and `vmemd --stage`, on tracked memory and real
//! regions.

pub(crate) mod contents;
pub(crate) mod loss;
mod memory;
mod moves;
pub(crate) mod random;
pub(crate) mod refusal;
pub(crate) mod settle;
pub(crate) mod streams;
pub(crate) mod switch;
mod writer;
