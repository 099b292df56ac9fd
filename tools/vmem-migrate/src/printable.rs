// SPDX-License-Identifier: GPL-2.0
//! Text of other programs and of the other host, made safe to show.

/// Escapes control characters, and leaves quotes and backslashes: QEMU's messages are full of quotes, and the text of the other host is
/// escaped already.
pub(crate) fn printable(text: &str) -> String {
    text.chars().fold(String::new(), |mut shown, c| {
        match c {
            '\'' | '"' | '\\' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
        shown
    })
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
}
