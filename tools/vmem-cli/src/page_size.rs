// SPDX-License-Identifier: GPL-2.0-or-later
//! The size of this machine's pages.

use vmem_pages::PAGE_SIZE;

use crate::Error;

/// Checks that this machine has pages of the size that vmem is written for.
///
/// # Errors
///
/// The kernel has larger ones (`CONFIG_ARM64_16K_PAGES`, `CONFIG_ARM64_64K_PAGES`): offsets and lengths that are multiples of vmem's pages are none of the
/// machine's, so `mmap` and the module would refuse them one by one, later and without a reason.
pub fn check_page_size() -> Result<(), Error> {
    supported(rustix::param::page_size())
}

fn supported(bytes: usize) -> Result<(), Error> {
    if bytes == PAGE_SIZE {
        return Ok(());
    }
    Err(Error::Other(format!(
        "this machine's kernel has pages of {bytes} bytes: vmem supports {PAGE_SIZE} only (boot a kernel with pages of 4 KiB)"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_of_the_tests_has_pages_of_4_kib() {
        check_page_size().expect("a supported machine");
    }

    #[test]
    fn other_page_sizes_are_refused_with_a_reason() {
        for bytes in [0, 2048, 16384, 65536] {
            let refused = supported(bytes).expect_err("a refusal").to_string();
            assert!(refused.contains(&format!("pages of {bytes} bytes")), "{refused}");
            assert!(refused.contains("vmem supports 4096 only"), "{refused}");
        }
    }
}
