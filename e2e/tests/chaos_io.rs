//! IO goes on, and stays right, while chunkservers are killed under it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use curve_e2e::{engine, kubectl::Namespace, workload};

const RECOVERED: Duration = Duration::from_secs(120);

#[test]
fn a_pod_verifies_its_writes_while_leaders_are_killed() -> Result<()> {
    engine::wait_healthy(RECOVERED)?;
    let namespace = Namespace::create("chaos-io")?;
    let ns = &namespace.0;
    workload::start(ns, "ext4", "Filesystem", "512Mi")?;
    workload::start(ns, "raw", "Block", "512Mi")?;

    workload::start_fio(ns, "ext4", "--filename=/data/file", 60)?;
    workload::start_fio(ns, "raw", "--filename=/dev/data", 60)?;
    std::thread::sleep(Duration::from_secs(5));
    let first = engine::busiest_leader()?;
    let killed = Instant::now();
    engine::kill_chunkserver(&first)?;
    engine::wait_heard_since(&first, killed, RECOVERED)?;
    // One second after the first is back: the other replicas must not depend on it being warm.
    std::thread::sleep(Duration::from_secs(1));
    let second = engine::busiest_leader()?;
    engine::kill_chunkserver(&second)?;
    for pod in ["ext4", "raw"] {
        ensure!(workload::fio_runs(ns, pod)?, "fio in {pod} ended before the second kill");
    }

    workload::finish_fio(ns, "ext4", RECOVERED)?;
    workload::finish_fio(ns, "raw", RECOVERED)?;
    engine::wait_healthy(RECOVERED)?;
    Ok(())
}

#[test]
fn all_engine_processes_killed_at_once_lose_nothing() -> Result<()> {
    engine::wait_healthy(RECOVERED)?;
    let namespace = Namespace::create("chaos-all")?;
    let ns = &namespace.0;
    workload::start(ns, "all", "Filesystem", "512Mi")?;
    workload::start_fio(ns, "all", "--filename=/data/file", 30)?;
    std::thread::sleep(Duration::from_secs(6));
    let killed = engine::kill_processes("curve", &["chunkserver"])?
        + engine::kill_processes("curve", &["mds"])?;
    ensure!(killed >= 6, "killed {killed} engine processes");
    workload::finish_fio(ns, "all", RECOVERED)?;
    engine::wait_healthy(RECOVERED)?;
    Ok(())
}
