// SPDX-License-Identifier: GPL-2.0-or-later
//! An export of an NBD server as a source of page contents.
//!
//! [`Uri`] is where the export is, as `vmemd --source nbd://...` has it. [`Endpoint`] connects to it, once for each lane, or once for all of them if the
//! server does not allow several connections. [`ExportSource`] is the source.
//!
//! The export is a memory of whole pages: what is missing of the last page is zeros. Holes and zeros are not transferred if the server says where they
//! are. A page that the server answers with an error is unreadable.
#![forbid(unsafe_code)]

mod endpoint;
mod error;
mod holes;
mod job;
mod source;
mod uri;

pub use endpoint::Endpoint;
pub use error::Error;
pub use source::ExportSource;
pub use uri::{Place, Uri, UriError};
