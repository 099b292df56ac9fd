// SPDX-License-Identifier: GPL-2.0-or-later
//! Objects in S3, or whatever else `object_store` speaks to.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::path::Path;
use object_store::{ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig};
use tokio::runtime::Runtime;

use super::{Fetched, ObjectError, ObjectMeta, Objects, Part, Put, Waiting};

/// Objects under a prefix of an object store.
///
/// The store's callers are threads; `object_store` is asynchronous. So this has a small runtime of its own, and each call waits for one
/// task of it. It must not be used by a task of another runtime.
pub struct Remote {
    runtime: Runtime,
    store: Arc<dyn ObjectStore>,
    /// The bucket, for messages.
    bucket: String,
    prefix: Path,
    waiting: Option<Arc<dyn Waiting>>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {:?}", self.prefix, self.store)
    }
}

/// How often a request looks whether the wait is over, and how long it may take nevertheless: what is cleaned up then takes requests, too.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
const LAST_REQUEST_LIMIT: Duration = Duration::from_secs(1);

/// How long a connection may take to be made, and a request with its answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const REQUEST_LIMIT: Duration = Duration::from_secs(120);

/// One provider of cryptography in the process: that of its other TLS connections. Another one that is installed is as good.
fn install_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl Remote {
    /// The objects of any store that `object_store` has.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: &str) -> Result<Self, ObjectError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("vmem-objects")
            .enable_all()
            .build()?;
        Ok(Self {
            runtime,
            store,
            bucket: String::new(),
            waiting: None,
            prefix: Path::parse(prefix.trim_matches('/')).map_err(|error| ObjectError::Other(Arc::new(error)))?,
        })
    }

    /// The objects at `s3://BUCKET/PREFIX`. Credentials, region and endpoint are those of the environment (`AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP`, and the others that `object_store` knows).
    pub fn s3(url: &str) -> Result<Self, ObjectError> {
        let rest = url
            .strip_prefix("s3://")
            .filter(|rest| !rest.starts_with('/') && !rest.is_empty());
        let rest = rest.ok_or_else(|| ObjectError::other(format!("{url:?} is no place: s3://BUCKET/PREFIX is one")))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        install_provider();
        // Attempts are made once, by `Retrying`, which knows what a lost answer to a create means.
        let retry = RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        };
        let client = ClientOptions::from_env_or_default()
            .with_timeout(REQUEST_LIMIT)
            .with_connect_timeout(CONNECT_LIMIT);
        let builder = AmazonS3Builder::from_env().with_client_options(client);
        let store = builder
            .with_bucket_name(bucket)
            .with_retry(retry)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .build();
        let mut remote = Self::new(Arc::new(store.map_err(|error| from(error, bucket))?), prefix)?;
        remote.bucket = bucket.to_owned();
        Ok(remote)
    }

    /// Requests that are under way end when the wait is over.
    #[must_use]
    pub fn with_waiting(mut self, waiting: Arc<dyn Waiting>) -> Self {
        self.waiting = Some(waiting);
        self
    }

    fn path(&self, name: &str) -> Result<Path, ObjectError> {
        let name = Path::parse(name).map_err(|error| ObjectError::Other(Arc::new(error)))?;
        Ok(self.prefix.parts().chain(name.parts()).collect())
    }

    fn wait<T>(&self, task: impl Future<Output = object_store::Result<T>>) -> Result<T, ObjectError> {
        let result = match &self.waiting {
            None => self.runtime.block_on(task),
            Some(waiting) => self.runtime.block_on(async {
                let (began, mut task) = (Instant::now(), pin!(task));
                loop {
                    match tokio::time::timeout(POLL_INTERVAL, &mut task).await {
                        Ok(result) => return result,
                        Err(_) if waiting.is_over() && began.elapsed() >= LAST_REQUEST_LIMIT => {
                            return Err(object_store::Error::Generic {
                                store: "S3",
                                source: "the request was given up".into(),
                            });
                        }
                        Err(_) => {}
                    }
                }
            }),
        };
        result.map_err(|error| from(error, &self.bucket))
    }
}

trait FromEnv {
    fn from_env_or_default() -> Self;
}

