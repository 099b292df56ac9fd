// SPDX-License-Identifier: GPL-2.0-or-later
//! Users and groups in arguments, by number or by name.

use std::fmt::{self, Display, Formatter};

use nix::errno::Errno;
use nix::unistd::{Group, User};

/// Who a file is to belong to: a user, a group, or both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// The user. `None` leaves the user as it is.
    pub uid: Option<u32>,
    /// The group. `None` leaves the group as it is.
    pub gid: Option<u32>,
}

/// As [`owner`] parses it, in numbers.
impl Display for Owner {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(uid) = self.uid {
            write!(f, "{uid}")?;
        }
        self.gid.map_or(Ok(()), |gid| write!(f, ":{gid}"))
    }
}

/// Parses `USER`, `USER:GROUP` or `:GROUP`. Both are names or numbers; digits are a number, also if there is such a name. The largest 32-bit
/// number is refused: to the kernel it means "do not change".
///
/// # Errors
///
/// The message for any other text, and for a name that this host does not know.
pub fn owner(text: &str) -> Result<Owner, String> {
    match text.split_once(':') {
        Some(("", group)) => Ok(Owner {
            uid: None,
            gid: Some(group_id(group)?),
        }),
        _ => user(text).map(|(uid, gid)| Owner { uid: Some(uid), gid }),
    }
}

/// Parses `USER` or `USER:GROUP`, as [`owner`] does.
///
/// # Errors
///
/// As for [`owner`].
pub fn user(text: &str) -> Result<(u32, Option<u32>), String> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    Ok((user_id(user)?, group.map(group_id).transpose()?))
}

fn user_id(name: &str) -> Result<u32, String> {
    let look_up = |name: &str| User::from_name(name).map(|user| user.map(|user| user.uid.as_raw()));
    id("user", name, look_up)
}

fn group_id(name: &str) -> Result<u32, String> {
    let look_up = |name: &str| Group::from_name(name).map(|group| group.map(|group| group.gid.as_raw()));
    id("group", name, look_up)
}

/// The number of a user or a group, which is `kind`.
fn id(kind: &str, name: &str, look_up: impl Fn(&str) -> nix::Result<Option<u32>>) -> Result<u32, String> {
    if name.is_empty() {
        return Err(format!("it names no {kind}"));
    }
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        let number = name.parse().ok().filter(|id| *id != u32::MAX);
        return number.ok_or_else(|| format!("{name} is too large for the number of a {kind}"));
    }
    match look_up(name) {
        Ok(Some(id)) => Ok(id),
        // What the C library says instead if it has no database (getpwnam(3)).
        Ok(None) | Err(Errno::ENOENT | Errno::ESRCH) => Err(format!("this host knows no {kind} {name:?}")),
        Err(error) => Err(format!("cannot look up the {kind} {name:?}: {}", error.desc())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A user of this host, and its numbers.
    fn known() -> User {
        User::from_uid(0.into()).expect("users").expect("user 0")
    }

    /// The group of that user.
    fn known_group() -> Group {
        Group::from_gid(known().gid).expect("groups").expect("its group")
    }

    #[test]
    fn numbers_need_not_be_known() {
        for (text, uid, gid) in [
            ("1", Some(1), None),
            ("1:2", Some(1), Some(2)),
            (":4000000000", None, Some(4_000_000_000)),
        ] {
            let parsed = owner(text);
            assert_eq!(parsed, Ok(Owner { uid, gid }));
            assert_eq!(parsed.map(|owner| owner.to_string()).as_deref(), Ok(text));
        }
        assert_eq!(user("1:2"), Ok((1, Some(2))));
    }

    #[test]
    fn names_are_those_of_this_host() {
        let (name, group) = (known().name, known_group().name);
        let gid = Some(known().gid.as_raw());
        assert_eq!(owner(&name), Ok(Owner { uid: Some(0), gid: None }), "as a number alone");
        assert_eq!(owner(&format!("{name}:{group}")), Ok(Owner { uid: Some(0), gid }));
        assert_eq!(owner(&format!(":{group}")), Ok(Owner { uid: None, gid }));
        assert_eq!(user(&format!("7:{group}")), Ok((7, gid)));
    }

    #[test]
    fn error_says_which_name_is_unknown() {
        for (text, said) in [
            ("no-such-user", "no user \"no-such-user\""),
            ("no-such-user:1", "no user \"no-such-user\""),
            ("1:no-such-group", "no group \"no-such-group\""),
            (":no-such-group", "no group \"no-such-group\""),
            ("-1", "no user \"-1\""),
            ("1:2:3", "no group \"2:3\""),
            ("4294967295", "4294967295 is too large for the number of a user"),
            (":99999999999", "99999999999 is too large for the number of a group"),
            ("", "no user"),
            ("1:", "no group"),
            (":", "no group"),
        ] {
            let error = owner(text).expect_err(text);
            assert!(error.contains(said), "{text:?}: {error}");
        }
        let error = user(":1").expect_err("no user");
        assert!(error.contains("no user"), "{error}");
    }

    #[test]
    fn digits_are_never_looked_up() {
        let look_up = |_: &str| -> nix::Result<Option<u32>> { panic!("looked up") };
        assert_eq!(id("user", "107", look_up), Ok(107));
        assert!(id("user", "4294967295", look_up).is_err());
        let error = id("user", "a", |_| Err(Errno::EIO)).expect_err("a failure");
        assert!(error.starts_with("cannot look up the user \"a\": "), "{error}");
    }
}
