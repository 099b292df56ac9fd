// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl tls`: an authority in a directory, and the certificates of hosts.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use time::OffsetDateTime;
use vmem_authority::{Authority, Certificate, Error, HostName};
use vmem_cli::chain;
use vmem_cli::output::{err, out};
use vmem_migrate::report;

#[derive(Debug, Args)]
pub(crate) struct Tls {
    #[command(subcommand)]
    command: TlsCommand,
}

#[derive(Debug, Subcommand)]
enum TlsCommand {
    /// Make an authority, whose certificates hosts accept
    Init(Init),
    /// Make the files that --tls reads on a host
    AddHost(AddHost),
    /// Make new certificates for the same names and keys
    Renew(Renew),
    /// List the hosts and until when their certificates are valid
    List(List),
}

#[derive(Debug, Args)]
struct Init {
    /// The directory to make
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// The authority's common name
    #[arg(long, value_name = "NAME", default_value = "vmem authority")]
    name: String,
    /// How long the authority is valid
    #[arg(long, value_name = "DAYS", default_value = "3650")]
    days: u32,
}

#[derive(Debug, Args)]
struct AddHost {
    /// The authority's directory, which gets a directory HOST
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// The host's name
    #[arg(value_name = "HOST")]
    host: String,
    /// Other names, and addresses, to which peers connect
    #[arg(value_name = "NAME|ADDRESS")]
    names: Vec<HostName>,
    /// How long the certificate is valid, but no longer than the authority's
    #[arg(long, value_name = "DAYS", default_value = "365")]
    days: u32,
}

#[derive(Debug, Args)]
struct Renew {
    /// The authority's directory
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// The hosts; all if none is given
    #[arg(value_name = "HOST")]
    hosts: Vec<String>,
    /// How long the certificates are valid, but no longer than the authority's
    #[arg(long, value_name = "DAYS", default_value = "365")]
    days: u32,
}

#[derive(Debug, Args)]
struct List {
    /// The authority's directory
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// A line of `vmemctl tls --json`.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum TlsLine<'a> {
    /// An authority.
    Authority {
        /// Its directory.
        directory: Cow<'a, str>,
        /// From when on its certificate is valid: seconds since 1970.
        not_before: i64,
        /// Until when its certificate is valid: seconds since 1970.
        not_after: i64,
        /// Whether it is not valid any more.
        expired: bool,
    },
    /// The certificate of a host.
    Certificate {
        /// The host.
        host: &'a str,
        /// The file.
        path: Cow<'a, str>,
        /// The names and addresses that it is for.
        names: &'a [String],
        /// From when on it is valid: seconds since 1970.
        not_before: i64,
        /// Until when it is valid: seconds since 1970.
        not_after: i64,
        /// Whether it is not valid any more.
        expired: bool,
    },
    /// A certificate cannot be renewed or read.
    HostFailed {
        /// The host.
        host: &'a str,
        /// Why, for people.
        error: &'a str,
    },
}

/// Why a command has failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    /// The authority cannot be made or used.
    #[error(transparent)]
    Authority(#[from] Error),
    /// Something has failed for so many hosts. It has been reported for each.
    #[error("not done for {0} of the hosts")]
    Hosts(usize),
}

pub(crate) fn run(args: &Tls, json: bool) -> Result<(), Failed> {
    match &args.command {
        TlsCommand::Init(args) => Ok(init(args, json)?),
        TlsCommand::AddHost(args) => Ok(add_host(args, json)?),
        TlsCommand::Renew(args) => renew(args, json),
        TlsCommand::List(args) => list(args, json),
    }
}

fn init(args: &Init, json: bool) -> Result<(), Error> {
    let authority = Authority::create(&args.directory, &args.name, args.days)?;
    if json {
        print_authority(&args.directory, authority.certificate());
        return Ok(());
    }
    let directory = args.directory.display();
    out(&format!(
        "{directory} is an authority, valid until {}",
        day(authority.certificate().not_after())
    ));
    out(&format!(
        "Copy {directory}/ca-key.pem to no host. Next: vmemctl tls add-host {directory} HOST [ADDRESS...]"
    ));
    Ok(())
}

