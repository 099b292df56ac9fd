// SPDX-License-Identifier: GPL-2.0-or-later
//! Packs on their way to the store.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::base::Base;
use crate::error::Error;
use crate::objects::{ObjectError, Put};

/// An object: its name and its bytes.
type Named = (String, Vec<u8>);

#[derive(Debug, Default)]
struct Results {
    failed: Option<Error>,
    /// All that may be there: also those whose upload failed.
    written: Vec<String>,
}

/// Threads that write packs. At most one pack more than threads waits; then the one who sends waits.
pub(super) struct Uploader {
    sender: Mutex<Option<SyncSender<Named>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    results: Arc<Mutex<Results>>,
}

impl Uploader {
    pub(super) fn new(base: &Arc<Base>, threads: usize) -> Result<Self, Error> {
        let (sender, receiver) = sync_channel(1);
        let receiver = Arc::new(Mutex::new(receiver));
        let results = Arc::new(Mutex::new(Results::default()));
        let uploader = Self {
            sender: Mutex::new(Some(sender)),
            threads: Mutex::new(Vec::new()),
            results: results.clone(),
        };
        for _ in 0..threads.clamp(1, 64) {
            let (base, receiver, results) = (base.clone(), receiver.clone(), results.clone());
            let thread = std::thread::Builder::new()
                .name("vmem-upload".to_owned())
                .spawn(move || upload(&base, &receiver, &results));
            let thread = thread.map_err(|error| Error::Object {
                action: "write",
                name: "packs".to_owned(),
                cause: error.into(),
            })?;
            uploader.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(uploader)
    }

    /// Sends a pack on its way. Fails if one before has failed.
    pub(super) fn send(&self, name: String, bytes: Vec<u8>) -> Result<(), Error> {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_sent = sender.is_some_and(|sender| sender.send((name, bytes)).is_ok());
        match &self.results.lock().unwrap_or_else(PoisonError::into_inner).failed {
            Some(error) => Err(error.clone()),
            None if is_sent => Ok(()),
            None => Err(Error::Policy("the writer has ended".to_owned())),
        }
    }

    /// Waits for all packs. The first error of any of them.
    pub(super) fn finish(&self) -> Result<(), Error> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        for thread in std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner)) {
            // What it had taken is not in the store.
            if thread.join().is_err() {
                let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
                results.failed.get_or_insert_with(|| Error::Object {
                    action: "write",
                    name: "packs".to_owned(),
                    cause: ObjectError::other("a thread that uploads them has panicked"),
                });
            }
        }
        self.results
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .failed
            .clone()
            .map_or(Ok(()), Err)
    }

    /// What may be in the store.
    pub(super) fn written(&self) -> Vec<String> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner).written.clone()
    }
}

fn upload(base: &Base, receiver: &Mutex<Receiver<Named>>, results: &Mutex<Results>) {
    loop {
        let received = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((name, bytes)) = received else { return };
        let is_failed = {
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            results.written.push(name.clone());
            results.failed.is_some()
        };
        // After an error, packs are taken and dropped, so that nobody waits for ever.
        if is_failed {
            continue;
        }
        if let Err(error) = base.put(&name, &bytes, Put::New) {
            results
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .failed
                .get_or_insert(error);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::objects::{Fetched, Memory, ObjectMeta, Objects, Part};
    use crate::{InitOptions, OpenOptions, Store};

    /// Panics when a pack is written.
    #[derive(Debug)]
    struct Panics(Memory);

    impl Objects for Panics {
        fn put(&self, name: &str, bytes: &[u8], put: Put) -> Result<(), ObjectError> {
            assert!(!name.starts_with("packs/"), "on purpose");
            self.0.put(name, bytes, put)
        }

        fn get(&self, name: &str, part: Part) -> Result<Fetched, ObjectError> {
            self.0.get(name, part)
        }

        fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
            self.0.list(prefix)
        }

        fn delete(&self, name: &str) -> Result<(), ObjectError> {
            self.0.delete(name)
        }
    }

    #[test]
    fn pack_whose_thread_panics_is_an_error() {
        let objects = Arc::new(Panics(Memory::new()));
        let store = Store::init(objects, &InitOptions::default(), OpenOptions::default()).unwrap();
        let uploader = Uploader::new(&store.base, 2).unwrap();
        uploader.send("packs/one".to_owned(), vec![1]).unwrap();
        let failed = uploader.finish();
        assert!(
            failed.as_ref().is_err_and(|error| error.to_string().contains("panicked")),
            "{failed:?}"
        );
        assert!(uploader.finish().is_err());
    }
}