impl FromEnv for ClientOptions {
    /// Plain HTTP only where the environment allows it, as `object_store` has it for its own options.
    fn from_env_or_default() -> Self {
        let is_allowed = std::env::var("AWS_ALLOW_HTTP").is_ok_and(|value| matches!(value.as_str(), "1" | "true"));
        Self::new().with_allow_http(is_allowed)
    }
}

/// What went wrong: what the server has said, in its own words; or the whole error, with its last cause.
fn reason(error: &object_store::Error) -> String {
    /// Bytes of a part of an answer that are shown.
    const SHOWN: usize = 200;
    let text = error.to_string();
    let part = |name: &str| {
        let (_, after) = text.split_once(&format!("<{name}>"))?;
        let (part, _) = after.split_once(&format!("</{name}>"))?;
        let part = part.trim_start_matches("<![CDATA[").trim_end_matches("]]>");
        Some(part.chars().filter(|c| !c.is_control()).take(SHOWN).collect::<String>())
    };
    if let Some(code) = part("Code") {
        let message = part("Message").map_or(String::new(), |message| format!(" ({message})"));
        return format!("the server says {code}{message}");
    }
    let mut last: &dyn StdError = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    let last = last.to_string();
    match text.contains(&last) {
        true => text,
        false => format!("{text}: {last}"),
    }
}

fn from(error: object_store::Error, bucket: &str) -> ObjectError {
    use object_store::Error as E;
    // An object that is not there has another code.
    if error.to_string().contains("<Code>NoSuchBucket</Code>") {
        return ObjectError::NoBucket(bucket.to_owned());
    }
    let cause = || -> Arc<dyn StdError + Send + Sync> { Arc::from(Box::<dyn StdError + Send + Sync>::from(reason(&error))) };
    match error {
        E::NotFound { .. } => ObjectError::NotFound,
        // 412 is what S3 says to If-None-Match; some servers say 409 while another such request is under way.
        E::AlreadyExists { .. } | E::Precondition { .. } => ObjectError::AlreadyExists,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => ObjectError::Denied(cause()),
        // Requests that were not answered, and answers of overloaded servers, are all of one kind.
        E::Generic { .. } => ObjectError::Transient(cause()),
        _ => ObjectError::Other(cause()),
    }
}

impl Objects for Remote {
    fn put(&self, name: &str, bytes: &[u8], put: Put) -> Result<(), ObjectError> {
        let path = self.path(name)?;
        let options = PutOptions {
            mode: match put {
                Put::New => PutMode::Create,
                Put::Replace => PutMode::Overwrite,
            },
            ..PutOptions::default()
        };
        self.wait(self.store.put_opts(&path, bytes.to_vec().into(), options))
            .map(drop)
    }

