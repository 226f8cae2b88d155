//! What a greedy volume does to the latency of another one.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::block::{Options, Playground, fill};
use super::fio::{self, Figures, Pace, Target, Work};
use super::report::median;

/// As a database that commits now and then, one transaction after the other.
const MODEST: Pace = Pace::Iops(300);

const MODEST_WORKS: [Work; 2] = [
    Work::new("4k write QD1", "randwrite", "4k", 1).at(MODEST),
    Work::new("4k read QD1", "randread", "4k", 1).at(MODEST),
];
const GREEDY_WORKS: [Work; 3] = [
    Work::new("4k write QD32", "randwrite", "4k", 32).at(Pace::Background),
    Work::new("4k read QD64", "randread", "4k", 64).at(Pace::Background),
    Work::new("1M write QD8", "write", "1M", 8).at(Pace::Background),
];
/// The greedy volume begins so much before the measurement and ends as much after it.
const MARGIN_SECONDS: u32 = 1;

/// Prints, for each modest work of the volume at `socket`, its 99th percentile alone and beside each
/// greedy work of another volume.
pub(super) fn measure(options: &Options, playground: &Playground, socket: &Path) -> Result<()> {
    let greedy_socket = options.dir.join("greedy.sock");
    let export = playground.export("greedy", options.volume_size, &greedy_socket)?;
    fill(options, &greedy_socket)?;
    println!(
        "\n{:<16} {:<16} {:>8} {:>8} {:>7} {:>12}",
        "volume", "beside", "p99 us", "alone", "ratio", "greedy IOPS"
    );
    for work in MODEST_WORKS {
        for greedy in GREEDY_WORKS {
            let mut rounds = Vec::new();
            for _ in 0..options.rounds {
                rounds.push(round(options, (&work, socket), (&greedy, &greedy_socket))?);
            }
            let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure));
            println!(
                "{:<16} {:<16} {:>8.0} {:>8.0} {:>7.2} {:>12.0}",
                work.name,
                greedy.name,
                of(|round| round.beside.p99_us),
                of(|round| round.alone.p99_us),
                of(|round| round.beside.p99_us / round.alone.p99_us),
                of(|round| round.greedy.iops)
            );
        }
    }
    drop(export);
    Ok(())
}

struct Round {
    alone: Figures,
    beside: Figures,
    greedy: Figures,
}

fn round(options: &Options, modest: (&Work, &Path), greedy: (&Work, &Path)) -> Result<Round> {
    let run = |(work, socket): (&Work, &Path), seconds| {
        fio::run(work, &Target::Nbd(socket), options.volume_size, seconds)
    };
    let alone = run(modest, options.seconds)?;
    std::thread::scope(|scope| {
        let greedy = scope.spawn(|| run(greedy, options.seconds + 2 * MARGIN_SECONDS));
        std::thread::sleep(Duration::from_secs(MARGIN_SECONDS.into()));
        let beside = run(modest, options.seconds)?;
        let greedy = greedy.join().map_err(|_| anyhow!("the thread of the greedy volume"))??;
        Ok(Round { alone, beside, greedy })
    })
}
