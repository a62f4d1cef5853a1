//! An OpenTelemetry span for each attempt of a call, below the span of the call itself.
//!
//! ```sh
//! cargo run --example attempt-spans --features memory,server
//! ```

use std::sync::Arc;

use discovery::{
    BalancedChannel, Instance, MemoryBackend, RegisteredServer,
    channel::{AttemptOutcome, AttemptReport, RetryPolicy},
};
use greeter::{GreetRequest, Greeter, GreeterClient};
use opentelemetry::{
    Context, KeyValue,
    trace::{FutureExt, Span, SpanKind, Status, TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracer, SdkTracerProvider};
use tonic::transport::Server;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let exporter = InMemorySpanExporter::default(); // in production: OTLP
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let tracer = Arc::new(provider.tracer("greeter-client"));

    let backend = MemoryBackend::new();
    // Nobody listens at the discard port, and a tonic server at the other address.
    backend.put(&"greeter".parse()?, Instance::new("127.0.0.1:9".parse()?));
    let server = RegisteredServer::builder(backend.clone(), "greeter".parse()?).bind("127.0.0.1:0".parse()?).await?;
    let router = Server::builder().add_service(Greeter::new("one").into_service());
    tokio::spawn(server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)));

    let for_attempts = Arc::clone(&tracer);
    let channel = BalancedChannel::builder(backend, "greeter".parse()?)
        .retry(RetryPolicy::new(3)?)
        .on_attempt(move |attempt| record(&for_attempts, attempt))
        .build()?;

    // The hook runs in the task of the caller, so the attempts become children of this span.
    let call = Context::current_with_span(tracer.start("greeter.v1.Greeter/Greet"));
    GreeterClient::new(channel).greet(GreetRequest::default()).with_context(call.clone()).await?;
    call.span().end();
    for span in exporter.get_finished_spans()? {
        println!("{} of {}: {:?}", span.name, span.parent_span_id, span.attributes);
    }
    Ok(())
}

/// Records an attempt that has ended as a span. `previous-rpc-attempts` is a name of gRFC A72.
fn record(tracer: &SdkTracer, attempt: &AttemptReport<'_>) {
    let end = opentelemetry::time::now();
    let mut span = tracer
        .span_builder("Attempt.greeter.v1.Greeter/Greet")
        .with_kind(SpanKind::Client)
        .with_start_time(end - attempt.elapsed)
        .with_attributes([
            KeyValue::new("server.address", attempt.instance.address().to_string()),
            KeyValue::new("previous-rpc-attempts", attempt.number as i64 - 1),
        ])
        .start(tracer);
    if let AttemptOutcome::Failed(code) = attempt.outcome {
        span.set_status(Status::error(code.description()));
    }
    span.end_with_timestamp(end);
}
