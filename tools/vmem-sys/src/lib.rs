// SPDX-License-Identifier: GPL-2.0
//! The kernel interface of vmem.
