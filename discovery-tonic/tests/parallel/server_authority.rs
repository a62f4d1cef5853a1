//! The `:authority` that Go clients send, over real sockets.
#![cfg(feature = "server")]

use std::time::Duration;

use discovery_memory::MemoryBackend;
use tokio::time::timeout;

use crate::support::{
    frames::{DATA, END_STREAM, Frames, HEADERS, RST_STREAM},
    running::{Running, SOON, builder},
};

/// grpc-go sends its target as the authority: `prod%2Fgreeter` for `etcd:///prod/greeter`. RFC 3986
/// allows a `%`; the crate `http`, and so h2, does not.
///
/// When this test fails, http or h2 accepts it. Then Go clients can call servers below a prefix
/// without `grpc.WithAuthority`: remove this test, and what `EtcdNaming`, the README and
/// `docs/mixed-fleets.md` explain about the authority.
#[tokio::test]
async fn an_escaped_slash_in_the_authority_is_refused_by_http_and_any_other_is_served() {
    const PROTOCOL_ERROR: u32 = 1;
    let server = Running::serving(builder(&MemoryBackend::new())).await;
    for (authority, is_served) in [
        ("greeter", true),
        ("prod.greeter", true),
        ("prod-greeter~1_a", true),
        ("10.0.0.1:80", true),
        ("prod%2Fgreeter", false),
        ("prod%20greeter", false),
    ] {
        let mut frames = Frames::connect(server.address).await;
        let headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/greeter.Greeter/Greet"),
            (":authority", authority),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        frames.send_headers(0, 1, &headers).await;
        // An empty message of gRPC.
        frames.send(DATA, END_STREAM, 1, &[0; 5]).await;
        let kind = if is_served { HEADERS } else { RST_STREAM };
        let frame = timeout(SOON, frames.until(kind, 0)).await.unwrap();
        assert_eq!(frame.stream, 1, "{authority}");
        if !is_served {
            assert_eq!(frame.payload, PROTOCOL_ERROR.to_be_bytes(), "{authority}");
        }
    }
    // A refused stream costs the connection of others nothing.
    let mut client = server.client().await;
    timeout(Duration::from_secs(5), client.greet(greeter::GreetRequest::default())).await.unwrap().unwrap();
}
