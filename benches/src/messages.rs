//! Many messages on one stream as fast as possible. The greeter's own messages wait for a timer,
//! which takes a millisecond each.

use std::{
    convert::Infallible,
    future::{Ready, ready},
};

use futures::{
    StreamExt,
    stream::{Repeat, Take, repeat},
};
use greeter::{GreetManyRequest, GreetReply};
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, ServerStreamingService},
};
use tonic_prost::ProstCodec;

/// The `GreetMany` method of a server with this name.
#[derive(Clone, Debug)]
pub struct Messages(String);

impl Messages {
    /// The path of the calls that it answers.
    pub const PATH: &str = "/greeter.v1.Greeter/GreetMany";

    /// Creates the method of a server.
    #[must_use]
    pub fn new(server: &str) -> Self {
        Self(server.to_owned())
    }

    /// Answers a call.
    ///
    /// # Errors
    ///
    /// Never: an invalid call is reported in its answer.
    pub async fn answer(self, request: http::Request<Body>) -> Result<http::Response<Body>, Infallible> {
        Ok(Grpc::new(ProstCodec::default()).server_streaming(self, request).await)
    }
}

impl ServerStreamingService<GreetManyRequest> for Messages {
    type Response = GreetReply;
    type ResponseStream = Take<Repeat<Result<GreetReply, Status>>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<GreetManyRequest>) -> Self::Future {
        let GreetManyRequest { count, .. } = request.into_inner();
        let reply = GreetReply { server: self.0.clone(), ..GreetReply::default() };
        ready(Ok(Response::new(repeat(Ok(reply)).take(count as usize))))
    }
}
