// SPDX-License-Identifier: GPL-2.0-or-later
//! What may be tried again, and what never is.

use anyhow::Error;

/// A guest whose memory is wrong, old or lost, or that runs twice: no fault of an emulator explains it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Harm(pub(crate) String);

/// As `anyhow::ensure`, with [`Harm`] as the error.
macro_rules! ensure_unharmed {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(crate::harm::Harm(format!($($text)+)).into());
        }
    };
}
pub(crate) use ensure_unharmed;

/// Whether the guest was harmed, and not just lost.
pub(crate) fn is_harm(error: &Error) -> bool {
    error.chain().any(|cause| cause.is::<Harm>())
}

/// Whether this machine's processors are emulated, as `tools/testing/vm/run` says. QEMU's emulation of SVM loses guests now and then, so there, and only
/// there, a guest that is lost is moved once more.
pub(crate) fn is_emulated() -> bool {
    std::env::var("VMEM_ACCEL").is_ok_and(|accelerator| accelerator == "tcg")
}

/// Whether something that has failed so often, the last time with this error, is tried once more.
pub(crate) fn is_tried_again(failures: u32, error: &Error) -> bool {
    is_emulated() && failures < 3 && !is_harm(error)
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, Result};

    use super::*;

    fn checked(pages: u32) -> Result<()> {
        ensure_unharmed!(pages == 0, "{pages} pages are wrong");
        Ok(())
    }

    #[test]
    fn harm_is_recognised_below_what_was_said_of_it() {
        let error = checked(3).context("after the move").err();
        assert!(
            error.is_some_and(|error| is_harm(&error) && error.chain().any(|cause| cause.to_string() == "3 pages are wrong"))
        );
        assert!(!is_harm(&anyhow::anyhow!("the guest does not answer")));
    }
}
