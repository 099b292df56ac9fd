// SPDX-License-Identifier: GPL-2.0
//! Memory mappings that others write.
