// SPDX-License-Identifier: GPL-2.0-or-later
//! This test program as a fake vmemd: it has a control socket, and executes a script from the environment.

use std::process::exit;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use vmem_control::{About, Duty, Event, Figures, Refusal, Server, Service, socket};

/// The script: words, each with at most one argument, separated by `;`. With `fetch` as its first word the fake fetches, otherwise it
/// serves.
const SCRIPT: &str = "VMEMCTL_FAKE_VMEMD";

/// Arguments of `sh` for a fake vmemd with this script. The options of vmemd follow: the session is the last of them.
pub(crate) fn shell(script: &str) -> Vec<String> {
    ["-c".to_owned(), format!("exec {}", command(script))].to_vec()
}

/// The command by which a shell script starts a fake vmemd.
pub(crate) fn command(script: &str) -> String {
    let this = std::env::current_exe().expect("this program");
    let this = this.display();
    format!("env {SCRIPT}='{script}' SESSION=\"$3\" '{this}' --ignored --exact daemon::fake::vmemd --nocapture")
}

/// Passes on the orders that arrive.
struct Orders(Sender<&'static str>);

impl Service for Orders {
    fn start(&mut self) -> Result<(), Refusal> {
        let _ = self.0.send("start");
        Ok(())
    }

    fn release(&mut self) -> Result<(), Refusal> {
        let _ = self.0.send("release");
        Ok(())
    }

    fn stop(&mut self) {
        let _ = self.0.send("stop");
    }
}

/// An event with this word.
pub(crate) fn said(word: &str) -> Event {
    let name = word.to_owned();
    Event::Short { name }
}

#[test]
#[ignore = "a process of other tests"]
fn vmemd() {
    let Ok(script) = std::env::var(SCRIPT) else { return };
    let duty = if script.starts_with("fetch") {
        Duty::Fetch
    } else {
        Duty::Serve
    };
    let about = About::new(std::env::var("SESSION").unwrap_or_default(), duty).expect("this process");
    let listener = socket::inherited().expect("a socket");
    let (sender, orders) = channel();
    let mut server = Some(Server::start(listener, about, Orders(sender)).expect("a server"));
    // The test that has started this is about to connect and to subscribe.
    thread::sleep(Duration::from_millis(100));
    let publish = |server: &Option<Server>, event| server.iter().for_each(|server| server.publisher().publish(event_of(&event)));
    for step in script.split(';') {
        let (word, argument) = step.trim().split_once(' ').unwrap_or((step.trim(), ""));
        let number = || argument.parse::<u64>().expect("a number");
        match word {
            "fetch" => {}
            "ready" => publish(&server, Said::Ready),
            "say" => publish(&server, Said::Word(argument.to_owned())),
            "many" => (0..=number()).for_each(|number| publish(&server, Said::Progress(number))),
            "order" => {
                let order = orders.recv().expect("an order");
                publish(&server, Said::Word(order.to_owned()));
            }
            // Runs until it receives the order to stop.
            "serve" => while orders.recv().expect("an order") != "stop" {},
            // Ignores all orders.
            "deaf" => loop {
                thread::sleep(Duration::from_secs(1));
            },
            "end" => {
                let code = u8::try_from(number()).expect("an exit code");
                publish(&server, Said::End(code));
                server.take().expect("a server").finish(true, Duration::from_secs(5));
                exit(code.into());
            }
            other => panic!("{other}"),
        }
    }
    exit(0);
}

enum Said {
    Ready,
    Word(String),
    Progress(u64),
    End(u8),
}

fn event_of(said: &Said) -> Event {
    match said {
        Said::Ready => Event::Listening {
            address: ([127, 0, 0, 1], 1).into(),
        },
        Said::Word(word) => self::said(word),
        Said::Progress(faults) => Event::Progress(Figures {
            faults: *faults,
            ..Figures::default()
        }),
        Said::End(exit_code) => Event::End {
            exit_code: *exit_code,
            error: None,
            figures: None,
        },
    }
}
