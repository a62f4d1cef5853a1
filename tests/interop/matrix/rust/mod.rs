//! Our side of the matrix: a server and a client as processes of their own, so that they can be
//! killed. They speak the line protocol of `peer`, and take their options as one JSON object.

pub(crate) mod call;
mod kinds;
mod lines;
pub(crate) mod serve;
mod tally;

use serde::de::DeserializeOwned;
use serde_json::json;

use crate::failure::Failure;

/// Runs one of these processes. An error is an event too, as `peer` reports it.
pub(crate) async fn run<O: DeserializeOwned>(
    options: &str,
    main: impl AsyncFnOnce(O) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let result = match serde_json::from_str(options) {
        Ok(options) => main(options).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = &result {
        lines::emit("error", json!({ "message": error.to_string() }));
    }
    result
}
