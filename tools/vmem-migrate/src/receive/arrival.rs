// SPDX-License-Identifier: GPL-2.0-or-later
//! One guest that a connection offers which `vmemctl listen` has accepted.

use vmem::Control;
use vmem_cli::{Signals, chain};

use super::incoming::{Host, IncomingMigration, NotTaken};
use super::listener::Listener;
use super::offer::Offer;
use super::{detach, finish, host};
use crate::channel::Channel;
use crate::error::{Cause, Error};
use crate::message::FromDestination;
use crate::network::{Greeted, Security};
use crate::options::{Common, Receive};
use crate::report::{Report, subject};

/// A guest that was offered, and is not received yet.
pub(crate) struct Arrival {
    listener: Listener,
    security: Security,
    channel: Channel,
    offer: Offer,
}

impl Arrival {
    /// Answers HELLO, and waits for the offer. `None`: no valid offer has come.
    pub(crate) fn new(security: Security, greeted: Greeted) -> Option<Self> {
        let listener = Listener::passive(security.clone());
        let (channel, offer) = listener.offered(greeted)?;
        Some(Self {
            listener,
            security,
            channel,
            offer,
        })
    }

    /// Receives the guest as `admit` says, which may refuse it. `peer` is for messages.
    pub(crate) fn receive(
        self,
        cli: &Common,
        peer: &str,
        admit: impl FnOnce(&str) -> Result<Receive, Cause>,
        report: &mut Report,
        signals: &Signals,
    ) -> Result<(), Error> {
        let Self {
            mut listener,
            security,
            channel,
            offer,
        } = self;
        let guest = offer.guest.escape_debug().to_string();
        subject::set(&offer.guest, &offer.session);
        let admitted = admit(&offer.guest).and_then(|args| {
            let control = Control::open().map_err(Cause::call(vmem_cli::NO_MODULE))?;
            listener.take_over(&cli.state, &offer.session)?;
            Ok((args, control))
        });
        let (args, control) = match admitted {
            Ok(admitted) => admitted,
            Err(cause) => {
                // If the source does not receive FAILED, it finds the connection closed.
                let _ = channel.send(&FromDestination::Failed { reason: chain(&cause) });
                return Err(Error::AtSource(Cause::other(format!(
                    "guest {guest} of {peer} is refused: {}",
                    chain(&cause)
                ))));
            }
        };
        report.note(&format!("guest {guest} comes from {peer}"));
        let files = host::open_files(&args, report);
        let host = Host {
            args: &args,
            files: &files,
            make_regions: &|guest, memory| host::regions_for(&control, &files, guest, memory, &args),
            security: &security,
            signals,
        };
        let incoming = match IncomingMigration::prepare(cli, &host, &listener, channel, offer, report) {
            Ok(incoming) => incoming,
            Err(NotTaken::Refused(cause) | NotTaken::Spoiled(cause)) => return Err(Error::AtSource(cause)),
        };
        let result = finish(&args, &control, &mut listener, incoming, Vec::new(), report, signals);
        detach(cli, &args, result, report, signals)
    }
}
