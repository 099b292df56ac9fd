// SPDX-License-Identifier: GPL-2.0
//! What other programs and the other side say, as it can be shown to people.

/// Escapes control characters, and no quotes or backslashes: what QEMU says is full of quotes, and what the other side says is escaped already.
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
    fn words_that_are_shown_twice_stay_as_they_are() {
        let said = "qemu: 'no-such-device' is\tnot \"valid\"\u{1b}[2J\n";
        let shown = printable(said);
        assert_eq!(shown, "qemu: 'no-such-device' is\\tnot \"valid\"\\u{1b}[2J\\n");
        assert_eq!(printable(&shown), shown);
    }
}
