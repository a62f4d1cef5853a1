//! The cost of an outage. This is the only test of its program, so that no other work is measured.

use std::{
    fs,
    time::{Duration, Instant},
};

use discovery_core::ResolverExt;
use futures::future::join_all;
use support::{
    Etcd, Fault, Proxy, eventually,
    scene::{SOON, payments, register, usual},
};
use tokio::time::sleep;

/// Returns the processor time that this process has used.
fn used() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    // The fields follow the name, which may contain anything. User and system time are fields 14
    // and 15, in hundredths of a second.
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// Tests that measure time or shares. `scripts/test` runs them after all others.
mod timed {
    use super::*;

    /// 1,000 registrations are dropped while etcd resets or refuses every connection. Cleaning up
    /// after them costs at most 10 connections a second and 0.05 core, and so does keeping 1,000.
    /// When etcd is back, the dropped ones are removed and the others are registered.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn registrations_cost_little_during_an_outage() {
        const COUNT: u16 = 1000;
        let window = Duration::from_secs(5);
        for (fault, drops) in [(Fault::Reset, true), (Fault::Refuse, true), (Fault::Reset, false)] {
            let etcd = Etcd::start().await;
            let proxy = Proxy::to(etcd.address()).await;
            let backend = usual([proxy.address()]);
            let mut registrations = join_all((0..COUNT).map(|number| register(&backend, number))).await;
            let kept = if drops { 1 } else { usize::from(COUNT) };
            proxy.set(fault);
            registrations.truncate(kept);
            // Requests in flight fail now.
            sleep(Duration::from_millis(500)).await;
            let before = used();
            let accepted = proxy.accepted();
            let start = Instant::now();
            sleep(window).await;
            let took = start.elapsed().as_secs_f64();
            let connections = (proxy.accepted() - accepted) as f64 / took;
            let cores = (used() - before).as_secs_f64() / took;
            println!("{fault:?}, {kept} of {COUNT} kept: {connections:.1} connections a second, {cores:.3} core");
            // A proxy that refuses connections counts none.
            assert!(connections <= 10.0, "{connections}");
            assert!(cores <= 0.05, "{cores}");

            proxy.set(Fault::None);
            let start = Instant::now();
            let observer = usual(etcd.members());
            let view = observer.view(&payments()).unwrap();
            view.wait_until_ready(SOON).await.unwrap();
            eventually("only the kept registrations are left", SOON * 3, async || view.current().len() == kept).await;
            let all = async || registrations.iter().all(|one| one.status().is_registered());
            eventually("registered", SOON, all).await;
            println!("{fault:?}, {kept} of {COUNT} kept: recovered {:?} after the outage", start.elapsed());
        }
    }
}
