// SPDX-License-Identifier: GPL-2.0-or-later
//! The demo, `make demo-vm`: one guest moves by vmem, told step by step; then each way to move a guest, side by side.

use anyhow::Result;

use crate::book::{Book, Figures, Trial};
use crate::guest::{Guest, Load};
use crate::harm::{is_emulated, is_harm};
use crate::method::Method;
use crate::network::Host;
use crate::report;
use crate::rig::Rig;
use crate::seconds::seconds;
use crate::story::Story;
use crate::trial::{self, Step};

/// Shows it. `book` has the setting, and gets what is measured.
pub(crate) fn run(rig: &Rig, mut book: Book) -> Result<()> {
    let story = Story::begin();
    let mut guest = Guest::default();
    let [first, second] = Host::BOTH.map(Host::name);
    story.step(&format!(
        "Two hosts: the network namespaces {first} and {second}, with a wire between them"
    ));
    for line in &book.setting {
        story.say(line);
    }
    if is_emulated() {
        // Of guests that were moved so, none was lost; of others, one in twelve.
        guest.variant.without_async_pf = true;
        story.say("the guests do without KVM's asynchronous page faults, by which emulated machines lose more of them (Documentation/testing.rst)");
    }
    story.step(&format!(
        "On {first}: an unmodified QEMU boots a Linux on {}",
        Rig::accelerator()
    ));
    let trial = Trial {
        round: 1,
        load: Load::Writing(0).name(),
        method: Method::VmemHybrid,
    };
    let figures =
        story.persist(|| trial::run_watched(rig, &trial, Load::Writing(0), &guest, |step| tell(&story, &guest, step)))?;
    show(&story, &figures);

    story.step("The same, and an idle guest, by vmem and by QEMU's own ways: one round, so take the figures for an impression");
    book.trials.push(figures);
    for load in [Load::Writing(0), Load::Idle] {
        for method in Method::FEW {
            let what = format!("guest {}, {}", load.name(), method.name());
            if (*method, load) == (Method::VmemHybrid, Load::Writing(0)) {
                continue;
            }
            match story.persist(|| trial::run(rig, 1, *method, load, &guest)) {
                Ok(figures) => book.trials.push(figures),
                // What QEMU does by itself is not what is shown here; its row is missing.
                Err(error) if method.mode().is_none() && !is_harm(&error) => {
                    story.say(&format!("{what}: failed: {error:#}"));
                    continue;
                }
                Err(error) => return Err(error),
            }
            story.say(&format!("{what}: done"));
        }
    }
    println!("\n{}", report::text(&book));
    story.step("Done: after each of these moves the guest has looked at all of its pages, and none was wrong");
    Ok(())
}

fn tell(story: &Story, guest: &Guest, step: Step) {
    let [first, second] = Host::BOTH.map(Host::name);
    let (to, port) = (Host::Second.address(), guest.port());
    match step {
        Step::Booted(rate) => {
            story.step("It is up, works on its memory, and a client talks to it every few milliseconds");
            story.say(&format!(
                "it checks and writes {rate:.0} pages a second, all over {} MiB of its {} MiB",
                guest.work_mib,
                guest.memory_mib.iter().sum::<u32>()
            ));
        }
        Step::Prepared => {
            let region = guest.region(Host::Second, 0);
            story.step(&format!(
                "On {second}: vmemctl receive --listen {to}:{port} --region {region}={}M, and a QEMU whose memory is /run/vmem/{region}",
                guest.memory_mib.iter().sum::<u32>()
            ));
            story.step(&format!("On {first}: vmemctl migrate --mode hybrid --to {to}:{port}"));
        }
        Step::Moved => story.step(&format!(
            "The guest runs on {second} with all of its memory, which is plain memory; the QEMU on {first} has ended"
        )),
        Step::Verified(pages) => {
            story.step("The guest looks at all of its pages: each holds its number, and what was last written to it");
            story.say(&format!(
                "{pages} pages, none of them wrong; the client's connection has held, and each answer was the next one"
            ));
        }
    }
}

fn show(story: &Story, figures: &Figures) {
    story.step("What it cost");
    story.say(&format!("the client's longest wait    {}", seconds(figures.client_wait)));
    story.say(&format!("the guest's own longest gap  {}", seconds(figures.guest_gap)));
    let reported = figures.reported_downtime.map_or_else(|| "-".into(), seconds);
    story.say(&format!("the stop, as vmemctl says    {reported}"));
    for (what, time) in [
        ("from the order to the stop  ", figures.order_to_stop),
        ("until the guest runs        ", figures.stop_to_runs),
        ("until it has all its memory ", figures.stop_to_complete),
    ] {
        story.say(&format!("{what} {}", time.map_or_else(|| "-".into(), seconds)));
    }
    story.say(&format!("complete after               {}", seconds(figures.total)));
    story.say(&format!("on the wire                  {} bytes", figures.bytes));
    if let Some(data) = figures.data_bytes {
        let ratio = figures.bytes as f64 / data as f64;
        story.say(&format!(
            "memory that is not zero      {data} bytes: {ratio:.3} bytes were sent for each"
        ));
    }
}
