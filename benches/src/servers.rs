//! Servers in a separate process, so that none of their work is counted with a client.

use std::{
    fmt,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    str::FromStr,
};

use tonic::Code;

use crate::{Failure, callgrind::driver};

/// How a server behaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Kind {
    /// Answers every call at once with this code.
    Failing(Code),
    /// Answers.
    Greeter,
    /// Completes handshakes, accepts calls and never answers one.
    Hung,
    /// Answers five seconds later and sends nothing before.
    Late,
    /// Answers, and allows this many concurrent streams per connection.
    Limited(u32),
    /// Refuses connections.
    Refusing,
    /// Accepts connections and never sends anything.
    Silent,
    /// Answers two seconds later.
    Slow,
}

/// A process of the `servers` binary; it ends when this value is dropped.
#[derive(Debug)]
pub struct Servers {
    child: Child,
    addresses: Vec<SocketAddr>,
}

impl Servers {
    /// Starts one server of each kind and waits until all have addresses.
    ///
    /// # Errors
    ///
    /// If the binary is missing or ends before it has printed all addresses.
    pub fn start(kinds: &[Kind]) -> Result<Self, Failure> {
        let mut command = Command::new(driver("servers")?);
        command.args(kinds.iter().map(Kind::to_string));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().ok_or("the servers have no output")?;
        let mut servers = Self { child, addresses: Vec::new() };
        for line in BufReader::new(stdout).lines().take(kinds.len()) {
            servers.addresses.push(line?.parse()?);
        }
        if servers.addresses.len() < kinds.len() {
            return Err("the servers ended before they printed all addresses".into());
        }
        Ok(servers)
    }

    /// Returns where they listen, one address per kind.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Changes the kind of a server for later calls. Servers that refuse or are silent stay so, and
    /// no other server can become one of them; stream limits stay too.
    ///
    /// # Errors
    ///
    /// If the process has ended.
    pub fn turn(&mut self, number: usize, kind: Kind) -> Result<(), Failure> {
        let orders = self.child.stdin.as_mut().ok_or("the servers have no input")?;
        Ok(writeln!(orders, "{number} {kind}")?)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        // Killing a process that has already ended fails, which does not matter.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failing(code) => return write!(f, "{FAILING}{}", *code as i32),
            Self::Greeter => "greeter",
            Self::Hung => "hung",
            Self::Late => "late",
            Self::Limited(streams) => return write!(f, "{LIMITED}{streams}"),
            Self::Refusing => "refusing",
            Self::Silent => "silent",
            Self::Slow => "slow",
        })
    }
}

impl FromStr for Kind {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        if let Some(streams) = text.strip_prefix(LIMITED) {
            return Ok(Self::Limited(streams.parse()?));
        }
        if let Some(code) = text.strip_prefix(FAILING) {
            return Ok(Self::Failing(Code::from_i32(code.parse()?)));
        }
        let all = [Self::Greeter, Self::Hung, Self::Late, Self::Refusing, Self::Silent, Self::Slow];
        all.into_iter().find(|kind| kind.to_string() == text).ok_or_else(|| format!("no kind of server: {text}").into())
    }
}

const FAILING: &str = "failing-";
const LIMITED: &str = "limited-";
