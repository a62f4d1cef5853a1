//! Servers in a process of their own, so that nothing of them is counted with a client.

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
    /// Shakes hands, takes calls and never answers one.
    Hung,
    /// Answers after five seconds more, and says nothing before.
    Late,
    /// Answers, and allows so many streams at once on a connection.
    Limited(u32),
    /// Refuses connections.
    Refusing,
    /// Accepts connections and never says a word.
    Silent,
    /// Answers after two seconds more.
    Slow,
}

/// A process of the `servers` binary; it ends with this value.
#[derive(Debug)]
pub struct Servers {
    child: Child,
    addresses: Vec<SocketAddr>,
}

impl Servers {
    /// Starts one server of each kind and waits until all have their addresses.
    ///
    /// # Errors
    ///
    /// Where the binary is missing or ends before it has named all addresses.
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
            return Err("the servers ended before they had all addresses".into());
        }
        Ok(servers)
    }

    /// Where they listen, in the order of their kinds.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Makes a server another kind, for the calls that come from now on. Those that refuse or are silent stay so, and no other
    /// becomes one of them; limits stay too.
    ///
    /// # Errors
    ///
    /// Where the process has ended.
    pub fn turn(&mut self, number: usize, kind: Kind) -> Result<(), Failure> {
        let orders = self.child.stdin.as_mut().ok_or("the servers take no orders")?;
        Ok(writeln!(orders, "{number} {kind}")?)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        // Whoever has ended by itself needs no end.
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