fn add_host(args: &AddHost, json: bool) -> Result<(), Error> {
    let authority = Authority::open(&args.directory)?;
    let own: HostName = args.host.parse()?;
    let names: Vec<HostName> = std::iter::once(own).chain(args.names.iter().cloned()).collect();
    let certificate = authority.add_host(&args.host, &names, args.days)?;
    print_host(&args.host, &certificate, json);
    if !json {
        let directory = args.directory.join(&args.host);
        out(&format!(
            "Copy {}/*.pem to /etc/vmem on {}, readable by root only. key.pem need not stay here",
            directory.display(),
            args.host
        ));
    }
    Ok(())
}

/// Goes on after a certificate that cannot be renewed, so that the others do not expire for it.
fn renew(args: &Renew, json: bool) -> Result<(), Failed> {
    let authority = Authority::open(&args.directory)?;
    let hosts = match args.hosts.is_empty() {
        true => authority.hosts()?.into_iter().map(|host| host.name).collect(),
        false => args.hosts.clone(),
    };
    let mut failures = Failures::default();
    for host in &hosts {
        match authority.renew(host, args.days) {
            Ok(certificate) => {
                print_host(host, &certificate, json);
                if !json {
                    out(&format!("Copy {} to /etc/vmem on {host}", certificate.path().display()));
                }
            }
            Err(error) => failures.report(host, &error, json),
        }
    }
    failures.result()
}

fn list(args: &List, json: bool) -> Result<(), Failed> {
    let authority = Authority::open(&args.directory)?;
    let certificate = authority.certificate();
    if json {
        print_authority(&args.directory, certificate);
    } else {
        out(&format!("{}: authority, {}", args.directory.display(), validity(certificate)));
    }
    let mut failures = Failures::default();
    for host in authority.hosts()? {
        match host.certificate {
            Ok(certificate) => print_host(&host.name, &certificate, json),
            Err(error) => failures.report(&host.name, &error, json),
        }
    }
    failures.result()
}

/// The hosts for which something has failed.
#[derive(Default)]
struct Failures(usize);

impl Failures {
    fn report(&mut self, host: &str, error: &Error, json: bool) {
        self.0 += 1;
        let text = chain(error);
        if json {
            report::print(&TlsLine::HostFailed { host, error: &text });
        } else {
            err(&format!("vmemctl: {host}: {text}"));
        }
    }

    fn result(self) -> Result<(), Failed> {
        match self.0 {
            0 => Ok(()),
            hosts => Err(Failed::Hosts(hosts)),
        }
    }
}

fn print_authority(directory: &Path, certificate: &Certificate) {
    report::print(&TlsLine::Authority {
        directory: directory.to_string_lossy(),
        not_before: certificate.not_before().unix_timestamp(),
        not_after: certificate.not_after().unix_timestamp(),
        expired: certificate.has_expired(),
    });
}

fn print_host(host: &str, certificate: &Certificate, json: bool) {
    let names: Vec<String> = certificate.names().iter().map(ToString::to_string).collect();
    if json {
        report::print(&TlsLine::Certificate {
            host,
            path: certificate.path().to_string_lossy(),
            names: &names,
            not_before: certificate.not_before().unix_timestamp(),
            not_after: certificate.not_after().unix_timestamp(),
            expired: certificate.has_expired(),
        });
        return;
    }
    out(&format!("{host}: {}, for {}", validity(certificate), names.join(", ")));
}

fn validity(certificate: &Certificate) -> String {
    let verb = match certificate.has_expired() {
        true => "expired on",
        false => "valid until",
    };
    format!("{verb} {}", day(certificate.not_after()))
}

fn day(time: OffsetDateTime) -> String {
    time.date().to_string()
}
