// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl checkpoint nbd`: the memory of a checkpoint as NBD exports.

use std::fs;
use std::net::TcpListener;
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::process::umask;
use vmem_checkpoint::Error;
use vmem_cli::{Signals, output};
use vmem_migrate::options::Common;
use vmem_migrate::report;
use vmem_nbd::server::{Export, Extent, Images, Limits, Listener, Protect, ReadError, serve};
use vmem_store::{BackendKind, Image, PageError, PageState};
use vmem_store_source::Location;
use vmem_tls::Identity;

use super::args::Nbd;
use super::line::{CheckpointLine, ServedExport};

/// Serves until a signal comes.
pub(super) fn run(args: &Nbd, signals: &Signals, common: &Common) -> Result<(), Error> {
    let protect = protection(common)?;
    let store = args.store.open()?;
    let checkpoint = args.checkpoint.find(&store)?;
    let image = store.hold(
        &checkpoint,
        &format!("vmemctl checkpoint nbd, process {}", std::process::id()),
    )?;
    let stored = Stored::new(image, args.store.store.clone())?;
    let (listener, place) = listen(args, protect.is_some())?;
    if common.json {
        let exports: Vec<_> = stored
            .exports
            .iter()
            .map(|export| ServedExport {
                name: &export.name,
                bytes: export.size,
            })
            .collect();
        report::print(&CheckpointLine::Serving {
            checkpoint: checkpoint.to_string(),
            at: &place,
            exports,
        });
    } else {
        let names: Vec<_> = stored.exports.iter().map(|export| export.name.as_str()).collect();
        output::out(&format!("{checkpoint} is served at {place}: {}", names.join(", ")));
    }
    let images: Arc<dyn Images> = Arc::new(stored);
    let limits = Limits {
        connections: args.connections.into(),
        ..Limits::default()
    };
    let served = serve(&listener, &images, limits, protect.as_ref(), &|| signals.check().is_err());
    if let Some(path) = &args.socket {
        // Somebody may have removed it.
        let _ = fs::remove_file(path);
    }
    Ok(served.map_err(vmem_cli::Error::call("cannot serve"))?)
}

/// What protects the connections, with `--tls`.
fn protection(common: &Common) -> Result<Option<Arc<Protect>>, Error> {
    let Some(directory) = &common.tls else { return Ok(None) };
    let identity = Identity::load_allowing(directory, &common.allow_names);
    let identity = identity.map_err(|error| vmem_cli::Error::other(vmem_cli::chain(&error)))?;
    identity.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok(Some(Arc::new(move |socket, limit| {
        let protected = identity.accept(socket, limit);
        protected.map(|(socket, _)| socket).map_err(|error| vmem_cli::chain(&error))
    })))
}

/// Listens, and says where, as a URI.
fn listen(args: &Nbd, is_protected: bool) -> Result<(Listener, String), Error> {
    let scheme = if is_protected { "nbds" } else { "nbd" };
    let Some(path) = &args.socket else {
        let address = args
            .listen
            .ok_or_else(|| vmem_cli::Error::other("neither --socket nor --listen"))?;
        let listener = TcpListener::bind(address).map_err(vmem_cli::Error::call("cannot listen"))?;
        let address = listener.local_addr().map_err(vmem_cli::Error::call("cannot listen"))?;
        return Ok((Listener::Tcp(listener), format!("{scheme}://{address}")));
    };
    // From its first moment on: an image of memory holds secrets.
    let before = umask(Mode::RWXG | Mode::RWXO);
    let bound = vmem_control::socket::bind(path);
    umask(before);
    let listener = bound.map_err(|error| vmem_cli::Error::other(vmem_cli::chain(&error)))?;
    Ok((
        Listener::Unix(listener),
        format!("{scheme}+unix:///?socket={}", path.display()),
    ))
}

/// The memories of a checkpoint in a store. Its lease ends with this value.
struct Stored {
    image: Image,
    store: Location,
    exports: Vec<Export>,
    /// The number of each export's backend in the checkpoint.
    backends: Vec<usize>,
}

/// The most pages whose states are looked up at a time (64 MiB).
const LOOK_UP: u64 = 1 << 14;

impl Stored {
    fn new(image: Image, store: Location) -> Result<Self, Error> {
        let memories = image.backends().iter().enumerate();
        let memories = memories.filter(|(_, backend)| backend.kind == BackendKind::Memory);
        let (backends, exports): (Vec<_>, Vec<_>) = memories
            .map(|(number, backend)| {
                let (name, size) = (backend.name.clone(), backend.bytes);
                (number, Export { name, size })
            })
            .unzip();
        if exports.is_empty() {
            return Err(vmem_cli::Error::other("the checkpoint has no memory").into());
        }
        Ok(Self {
            image,
            store,
            exports,
            backends,
        })
    }

    /// Reads something, and says what that means for a client.
    fn read_there<T>(&self, read: impl FnMut() -> Result<T, PageError>) -> Result<T, ReadError> {
        self.store.read_there(read).map_err(|error| match error {
            PageError::Away(error) => ReadError::Away(vmem_cli::chain(&error)),
            PageError::Unreadable | PageError::Absent => ReadError::Lost(error.to_string()),
            error => {
                tracing::warn!("a part of the checkpoint cannot be had: {error}");
                ReadError::Lost(error.to_string())
            }
        })
    }

    fn backend(&self, export: usize) -> Result<usize, ReadError> {
        let backend = self.backends.get(export).copied();
        backend.ok_or_else(|| ReadError::Lost("no such export".to_owned()))
    }
}

impl Images for Stored {
    fn exports(&self) -> &[Export] {
        &self.exports
    }

    fn read(&self, export: usize, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        let backend = self.backend(export)?;
        let count = self.read_there(|| self.image.read_at(backend, offset, out))?;
        match count == out.len() {
            true => Ok(()),
            false => Err(ReadError::Lost("beyond the end of the memory".to_owned())),
        }
    }

    fn extents(&self, export: usize, offset: u64, bytes: u64) -> Result<Vec<Extent>, ReadError> {
        let backend = self.backend(export)?;
        let end = offset.saturating_add(bytes);
        let first = offset / vmem::PAGE_SIZE as u64;
        let count = end.div_ceil(vmem::PAGE_SIZE as u64).saturating_sub(first).min(LOOK_UP);
        let pages = vmem::PageRange::from_pgoff(first, count).ok_or_else(|| ReadError::Lost("no such pages".to_owned()))?;
        let found = self.read_there(|| self.image.extents(backend, pages).map_err(PageError::from))?;
        let extents = found.into_iter().map(|extent| Extent {
            bytes: extent.pages.bytes().end.min(end) - extent.pages.bytes().start.max(offset),
            zero: extent.state == PageState::Zero,
        });
        Ok(extents.collect())
    }
}

#[cfg(test)]
mod tests;
