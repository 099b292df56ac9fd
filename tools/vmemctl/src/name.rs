// SPDX-License-Identifier: GPL-2.0
//! Names that come from outside and become names of regions and files.

/// The first `most` characters of `text`, with `_` for each that is not a letter, a digit, `_` or `-`: no way into another directory.
pub(crate) fn clean(text: &str, most: usize) -> String {
    let allowed = |c: char| {
        if c.is_ascii_alphanumeric() || "_-".contains(c) {
            c
        } else {
            '_'
        }
    };
    text.chars().map(allowed).take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_name_cannot_have_is_replaced() {
        assert_eq!(clean("guest-0_a", usize::MAX), "guest-0_a");
        assert_eq!(clean("../a guest\u{e9}\n", usize::MAX), "___a_guest__");
        assert_eq!(clean("\u{e9}\u{e9}ab", 3), "__a");
    }
}
