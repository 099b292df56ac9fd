// SPDX-License-Identifier: GPL-2.0
//! Objects in S3, or whatever else `object_store` speaks to.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::path::Path;
use object_store::{ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig};
use tokio::runtime::Runtime;

use super::{Fetched, ObjectError, ObjectMeta, Objects, Part, Put};

/// Objects under a prefix of an object store.
///
/// The store's callers are threads; `object_store` is asynchronous. So this has a small runtime of its own, and each call waits for one
/// task of it. It must not be used by a task of another runtime.
#[derive(Debug)]
pub struct Remote {
    runtime: Runtime,
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

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
        Self::new(Arc::new(store.map_err(from)?), prefix)
    }

    fn path(&self, name: &str) -> Result<Path, ObjectError> {
        let name = Path::parse(name).map_err(|error| ObjectError::Other(Arc::new(error)))?;
        Ok(self.prefix.parts().chain(name.parts()).collect())
    }

    fn wait<T>(&self, task: impl Future<Output = object_store::Result<T>>) -> Result<T, ObjectError> {
        self.runtime.block_on(task).map_err(from)
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

fn from(error: object_store::Error) -> ObjectError {
    use object_store::Error as E;
    match error {
        E::NotFound { .. } => ObjectError::NotFound,
        // 412 is what S3 says to If-None-Match; some servers say 409 while another such request is under way.
        E::AlreadyExists { .. } | E::Precondition { .. } => ObjectError::AlreadyExists,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => ObjectError::Denied(Arc::new(error)),
        // Requests that were not answered, and answers of overloaded servers, are all of one kind.
        E::Generic { .. } => ObjectError::Transient(Arc::new(error)),
        _ => ObjectError::Other(Arc::new(error)),
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

    #[test]
    fn server_that_is_not_there_is_away() {
        install_provider();
        let store = AmazonS3Builder::new()
            .with_bucket_name("bucket")
            .with_endpoint("http://127.0.0.1:9")
            .with_allow_http(true);
        let retry = RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        };
        let store = store
            .with_access_key_id("k")
            .with_secret_access_key("s")
            .with_region("us-east-1")
            .with_retry(retry)
            .build();
        let remote = Remote::new(Arc::new(store.unwrap()), "p").unwrap();
        let error = remote.get("x", Part::All(1)).unwrap_err();
        assert!(error.is_transient(), "{error}");
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
