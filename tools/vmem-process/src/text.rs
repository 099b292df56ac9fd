// SPDX-License-Identifier: GPL-2.0-or-later
//! Text of other programs and of other hosts, made safe to show, and safe as a name.

/// Escapes control characters, and leaves quotes and backslashes: QEMU's messages are full of quotes, and the text of the other host is
/// escaped already.
pub fn printable(text: &str) -> String {
    text.chars().fold(String::new(), |mut shown, c| {
        match c {
            '\'' | '"' | '\\' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
        shown
    })
}

/// The first `most` characters of `text`, with `_` for each that is not a letter, a digit, `_` or `-`. So a name cannot lead into another
/// directory.
pub fn clean(text: &str, most: usize) -> String {
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
    fn text_that_is_escaped_twice_stays_the_same() {
        let said = "qemu: 'no-such-device' is\tnot \"valid\"\u{1b}[2J\n";
        let shown = printable(said);
        assert_eq!(shown, "qemu: 'no-such-device' is\\tnot \"valid\"\\u{1b}[2J\\n");
        assert_eq!(printable(&shown), shown);
    }

    #[test]
    fn invalid_characters_are_replaced() {
        assert_eq!(clean("guest-0_a", usize::MAX), "guest-0_a");
        assert_eq!(clean("../a guest\u{e9}\n", usize::MAX), "___a_guest__");
        assert_eq!(clean("\u{e9}\u{e9}ab", 3), "__a");
    }
}
