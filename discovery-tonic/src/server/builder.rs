use std::{fmt, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use discovery_core::{Address, Claim, Error, ErrorKind, Instance, Registry, ServiceName};
use socket2::SockRef;
use tokio::{net::TcpListener, sync::Mutex};
use tonic_health::server::HealthReporter;

use super::{RegisteredServer, advertise, config::ServerConfig, health::Health};

/// Builds a [`RegisteredServer`].
///
/// ```
/// # fn example(backend: std::sync::Arc<dyn discovery_core::Backend>) -> Result<(), discovery_core::Error> {
/// use std::time::Duration;
/// use discovery_core::Claim;
/// use discovery_tonic::server::RegisteredServer;
///
/// // The second half answers the checks: it goes into the router, beside the services of the server's own.
/// let (reporter, checks) = tonic_health::server::health_reporter();
/// let builder = RegisteredServer::builder(backend, "greeter".parse()?)
///     .claim(Claim::IfAbsent)
///     .health_reporter(reporter, ["greeter.v1.Greeter"])
///     .drain_time(Duration::from_secs(5))
///     .shutdown_timeout(Duration::from_secs(10))
///     .stop_on_signals();
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct ServerBuilder {
    config: ServerConfig,
    advertise: Option<Address>,
    describe: Box<dyn FnOnce(Instance) -> Instance + Send>,
}

impl ServerBuilder {
    pub(super) fn new(registry: impl Registry, service: ServiceName) -> Self {
        let config = ServerConfig {
            registry: Arc::new(registry),
            service,
            claim: Claim::default(),
            ready: Mutex::new(Box::pin(std::future::ready(()))),
            health: None,
            stop_on_signals: false,
            drain_time: Duration::from_secs(5),
            shutdown_timeout: Duration::from_secs(10),
        };
        Self { config, advertise: None, describe: Box::new(|instance| instance) }
    }

    /// Where others reach the server, if not where it listens, as behind a translated or a
    /// forwarded port.
    ///
    /// By default the address that it is bound to, with the port that it really got; and bound to
    /// the unspecified address, that of the interface which the default route goes through. Bound
    /// to `[::]` that is the one for IPv6, or where none leads out, the one for IPv4 if the socket
    /// takes that as well.
    pub fn advertise(mut self, address: Address) -> Self {
        self.advertise = Some(address);
        self
    }

    /// What else the registry shall know: id, weight, metadata.
    ///
    /// ```
    /// # fn example(backend: std::sync::Arc<dyn discovery_core::Backend>) -> Result<(), discovery_core::Error> {
    /// use discovery_core::Weight;
    /// use discovery_tonic::server::RegisteredServer;
    ///
    /// let weight = Weight::new(200)?;
    /// let builder = RegisteredServer::builder(backend, "greeter".parse()?).instance(move |instance| instance.with_weight(weight));
    /// # Ok(())
    /// # }
    /// ```
    pub fn instance(mut self, describe: impl FnOnce(Instance) -> Instance + Send + 'static) -> Self {
        self.describe = Box::new(describe);
        self
    }

    /// What becomes of another owner of the same id; by default it is taken over, as by a process
    /// that was restarted.
    ///
    /// With [`Claim::IfAbsent`] the server ends in order with a [`Conflict`](ErrorKind::Conflict)
    /// where another owner's entry lives. That may be the server's own former life, killed less
    /// than a time to live ago.
    pub fn claim(mut self, claim: Claim) -> Self {
        self.config.claim = claim;
        self
    }

    /// Registers only once this has resolved: caches are warm, the health check has passed. By
    /// default at once.
    ///
    /// Connections are accepted meanwhile, so a check may call the server itself.
    pub fn ready(mut self, ready: impl Future<Output = ()> + Send + 'static) -> Self {
        self.config.ready = Mutex::new(Box::pin(ready));
        self
    }

    /// Tells the server's health (`grpc.health.v1`) by this reporter: for the server as a whole and
    /// for the gRPC services named, such as `greeter.v1.Greeter`, SERVING from before it registers
    /// until it shall stop, else NOT_SERVING.
    ///
    /// The service that answers with it is the other half of
    /// [`tonic_health::server::health_reporter`], of the crate `tonic-health`.
    pub fn health_reporter<S: Into<String>>(
        mut self,
        reporter: HealthReporter,
        services: impl IntoIterator<Item = S>,
    ) -> Self {
        self.config.health = Some(Health::new(reporter, services.into_iter().map(Into::into)));
        self
    }

    /// Takes ctrl-c, and SIGTERM where there is one, as requests to stop: gracefully at the first
    /// one, at once at the second.
    ///
    /// For the whole process, and for as long as it lives: once the server has stopped they do
    /// nothing, unless somebody else listens for them. Two within 50 ms count as one, since some
    /// signal a process and then its group, as `timeout` of the coreutils does.
    pub fn stop_on_signals(mut self) -> Self {
        self.config.stop_on_signals = true;
        self
    }

    /// How long the server serves on after it has left the registry, so that callers hear of that
    /// first; by default 5 s.
    pub fn drain_time(mut self, time: Duration) -> Self {
        self.config.drain_time = time;
        self
    }

    /// How long what is in flight after the drain time may take before it is cut; by default 10 s,
    /// so that the [whole](super#how-long-it-takes-to-stop) stays below 30 s.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.config.shutdown_timeout = timeout;
        self
    }

    /// Listens at an address; port 0 is any that is free. Callers may connect from here on, and are
    /// served once [`serve`](RegisteredServer::serve) is awaited.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](ErrorKind::Unavailable) where the address cannot be bound, or where it is
    /// the unspecified one and no route leads out; [`InvalidInput`](ErrorKind::InvalidInput) where
    /// it is none that may be registered; [`NoRuntime`](ErrorKind::NoRuntime) outside a tokio
    /// runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropped half-way, nothing listens.
    pub async fn bind(self, address: SocketAddr) -> Result<RegisteredServer, Error> {
        self.check_runtime()?;
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|error| self.error(format!("cannot listen at {address}"), error))?;
        self.listen(listener)
    }

    /// Takes a listener that is there already, as one handed over by a supervisor.
    ///
    /// # Errors
    ///
    /// As of [`bind`](Self::bind).
    pub fn listen_on(self, listener: std::net::TcpListener) -> Result<RegisteredServer, Error> {
        self.check_runtime()?;
        let listener = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
        let listener = listener.map_err(|error| self.error("cannot listen".to_owned(), error))?;
        self.listen(listener)
    }

    fn check_runtime(&self) -> Result<(), Error> {
        tokio::runtime::Handle::try_current().map(drop).map_err(|_| {
            let error = Error::new(ErrorKind::NoRuntime, "a server needs a tokio runtime, and none is running here");
            error.with_operation("listen").with_service(&self.config.service)
        })
    }

    fn listen(self, listener: TcpListener) -> Result<RegisteredServer, Error> {
        let bound = listener.local_addr().map_err(|error| self.error("cannot listen".to_owned(), error))?;
        // An error for an IPv4 socket, of which nobody asks.
        let takes_ipv4 = SockRef::from(&listener).only_v6().is_ok_and(|only| !only);
        let address = self.advertise.clone().map_or_else(|| advertise::address(bound, takes_ipv4), Ok);
        let address = address.map_err(|error| error.with_operation("listen").with_service(&self.config.service))?;
        Ok(RegisteredServer::new(self.config, listener, (self.describe)(Instance::new(address))))
    }

    fn error(&self, message: String, cause: std::io::Error) -> Error {
        Error::new(ErrorKind::Unavailable, message)
            .with_source(cause)
            .with_operation("listen")
            .with_service(&self.config.service)
    }
}

impl fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("ServerBuilder");
        shown
            .field("service", &self.config.service)
            .field("drain_time", &self.config.drain_time)
            .field("shutdown_timeout", &self.config.shutdown_timeout);
        shown.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use discovery_core::FixedResolver;
    use futures::FutureExt;

    use super::*;
    use crate::server::registered::LAST;

    #[test]
    fn outside_a_runtime_a_server_is_refused() {
        let builder = || ServerBuilder::new(FixedResolver::new([]), "greeter".parse().unwrap());
        let bound = builder().bind(([127, 0, 0, 1], 0).into()).now_or_never().expect("at once");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for server in [bound, builder().listen_on(listener)] {
            assert_eq!(server.unwrap_err().kind(), ErrorKind::NoRuntime);
        }
    }

    #[test]
    fn by_default_a_server_has_stopped_before_kubernetes_kills_it() {
        let ServerConfig { drain_time, shutdown_timeout, .. } =
            ServerBuilder::new(FixedResolver::new([]), "greeter".parse().unwrap()).config;
        // The etcd backend's.
        let deadline = Duration::from_secs(10);
        assert_eq!(deadline + drain_time + shutdown_timeout + LAST, Duration::from_secs(26), "as the module says");
    }
}
