//! `traffic <rounds> <address>...`: makes calls of all [shapes](SHAPES) on two threads. Ours and
//! its peers take turns in this many rounds. Prints the medians, and the quartiles of the ratios of
//! ours to each peer within a round.

use std::net::SocketAddr;

use benches::{
    Failure,
    bare::Turns,
    caller::Transport,
    clients,
    rounds::Quartiles,
    traffic::{Piece, SHAPES, Shape},
};
use futures::future::BoxFuture;

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rounds, addresses @ ..] = &arguments[..] else { return Err("traffic <rounds> <address>...".into()) };
    let rounds: u32 = rounds.parse()?;
    let addresses: Vec<SocketAddr> = addresses.iter().map(|address| address.parse()).collect::<Result<_, _>>()?;
    let first = *addresses.first().ok_or("no address")?;
    let ours = clients::ours_ready(&addresses).await?;
    let bare = Turns::connect(&addresses).await?.transport();
    let balanced = clients::tonic_balanced(&addresses)?;
    let single = clients::tonic_single(first).await?;
    let clients = [client(ours), client(bare), client(balanced), client(single)];
    for shape in SHAPES {
        let mut pieces: [Vec<Piece>; 4] = Default::default();
        for round in 0..=rounds {
            for (client, pieces) in clients.iter().zip(&mut pieces) {
                let piece = client(shape).await?;
                // The first round connects and warms up.
                if round > 0 {
                    pieces.push(piece);
                }
            }
        }
        for (measure, of) in shape.call.measures() {
            for (client, peer) in NAMES.iter().zip(&pieces) {
                let what = format!("{}, {measure} {client}", shape.name);
                println!("{what} {:.1}", Quartiles::of(peer.iter().map(of))?.median);
                let ratios = pieces[0].iter().zip(peer).map(|(ours, peer)| of(ours) / of(peer));
                let Quartiles { first, median, third } = Quartiles::of(ratios)?;
                println!("{what} q1 {first:.4}\n{what} q2 {median:.4}\n{what} q3 {third:.4}");
            }
        }
    }
    Ok(())
}

/// Makes calls of a shape.
type Client = Box<dyn Fn(Shape) -> BoxFuture<'static, Result<Piece, Failure>>>;

fn client<T: Transport>(transport: T) -> Client {
    Box::new(move |shape| Box::pin(shape.run(transport.clone())))
}

/// In the sequence of their turns.
const NAMES: [&str; 4] = ["ours", "bare", "balanced", "single"];
