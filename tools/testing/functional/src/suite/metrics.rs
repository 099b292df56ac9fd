// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemd --metrics`: programs wait for pages, and not for figures.

use std::io::{BufRead, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use super::vmemd::{Daemon, Scratch, Source, check_page, map, open};
use crate::failure::{Outcome, ensure, equal};

crate::tests![
    a_taken_port_costs_a_resumed_daemon_its_figures_and_no_pages,
    a_taken_port_ends_a_daemon_that_has_not_begun,
];

const PAGES: u64 = 64;

/// Waits until somebody says this.
fn wait_line(lines: &mut impl BufRead, part: &str) -> Outcome {
    let mut heard = String::new();
    while !heard.contains(part) {
        ensure!(lines.read_line(&mut heard)? > 0, "no {part:?} in {heard:?}");
    }
    Ok(())
}

fn figures(address: SocketAddr) -> Outcome<String> {
    let mut connection = TcpStream::connect(address)?;
    connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: vmem\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The first daemon is killed when it has brought one page. The next one cannot listen, brings pages nevertheless, and gives its figures when the
/// port is free.
fn a_taken_port_costs_a_resumed_daemon_its_figures_and_no_pages() -> Outcome {
    let file = Scratch::new("figures", PAGES)?;
    let source = Source::new(&[&file.export("figures")])?;
    let mut daemon = Daemon::new(&source.address, &["--no-background"])?;
    let handle = open("figures")?;
    let memory = map(&handle)?;
    check_page(&memory, 3)?;
    daemon.process.kill()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?;
    let options = ["--resume", "--no-background", "--metrics", &address.to_string()];
    let mut daemon = Daemon::new(&source.address, &options)?;
    let mut errors = daemon.errors()?;
    wait_line(&mut errors, &format!("cannot give figures on {address}"))?;
    for pgoff in [60, 14, 31] {
        check_page(&memory, pgoff)?;
    }
    equal!(handle.info()?.present, 4);
    drop(taken);
    wait_line(&mut errors, &format!("figures are on {address} now"))?;
    let figures = figures(address)?;
    ensure!(figures.contains("\nvmemd_faults_total 3\n"), "{figures}");
    // They are of a daemon that goes on.
    check_page(&memory, 45)
}

fn a_taken_port_ends_a_daemon_that_has_not_begun() -> Outcome {
    let file = Scratch::new("figures", PAGES)?;
    let source = Source::new(&[&file.export("figures")])?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let end = Daemon::new(&source.address, &["--metrics", &address])?.end()?.with_code(1)?;
    let said = format!("cannot give figures on {address}");
    ensure!(end.errors.contains(&said), "{}", end.errors);
    Ok(())
}
