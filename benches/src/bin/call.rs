//! `call <client> <width> <address>... <operations>`: makes unary calls with a client, `width` at a
//! time, after the same warm-up.

use std::{net::SocketAddr, time::Duration};

use benches::{
    Failure,
    bare::{Bare, Turns},
    caller::{Caller, Transport},
    clients,
};
use tower::service_fn;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [client, width, addresses @ .., operations] = &arguments[..] else {
        return Err("call <client> <width> <address>... <operations>".into());
    };
    let width = width.parse()?;
    let operations = operations.parse()?;
    let addresses: Vec<SocketAddr> = addresses.iter().map(|address| address.parse()).collect::<Result<_, _>>()?;
    let first = *addresses.first().ok_or("no address")?;
    match client.as_str() {
        "ours" => drive(clients::ours_ready(&addresses).await?, None, width, operations).await,
        "ours-deadline" => drive(clients::ours_ready(&addresses).await?, DEADLINE, width, operations).await,
        "balanced" => drive(clients::tonic_balanced(&addresses)?, None, width, operations).await,
        "balanced-deadline" => drive(clients::tonic_balanced(&addresses)?, DEADLINE, width, operations).await,
        "single" => drive(clients::tonic_single(first).await?, None, width, operations).await,
        "bare" => drive(Turns::connect(&addresses).await?.transport(), None, width, operations).await,
        "bare-single" => {
            let mut bare = Bare::connect(first).await?;
            let service = service_fn(move |request| bare.sender.send_request(bare.prepare(request)));
            drive(service, None, width, operations).await
        }
        other => Err(format!("no client: {other}").into()),
    }
}

async fn drive<T: Transport>(
    transport: T,
    deadline: Option<Duration>,
    width: usize,
    operations: usize,
) -> Result<(), Failure> {
    let mut caller = Caller::new(transport, deadline);
    // All endpoints answer once before anything is counted; with this many calls that is
    // practically certain.
    for operations in [WARM_UP, operations] {
        match width {
            1 => caller.in_sequence(operations).await?,
            _ => caller.at_once(width, operations).await?,
        }
    }
    Ok(())
}

const WARM_UP: usize = 1_000;
const DEADLINE: Option<Duration> = Some(Duration::from_secs(10));
