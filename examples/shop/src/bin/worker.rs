//! The worker: a client without a server, which places orders at a steady rate.

use std::{pin::pin, time::Duration};

use discovery::BalancedChannel;
use shop::{BoxError, OrdersClient, PlaceRequest, Settings};
use tokio::{task::JoinSet, time};
use tonic::Status;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    shop::log_to_stderr()?;
    let settings = Settings::from_env()?;
    let backend = discovery::open(&settings.registry)?;
    let channel = shop::channel(&settings, backend, "orders")?;
    let mut stop = pin!(shop::stop_signal());
    tokio::select! {
        () = &mut stop => return Ok(()),
        () = shop::until_ready(channel.clone()) => {}
    }
    let mut ticks = time::interval(Duration::from_secs(1) / settings.rate.max(1));
    let mut report = time::interval(Duration::from_secs(1));
    let mut calls = JoinSet::new();
    let mut placed = 0;
    let mut failed = 0;
    loop {
        tokio::select! {
            () = &mut stop => break,
            _ = ticks.tick(), if calls.len() < MOST_AT_A_TIME => {
                calls.spawn(place(OrdersClient::new(channel.clone())));
            }
            Some(ended) = calls.join_next() => count(ended?, &mut placed, &mut failed),
            _ = report.tick() => println!("{placed} orders placed, {failed} failed"),
        }
    }
    while let Some(ended) = calls.join_next().await {
        count(ended?, &mut placed, &mut failed);
    }
    println!("in all: {placed} orders placed, {failed} failed");
    Ok(())
}

async fn place(mut orders: OrdersClient<BalancedChannel>) -> Result<(), Status> {
    let order_id = format!("worker-{:016x}", fastrand::u64(..));
    orders.place(PlaceRequest { order_id, item: "book".to_owned() }).await.map(drop)
}

fn count(result: Result<(), Status>, placed: &mut u64, failed: &mut u64) {
    match result {
        Ok(()) => *placed += 1,
        Err(status) => {
            *failed += 1;
            shop::log_failure(&status);
        }
    }
}

/// More would not help a service that is too slow.
const MOST_AT_A_TIME: usize = 100;
