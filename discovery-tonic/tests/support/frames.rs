//! A peer whose frames are written by hand, for behavior that no server library has.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GO_AWAY: u8 = 7;
/// A flag of SETTINGS and PING.
pub const ACK: u8 = 1;
/// A flag of HEADERS.
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
/// An error code of GOAWAY.
pub const ENHANCE_YOUR_CALM: u32 = 11;

pub struct Frames {
    read: OwnedReadHalf,
    /// What has been read of the next frame.
    buffer: Vec<u8>,
    write: OwnedWriteHalf,
}

#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frames {
    pub async fn accept(listener: &TcpListener) -> Self {
        let (read, write) = loop {
            let (mut read, write) = listener.accept().await.unwrap().0.into_split();
            // Skip clients that have disconnected already.
            if read.read_exact(&mut [0; 24]).await.is_ok() {
                break (read, write);
            }
        };
        let mut frames = Self { read, buffer: Vec::new(), write };
        frames.send(SETTINGS, 0, 0, &[]).await;
        frames
    }

    /// Connects to a server as a client.
    pub async fn connect(address: SocketAddr) -> Self {
        let (read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
        write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut frames = Self { read, buffer: Vec::new(), write };
        frames.send(SETTINGS, 0, 0, &[]).await;
        frames
    }

    /// Sends HEADERS with these fields, none of which is compressed.
    pub async fn send_headers(&mut self, flags: u8, stream: u32, fields: &[(&str, &str)]) {
        let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        // "Literal without indexing, new name" of HPACK, RFC 7541, section 6.2.2.
        let block: Vec<u8> =
            fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect();
        self.send(HEADERS, flags | END_HEADERS, stream, &block).await;
    }

    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let frame = [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat();
        self.write.write_all(&frame).await.unwrap();
    }

    /// Returns the next frame; `None` at the end. Dropped before completion, it loses nothing.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some((head, rest)) = self.buffer.split_first_chunk::<9>() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                if rest.len() >= length {
                    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                    let frame = Frame { kind: head[3], flags: head[4], stream, payload: rest[..length].to_vec() };
                    self.buffer.drain(..9 + length);
                    return Some(frame);
                }
            }
            if self.read.read_buf(&mut self.buffer).await.ok()? == 0 {
                return None;
            }
        }
    }

    /// Reads frames up to one of this kind.
    pub async fn until(&mut self, kind: u8, flag: u8) -> Frame {
        self.find(kind, flag).await.expect("the frame arrives")
    }

    /// Like [`until`](Self::until), but the peer may disconnect: then returns `None`.
    pub async fn find(&mut self, kind: u8, flag: u8) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind && frame.flags & flag == flag {
                return Some(frame);
            }
        }
    }

    /// Sends a response that consists of headers only.
    pub async fn answer(&mut self, stream: u32, grpc_status: &str) {
        // The static table's `:status: 200`, then a literal without indexing.
        let status = [&[grpc_status.len() as u8], grpc_status.as_bytes()].concat();
        let block = [&[0x88, 0, 11], &b"grpc-status"[..], &status].concat();
        self.send(HEADERS, END_STREAM | END_HEADERS, stream, &block).await;
    }

    /// Sends a GOAWAY: no requests above this stream were or will be processed.
    pub async fn go_away(&mut self, last: u32) {
        self.go_away_because(last, 0, "").await;
    }

    pub async fn go_away_because(&mut self, last: u32, reason: u32, text: &str) {
        let payload = [&last.to_be_bytes(), &reason.to_be_bytes(), text.as_bytes()].concat();
        self.send(GO_AWAY, 0, 0, &payload).await;
    }
}
