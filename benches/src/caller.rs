//! Sends the same unary calls over any client.

use std::time::Duration;

use futures::{StreamExt, stream::FuturesUnordered};
use greeter::{GreetReply, GreetRequest, GreeterClient};
use tokio::time::timeout;
use tonic::{Request, Response, Status, body::Body, client::GrpcService, codegen::StdError};

/// A transport that a generated client accepts, in a spawned task too.
pub trait Transport:
    GrpcService<
        Body,
        Future: Send,
        Error: Into<StdError>,
        ResponseBody: http_body::Body<Data = bytes::Bytes, Error: Into<StdError> + Send> + Send + 'static,
    > + Clone
    + Send
    + 'static
{
}

impl<T> Transport for T where
    T: GrpcService<
            Body,
            Future: Send,
            Error: Into<StdError>,
            ResponseBody: http_body::Body<Data = bytes::Bytes, Error: Into<StdError> + Send> + Send + 'static,
        > + Clone
        + Send
        + 'static
{
}

/// A client that calls.
#[derive(Clone, Debug)]
pub struct Caller<T> {
    client: GreeterClient<T>,
    deadline: Option<Duration>,
    patience: Option<Duration>,
}

impl<T: Transport> Caller<T> {
    /// Creates a caller over a transport. Its calls carry the deadline, if there is one.
    pub fn new(transport: T, deadline: Option<Duration>) -> Self {
        Self { client: GreeterClient::new(transport), deadline, patience: None }
    }

    /// Drops each call that is not answered within this time, without announcing a deadline to the
    /// server. Such a call ends with `CANCELLED`.
    #[must_use]
    pub fn dropping_after(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// Makes one call with a payload of 64 bytes, which the server returns.
    ///
    /// # Errors
    ///
    /// The status with which the call fails.
    pub async fn call(&mut self) -> Result<Response<GreetReply>, Status> {
        self.call_for(Duration::ZERO).await
    }

    /// Makes the same call; the server takes this long, in whole milliseconds.
    ///
    /// # Errors
    ///
    /// The status with which the call fails.
    pub async fn call_for(&mut self, work: Duration) -> Result<Response<GreetReply>, Status> {
        let delay_ms = work.as_millis().try_into().unwrap_or(u32::MAX);
        let mut request = Request::new(GreetRequest { delay_ms, payload: vec![7; 64], ..GreetRequest::default() });
        if let Some(deadline) = self.deadline {
            request.set_timeout(deadline);
        }
        match self.patience {
            None => self.client.greet(request).await,
            // Boxed, so that calls without it do not grow.
            Some(patience) => Box::pin(timeout(patience, self.client.greet(request)))
                .await
                .unwrap_or_else(|_| Err(Status::cancelled("dropped"))),
        }
    }

    /// Makes calls in sequence over one client.
    ///
    /// # Errors
    ///
    /// The status of the first failed call.
    pub async fn in_sequence(&mut self, operations: usize) -> Result<(), Status> {
        for _ in 0..operations {
            self.call().await?;
        }
        Ok(())
    }

    /// Keeps this many calls in flight, each over a clone, as the handlers of a server do.
    ///
    /// # Errors
    ///
    /// The status of the first failed call.
    pub async fn at_once(&self, width: usize, operations: usize) -> Result<(), Status> {
        let start = || {
            let mut caller = self.clone();
            async move { caller.call().await }
        };
        let mut running = FuturesUnordered::new();
        let mut started = 0;
        loop {
            while started < operations && running.len() < width {
                running.push(start());
                started += 1;
            }
            match running.next().await {
                Some(result) => drop(result?),
                None => return Ok(()),
            }
        }
    }
}
