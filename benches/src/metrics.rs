//! The metrics of an etcd, read at its client URL.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::Failure;

/// All metrics of a member at one moment.
#[derive(Clone, Debug)]
pub struct Metrics(String);

/// A method of etcd's gRPC interface.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Method {
    /// A stream on which leases are kept alive.
    LeaseKeepAlive,
    /// A read of one key or many.
    Range,
    /// A transaction.
    Txn,
    /// A stream of watches.
    Watch,
}

impl Metrics {
    /// Reads the metrics of the member at this address.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub async fn read(address: &str) -> Result<Self, Failure> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let status = answer.lines().next().unwrap_or_default();
        if !status.contains(" 200 ") {
            return Err(format!("etcd did not return its metrics: {status}").into());
        }
        Ok(Self(answer))
    }

    /// Returns how many calls of a method, or streams if it opens those, have begun since the
    /// member started.
    #[must_use]
    pub fn started(&self, method: Method) -> f64 {
        self.sum("grpc_server_started_total", method.labels())
    }

    /// Returns how many streams of a method are open.
    #[must_use]
    pub fn open(&self, method: Method) -> f64 {
        self.started(method) - self.sum("grpc_server_handled_total", method.labels())
    }

    /// Returns the reads of the store, whatever caused them.
    #[must_use]
    pub fn reads(&self) -> f64 {
        self.sum("etcd_mvcc_range_total", "")
    }

    /// Sums all series of a name that have these labels.
    fn sum(&self, name: &str, labels: &str) -> f64 {
        let value = |line: &str| {
            let series = line.strip_prefix(name)?;
            let is_meant = series.starts_with(['{', ' ']) && series.contains(labels);
            is_meant.then(|| line.rsplit(' ').next()?.parse::<f64>().ok()).flatten()
        };
        self.0.lines().filter_map(value).sum()
    }
}

impl Method {
    /// Returns the labels as the metrics list them.
    fn labels(self) -> &'static str {
        match self {
            Self::LeaseKeepAlive => r#"grpc_method="LeaseKeepAlive",grpc_service="etcdserverpb.Lease""#,
            Self::Range => r#"grpc_method="Range",grpc_service="etcdserverpb.KV""#,
            Self::Txn => r#"grpc_method="Txn",grpc_service="etcdserverpb.KV""#,
            Self::Watch => r#"grpc_method="Watch",grpc_service="etcdserverpb.Watch""#,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_open_until_it_was_handled_with_any_code() {
        let watch = r#"grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream""#;
        let health = r#"grpc_method="Watch",grpc_service="grpc.health.v1.Health",grpc_type="server_stream""#;
        let metrics = Metrics(format!(
            "# TYPE grpc_server_started_total counter\n\
             grpc_server_started_total{{{watch}}} 7\n\
             grpc_server_started_total{{{health}}} 100\n\
             grpc_server_handled_total{{grpc_code=\"Canceled\",{watch}}} 2\n\
             grpc_server_handled_total{{grpc_code=\"OK\",{watch}}} 1\n\
             etcd_mvcc_range_total 1.2e+03\n\
             etcd_mvcc_range_total_other 5\n"
        ));
        assert_eq!(metrics.started(Method::Watch), 7.0);
        assert_eq!(metrics.open(Method::Watch), 4.0);
        assert_eq!(metrics.open(Method::Range), 0.0);
        assert_eq!(metrics.reads(), 1_200.0);
    }
}
