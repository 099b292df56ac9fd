// SPDX-License-Identifier: GPL-2.0
//! Memory that can start empty.
#![forbid(unsafe_code)]
