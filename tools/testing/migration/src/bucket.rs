// SPDX-License-Identifier: GPL-2.0-or-later
//! A store of checkpoints in S3, beside the hosts: `moto_server`, an S3 server that others wrote, at the LAN.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::command::line;
use crate::network::LAN_ADDRESS;
use crate::patience::wait_until;

/// Where the store is.
pub(crate) const STORE: &str = "s3://checkpoints/of/guests";
const BUCKET: &str = "checkpoints";
const PORT: u16 = 9000;

/// A server with an empty bucket; it ends, and its objects are gone, when this is dropped.
pub(crate) struct Bucket(Child);

impl Bucket {
    /// Starts it.
    pub(crate) fn new() -> Result<Self> {
        let mut command = Command::new("moto_server");
        command.args(["-H", LAN_ADDRESS, "-p", &PORT.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let bucket = Self(command.spawn().context("cannot start moto_server")?);
        wait_until("moto_server listens", || Ok(TcpStream::connect((LAN_ADDRESS, PORT)).is_ok()))?;
        let mut stream = TcpStream::connect((LAN_ADDRESS, PORT))?;
        write!(
            stream,
            "PUT /{BUCKET} HTTP/1.1\r\nHost: {LAN_ADDRESS}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "moto_server makes no bucket: {answer}");
        Ok(bucket)
    }

    /// From now on, each of its answers comes so many milliseconds later, to everybody: it is far away.
    pub(crate) fn delay(&self, milliseconds: u32) -> Result<()> {
        line("modprobe -a sch_prio sch_netem cls_u32").context("the network's modules")?;
        line("tc qdisc add dev lan root handle 1: prio")?;
        line(&format!(
            "tc qdisc add dev lan parent 1:3 netem delay {milliseconds}ms limit 100000"
        ))?;
        line(&format!(
            "tc filter add dev lan parent 1: protocol ip u32 match ip sport {PORT} 0xffff flowid 1:3"
        ))?;
        Ok(())
    }

    /// What programs that use it have in their environment.
    pub(crate) fn environment() -> [(&'static str, String); 5] {
        [
            ("AWS_ACCESS_KEY_ID", "demo".into()),
            ("AWS_SECRET_ACCESS_KEY", "demo".into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_ENDPOINT_URL", format!("http://{LAN_ADDRESS}:{PORT}")),
            ("AWS_ALLOW_HTTP", "true".into()),
        ]
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        // There is none if nothing was delayed.
        let _ = line("tc qdisc del dev lan root");
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
