// SPDX-License-Identifier: GPL-2.0
//! A store of checkpoints in S3, beside the hosts: `moto_server`, an S3 server that others wrote, at the LAN.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

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
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
