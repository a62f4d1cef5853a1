//! An entry that keeps being removed or overwritten.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use support::{
    Etcd, Log,
    scene::{SOON, connect, instance, key, register, until_registered},
};
use tokio::time::sleep;
use tracing::Level;

/// Somebody keeps deleting or overwriting the entry as soon as it is there. It is written less and
/// less often, and that is logged once a minute. Left alone, it comes back.
#[tokio::test]
async fn an_entry_removed_again_and_again_is_rewritten_with_backoff() {
    for overwrites in [false, true] {
        let log = Log::down_to(Level::INFO);
        let etcd = Etcd::start().await;
        let backend = connect(&etcd);
        let registration = register(&backend, 1).await;
        let key = key(&instance(1));
        let ends = Arc::new(AtomicBool::new(false));
        let opponent = tokio::spawn({
            let mut raw = etcd.raw().await;
            let ends = Arc::clone(&ends);
            async move {
                let mut taken = 0;
                while !ends.load(Ordering::Relaxed) {
                    let stands = raw.entry(&key).await.is_some_and(|(_, lease)| lease != 0);
                    if stands {
                        taken += 1;
                        if overwrites { raw.put(&key, "by hand").await } else { raw.delete(&key).await }
                    }
                    sleep(Duration::from_millis(1)).await;
                }
                taken
            }
        });
        let before = etcd.requests(0, "Txn");
        let start = Instant::now();
        sleep(Duration::from_secs(5)).await;
        let writes = etcd.requests(0, "Txn") - before;
        ends.store(true, Ordering::Relaxed);
        let taken = opponent.await.unwrap();
        let lines = log.with("registration lost").len() + log.with("registered again").len();
        println!(
            "overwritten {overwrites}: taken away {taken} times in {:?}, {writes} writes, {lines} lines logged",
            start.elapsed()
        );
        // The longest wait is 500 ms here; by default it is ten times that.
        assert!((5..60).contains(&taken), "{taken}");
        assert!(writes <= 2 * taken + 2, "{writes} for {taken}");
        assert!((1..=2).contains(&lines), "{lines}");
        until_registered(&registration, SOON).await;
    }
}
