//! A client for the gateway's HTTP.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Makes a request on a connection of its own; returns the body of a successful response.
///
/// # Errors
///
/// Why there is none, or the whole of any other response.
pub(crate) async fn http(gateway: SocketAddr, method: &str, path: &str, body: &str) -> Result<String, String> {
    let exchange = async {
        let mut connection = TcpStream::connect(gateway).await?;
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: shop\r\nconnection: close\r\ncontent-length: {length}");
        connection.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await?;
        let mut response = String::new();
        connection.read_to_string(&mut response).await?;
        Ok::<_, io::Error>(response)
    };
    let response = timeout(LIMIT, exchange).await.map_err(|_| format!("no response within {LIMIT:?}"))?;
    let response = response.map_err(|error| error.to_string())?;
    match response.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
        _ => Err(response),
    }
}

/// Longer than the gateway lets any call take.
const LIMIT: Duration = Duration::from_secs(20);