    fn get(&self, name: &str, part: Part) -> Result<Fetched, ObjectError> {
        let path = self.path(name)?;
        let range = match &part {
            Part::All(_) => None,
            Part::Bytes(bytes) | Part::Within(bytes) if bytes.is_empty() => {
                return Ok(Fetched {
                    bytes: Vec::new(),
                    size: 0,
                });
            }
            Part::Bytes(bytes) | Part::Within(bytes) => Some(GetRange::Bounded(bytes.clone())),
            Part::Last(count) => Some(GetRange::Suffix(*count)),
        };
        let options = GetOptions {
            range,
            ..GetOptions::default()
        };
        let task = async {
            let answer = self.store.get_opts(&path, options).await?;
            let size = answer.meta.size;
            // Before the body is taken, its length is known to be what was asked for.
            let expected = match part.of(size) {
                Ok(expected) => expected,
                Err(error) => return Ok(Err(error)),
            };
            if answer.range != expected {
                return Ok(Err(ObjectError::Short {
                    wanted: expected.end - expected.start,
                    got: answer.range.end.saturating_sub(answer.range.start),
                }));
            }
            let bytes = answer.bytes().await?;
            if bytes.len() as u64 != expected.end - expected.start {
                return Ok(Err(ObjectError::Short {
                    wanted: expected.end - expected.start,
                    got: bytes.len() as u64,
                }));
            }
            Ok(Ok(Fetched {
                bytes: bytes.into(),
                size,
            }))
        };
        match self.wait(task) {
            // Some servers refuse a range that begins after the end, and the answer says no more than that: is it so?
            Err(error @ ObjectError::Transient(_)) => match &part {
                Part::Bytes(bytes) | Part::Within(bytes) => {
                    let size = self.wait(self.store.head(&path)).map_err(|_| error.clone())?.size;
                    if bytes.start < size {
                        return Err(error);
                    }
                    part.of(size).map(|_| Fetched { bytes: Vec::new(), size })
                }
                Part::All(_) | Part::Last(_) => Err(error),
            },
            answer => answer?,
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        // Listings are of whole parts of names.
        let directory = match prefix.rsplit_once('/') {
            Some((directory, _)) => self.path(directory)?,
            None => self.prefix.clone(),
        };
        let listed = self.wait(self.store.list(Some(&directory)).try_collect::<Vec<_>>())?;
        let own = self.prefix.as_ref();
        let mut found: Vec<ObjectMeta> = listed
            .into_iter()
            .filter_map(|meta| {
                let name = meta.location.as_ref().strip_prefix(own)?.trim_start_matches('/').to_owned();
                name.starts_with(prefix).then_some(ObjectMeta {
                    name,
                    size: meta.size,
                    modified: SystemTime::from(meta.last_modified),
                })
            })
            .collect();
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    fn delete(&self, name: &str) -> Result<(), ObjectError> {
        let path = self.path(name)?;
        match self.wait(self.store.delete(&path)) {
            Err(ObjectError::NotFound) => Ok(()),
            deleted => deleted,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use object_store::memory::InMemory;

    use super::*;
    use crate::objects::creates_exclusively;

    fn is_as_promised(objects: &dyn Objects) {
        assert!(creates_exclusively(objects).unwrap());
        objects.put("a/b/one", b"0123456789", Put::New).unwrap();
        assert!(matches!(
            objects.put("a/b/one", b"x", Put::New),
            Err(ObjectError::AlreadyExists)
        ));
        let get = |part| objects.get("a/b/one", part);
        assert_eq!(get(Part::All(10)).unwrap().bytes, b"0123456789");
        assert!(matches!(get(Part::All(9)), Err(ObjectError::TooLarge { size: 10, limit: 9 })));
        let fetched = |bytes: &[u8]| Fetched {
            bytes: bytes.to_vec(),
            size: 10,
        };
        assert_eq!(get(Part::Bytes(2..5)).unwrap(), fetched(b"234"));
        assert_eq!(get(Part::Last(3)).unwrap(), fetched(b"789"));
        assert_eq!(get(Part::Last(30)).unwrap(), fetched(b"0123456789"));
        assert_eq!(get(Part::Within(8..30)).unwrap(), fetched(b"89"));
        assert_eq!(get(Part::Within(20..30)).unwrap(), fetched(b""));
        assert!(matches!(
            get(Part::Bytes(8..12)),
            Err(ObjectError::Beyond { size: 10, end: 12 })
        ));
        assert!(matches!(objects.get("a/b/two", Part::All(1)), Err(ObjectError::NotFound)));
        objects.put("a/b/one", b"new", Put::Replace).unwrap();
        objects.put("a/c", b"3", Put::New).unwrap();
        let names = |prefix: &str| {
            objects
                .list(prefix)
                .unwrap()
                .into_iter()
                .map(|meta| (meta.name, meta.size))
                .collect::<Vec<_>>()
        };
        assert_eq!(names(""), [("a/b/one".to_owned(), 3), ("a/c".to_owned(), 1)]);
        assert_eq!(names("a/b/o"), [("a/b/one".to_owned(), 3)]);
        assert_eq!(names("a/b/x"), []);
        objects.delete("a/b/one").unwrap();
        objects.delete("a/b/one").unwrap();
        objects.delete("a/c").unwrap();
        assert_eq!(names(""), []);
    }

    #[test]
    fn object_store_keeps_the_promises() {
        is_as_promised(&Remote::new(Arc::new(InMemory::new()), "/some/prefix/").unwrap());
        is_as_promised(&Remote::new(Arc::new(InMemory::new()), "").unwrap());
    }

    #[test]
    fn place_without_bucket_is_refused() {
        for url in ["s3://", "s3:///x", "http://x/y", "bucket"] {
            assert!(Remote::s3(url).is_err(), "{url}");
        }
    }

    /// A place at this endpoint.
    fn at(endpoint: &str) -> Remote {
        install_provider();
        let retry = RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        };
        let store = AmazonS3Builder::new()
            .with_bucket_name("bucket")
            .with_endpoint(endpoint)
            .with_allow_http(true)
            .with_access_key_id("k")
            .with_secret_access_key("s")
            .with_region("us-east-1")
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_retry(retry)
            .build();
        let mut remote = Remote::new(Arc::new(store.unwrap()), "p").unwrap();
        remote.bucket = "bucket".to_owned();
        remote
    }

    /// A server that gives each request this answer, or none; its address.
    fn server(answer: Option<String>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(answer) = &answer else {
                    silent.push(stream);
                    continue;
                };
                let (mut request, mut byte) = (Vec::new(), [0]);
                while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) > 0 {
                    request.push(byte[0]);
                }
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        format!("http://{address}")
    }

    fn answer(status: &str, code: &str) -> Option<String> {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message><![CDATA[Sorry.]]></Message><Key>p/config</Key></Error>"
        );
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        Some(head + &body)
    }

    #[test]
    fn server_that_is_not_there_is_away_and_the_error_says_why() {
        let error = at("http://127.0.0.1:9").get("x", Part::All(1)).unwrap_err();
        assert!(error.is_transient(), "{error}");
        let text = error.to_string();
        assert_eq!(text.matches("refused").count(), 1, "{text}");
    }

    #[test]
    fn answers_of_servers_are_told_from_each_other() {
        use crate::{Error, OpenOptions, Store};

        for (status, code, expected) in [
            (
                "404 Not Found",
                "NoSuchBucket",
                "cannot read config: there is no bucket \"bucket\"",
            ),
            (
                "403 Forbidden",
                "SignatureDoesNotMatch",
                "cannot read config: access denied: the server says SignatureDoesNotMatch (Sorry.)",
            ),
            (
                "401 Unauthorized",
                "InvalidToken",
                "cannot read config: access denied: the server says InvalidToken (Sorry.)",
            ),
            (
                "503 Slow Down",
                "SlowDown",
                "cannot read config: the server says SlowDown (Sorry.)",
            ),
        ] {
            let remote = at(&server(answer(status, code)));
            let objects: [Result<(), ObjectError>; 3] =
                [remote.put("x", b"1", Put::New), remote.list("").map(drop), remote.delete("x")];
            for done in objects {
                let error = done.expect_err(code);
                assert!(expected.ends_with(&error.to_string()), "{code}: {error}");
            }
            let mut options = OpenOptions::default();
            options.retry.attempts = 1;
            let error = Store::open(Arc::new(remote), options).unwrap_err();
            assert_eq!(error.to_string(), expected);
            // One who prints the causes, too, prints each once.
            assert!(error.source().is_none());
        }
        let remote = at(&server(answer("404 Not Found", "NoSuchKey")));
        assert!(matches!(remote.get("x", Part::All(1)), Err(ObjectError::NotFound)));
        remote.delete("x").unwrap();
        assert!(matches!(
            Store::open(Arc::new(remote), OpenOptions::default()),
            Err(Error::NoStore)
        ));
    }

    #[test]
    fn request_that_is_not_answered_ends_when_the_wait_is_over() {
        struct Over;

        impl Waiting for Over {
            fn notice(&self, _: super::super::Outage<'_>) {}

            fn is_over(&self) -> bool {
                true
            }
        }

        let remote = at(&server(None)).with_waiting(Arc::new(Over));
        let began = Instant::now();
        assert!(remote.get("x", Part::All(1)).unwrap_err().is_transient());
        assert!(began.elapsed() >= LAST_REQUEST_LIMIT && began.elapsed() < REQUEST_LIMIT / 2);
    }

    /// `VMEM_TEST_S3=s3://BUCKET/PREFIX`, with the variables that [`Remote::s3`] reads: a server that others wrote.
    #[test]
    #[ignore = "needs an S3 server"]
    fn s3_server_keeps_the_promises_and_holds_a_store() {
        let place = std::env::var("VMEM_TEST_S3").expect("VMEM_TEST_S3");
        is_as_promised(&Remote::s3(&format!("{place}/promises")).unwrap());
        crate::tests::is_a_store(Arc::new(Remote::s3(&format!("{place}/store")).unwrap()));
    }
}
