//! gRPC's four kinds of calls. Each makes one whole call, checks the answer, and returns the name
//! of the server that gave it.

use std::time::Duration;

use discovery::BalancedChannel;
use greeter::{GreetManyRequest, GreetReply, GreetRequest, GreeterClient};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

/// One of the four kinds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Bidi,
    ClientStream,
    ServerStream,
    Unary,
}

type Client = GreeterClient<BalancedChannel>;

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Unary, Self::ServerStream, Self::ClientStream, Self::Bidi];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ServerStream => "server_stream",
            Self::ClientStream => "client_stream",
            Self::Bidi => "bidi",
        }
    }

    pub(super) async fn call(self, client: &mut Client, deadline: Duration) -> Result<String, Status> {
        match self {
            Self::Unary => unary(client, deadline).await,
            Self::ServerStream => server_stream(client, deadline).await,
            Self::ClientStream => client_stream(client, deadline).await,
            Self::Bidi => bidi(client, deadline).await,
        }
    }
}

async fn unary(client: &mut Client, deadline: Duration) -> Result<String, Status> {
    let request = GreetRequest { payload: b"payload".to_vec(), ..greeting("unary") };
    let reply = client.greet(within(deadline, request)).await?.into_inner();
    if reply.payload != b"payload" {
        return Err(wrong(format!("the payload came back as {:?}", reply.payload)));
    }
    checked(&reply, "unary")
}

async fn server_stream(client: &mut Client, deadline: Duration) -> Result<String, Status> {
    const COUNT: u32 = 3;
    let request = GreetManyRequest { name: "many".to_owned(), count: COUNT, interval_ms: 0 };
    let mut replies = client.greet_many(within(deadline, request)).await?.into_inner();
    let mut server = String::new();
    let mut count = 0;
    while let Some(reply) = replies.message().await? {
        server = checked(&reply, "many")?;
        count += 1;
    }
    if count != COUNT {
        return Err(wrong(format!("{count} answers instead of {COUNT}")));
    }
    Ok(server)
}

async fn client_stream(client: &mut Client, deadline: Duration) -> Result<String, Status> {
    let requests = tokio_stream::iter(["one", "two"].map(greeting));
    let reply = client.greet_all(within(deadline, requests)).await?.into_inner();
    checked(&reply, "one, two")
}

async fn bidi(client: &mut Client, deadline: Duration) -> Result<String, Status> {
    let (send, requests) = mpsc::channel(2);
    // If the call has ended, its next answer is the reason.
    let ask = async |name| _ = send.send(greeting(name)).await;
    // Sent before the response is awaited, because servers of grpc-go send no headers earlier.
    ask("ping").await;
    let mut replies = client.chat(within(deadline, ReceiverStream::new(requests))).await?.into_inner();
    checked(&next(&mut replies).await?, "ping")?;
    ask("pong").await;
    let server = checked(&next(&mut replies).await?, "pong")?;
    drop(send);
    match replies.message().await? {
        None => Ok(server),
        Some(reply) => Err(wrong(format!("{reply:?} instead of the stream's end"))),
    }
}

async fn next(replies: &mut Streaming<GreetReply>) -> Result<GreetReply, Status> {
    replies.message().await?.ok_or_else(|| wrong("the stream ended early".to_owned()))
}

fn greeting(name: &str) -> GreetRequest {
    GreetRequest { name: name.to_owned(), ..GreetRequest::default() }
}

fn within<T>(deadline: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// Returns the server's name if the reply greets whom it should.
fn checked(reply: &GreetReply, name: &str) -> Result<String, Status> {
    let expected = format!("hello {name}, this is {}", reply.server);
    if reply.server.is_empty() || reply.message != expected {
        return Err(wrong(format!("the answer is {:?} from {:?}", reply.message, reply.server)));
    }
    Ok(reply.server.clone())
}

fn wrong(what: String) -> Status {
    Status::data_loss(format!("wrong answer: {what}"))
}
