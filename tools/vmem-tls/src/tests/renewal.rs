// SPDX-License-Identifier: GPL-2.0-or-later
//! Files that are renewed while their identity is in use.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use rustix::process::{Uid, geteuid};
use rustix::thread::set_thread_res_uid;

use super::*;
use crate::renewal::{LOOK_INTERVAL, Notice};

/// Replaces files of `directory` by those of `by`, as tools do: each by a rename.
fn replace(directory: &TempDir, by: &TempDir, names: &[&str]) {
    for name in names {
        let new = directory.path().join("new");
        fs::copy(by.path().join(name), &new).expect("a copy");
        fs::rename(new, directory.path().join(name)).expect("a file");
    }
}

const OWN: &[&str] = &["cert.pem", "key.pem"];

/// Whether a client with a certificate of `ca` gets a connection to `host` from the server, in both directions.
fn reaches(ca: &Authority, server: &Identity, host: &str) -> bool {
    let client = identity(&files("a.test", ca, ca));
    let (connected, accepted) = handshake(&client, server, host);
    connected.is_ok() && accepted.is_ok()
}

/// Sends a byte from one end to the other.
fn carries(from: &mut Socket, to: &mut Socket) -> bool {
    let mut byte = [0];
    from.write_all(b"x").is_ok() && to.read_exact(&mut byte).is_ok() && byte == *b"x"
}

#[test]
fn next_connection_uses_renewed_files_and_the_first_one_goes_on() {
    let ca = authority();
    let (ours, theirs) = (files("a.test", &ca, &ca), files("b.test", &ca, &ca));
    let (client, server) = (
        identity(&ours),
        Identity::load_allowing(theirs.path(), &["a.test".to_owned(), "d.test".to_owned()]),
    );
    let server = server.expect("an identity");
    let (connected, accepted) = handshake(&client, &server, "b.test");
    let (mut connected, mut accepted) = (connected.expect("a connection").0, accepted.expect("a connection").0);
    // Both sides get another certificate and another key.
    replace(&theirs, &files("c.test", &ca, &ca), OWN);
    replace(&ours, &files("d.test", &ca, &ca), OWN);
    thread::sleep(LOOK_INTERVAL + Duration::from_millis(50));
    let (next, of_next) = handshake(&client, &server, "c.test");
    assert!(next.is_ok() && of_next.is_ok(), "{next:?}, {of_next:?}");
    assert!(!reaches(&ca, &server, "b.test"), "the old certificate is not in use");
    let only_new = Identity::load_allowing(files("e.test", &ca, &ca).path(), &["d.test".to_owned()]).expect("an identity");
    let (_, accepted_new) = handshake(&client, &only_new, "e.test");
    assert!(accepted_new.is_ok(), "the client shows its new certificate: {accepted_new:?}");
    assert!(carries(&mut connected, &mut accepted) && carries(&mut accepted, &mut connected));
}

#[test]
fn renewed_authority_decides_about_the_next_connection() {
    let (old, new) = (authority(), authority());
    let theirs = files("b.test", &old, &old);
    let server = identity(&theirs);
    assert!(reaches(&old, &server, "b.test"));
    replace(&theirs, &files("b.test", &new, &new), &["ca.pem", "cert.pem", "key.pem"]);
    assert!(matches!(server.renewal().look_now(), Some(Notice::Renewed(_))));
    assert!(reaches(&new, &server, "b.test"));
    // A clone has the same files.
    let stranger = identity(&files("a.test", &old, &new));
    let (_, accepted) = handshake(&stranger, &server.clone(), "b.test");
    assert!(matches!(accepted, Err(Error::Handshake(_))), "{accepted:?}");
}

#[test]
fn files_that_cannot_be_used_keep_the_old_ones_and_are_reported_once() {
    let ca = authority();
    let (theirs, other) = (files("b.test", &ca, &ca), files("c.test", &ca, &ca));
    let server = identity(&theirs);
    assert!(server.renewal().look_now().is_none(), "nothing has changed");
    let keeps = |what: &str| {
        let notice = server.renewal().look_now();
        assert!(
            matches!(&notice, Some(Notice::Kept(why)) if why.contains(what)),
            "{what}: {notice:?}"
        );
        let again = server.renewal().look_now();
        assert!(again.is_none(), "{what} is reported again: {again:?}");
        assert!(reaches(&ca, &server, "b.test"), "{what}");
    };
    let whole = fs::read_to_string(other.path().join("cert.pem")).expect("a file");
    fs::write(theirs.path().join("cert.pem"), &whole[..whole.len() / 2]).expect("a file");
    keeps("cert.pem");
    replace(&theirs, &other, &["cert.pem"]);
    keeps("do not belong together");
    fs::remove_file(theirs.path().join("key.pem")).expect("a file");
    keeps("key.pem");
    // The failures of before have not been forgotten.
    fs::write(
        theirs.path().join("key.pem"),
        fs::read(files("x.test", &ca, &ca).path().join("key.pem")).expect("a file"),
    )
    .expect("a file");
    assert!(server.renewal().look_now().is_none());
    replace(&theirs, &other, &["key.pem"]);
    assert!(matches!(server.renewal().look_now(), Some(Notice::Renewed(_))));
    assert!(reaches(&ca, &server, "c.test"));
    // After files that could be used, the same failure is a new one.
    fs::remove_file(theirs.path().join("key.pem")).expect("a file");
    assert!(matches!(server.renewal().look_now(), Some(Notice::Kept(_))));
}

/// Runs in a thread that can read no file of root, and none of mode 0.
fn as_nobody<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::spawn(|| {
        if geteuid().is_root() {
            let nobody = Uid::from_raw(65534);
            set_thread_res_uid(nobody, nobody, nobody).expect("another user");
        }
        run()
    });
    thread.join().expect("no panic")
}

#[test]
fn process_that_may_not_read_the_key_uses_a_new_certificate_of_the_same_key() {
    let ca = authority();
    let theirs = files("b.test", &ca, &ca);
    let server = identity(&theirs);
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).expect("a mode");
    let key = theirs.path().join("key.pem");
    mode(theirs.path(), 0o755);
    mode(&key, 0);
    let look = || {
        let server = server.clone();
        as_nobody(move || server.renewal().look_now())
    };
    let certified = |name: &str, key: &KeyPair| {
        let params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        fs::write(
            theirs.path().join("cert.pem"),
            params.signed_by(key, &ca).expect("a certificate").pem(),
        )
        .expect("a file");
    };
    mode(&key, 0o600);
    let pair = KeyPair::from_pem(&fs::read_to_string(&key).expect("a key")).expect("a key");
    mode(&key, 0);
    certified("c.test", &pair);
    let notice = look();
    assert!(matches!(notice, Some(Notice::Renewed(_))), "{notice:?}");
    assert!(reaches(&ca, &server, "c.test"));
    // A certificate for another key cannot be used: that key cannot be read.
    certified("d.test", &KeyPair::generate().expect("a key"));
    let notice = look();
    assert!(
        matches!(&notice, Some(Notice::Kept(why)) if why.contains("may not read it")),
        "{notice:?}"
    );
    assert!(look().is_none(), "it is reported once");
    // Whether anything has changed in a directory of others cannot be seen.
    if geteuid().is_root() {
        mode(theirs.path(), 0o700);
        let notice = look();
        assert!(matches!(&notice, Some(Notice::Blind(_))), "{notice:?}");
        assert!(look().is_none(), "it is reported once");
    }
    assert!(reaches(&ca, &server, "c.test"));
}
