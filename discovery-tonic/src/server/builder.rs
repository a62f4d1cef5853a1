//! The settings of a [`RegisteredServer`].

use std::{fmt, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use discovery_core::{Address, Claim, Error, ErrorKind, Instance, Registry, ServiceName};
use socket2::SockRef;
use tokio::{net::TcpListener, sync::Mutex};
use tonic_health::server::HealthReporter;

use super::{
    RegisteredServer, advertise,
    config::{ServerConfig, Services},
    health::Health,
    readiness::NotServing,
};

/// Builds a [`RegisteredServer`].
///
/// ```
/// # use discovery_core::{Backend, Error};
/// # fn example(backend: std::sync::Arc<dyn Backend>) -> Result<(), Error> {
/// use std::time::Duration;
/// use discovery_core::Claim;
/// use discovery_tonic::server::RegisteredServer;
///
/// // `checks` answers the health checks: add it to the router, next to your own services.
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
            services: Services::new(service),
            claim: Claim::default(),
            if_supported: false,
            ready: Mutex::new(Box::pin(std::future::ready(()))),
            health: None,
            not_serving: NotServing::default(),
            stop_on_signals: false,
            drain_time: Duration::from_secs(5),
            shutdown_timeout: Duration::from_secs(10),
        };
        Self { config, advertise: None, describe: Box::new(|instance| instance) }
    }

    /// Sets the address at which others reach the server, if that is not the one it listens at, for
    /// example behind network address translation or a forwarded port.
    ///
    /// The default is the address that the server is bound to, with the actual port. If that is the
    /// unspecified address, the default is the address of the interface of the default route: for
    /// `[::]` that of the IPv6 route or, if there is none and the socket accepts IPv4 too, that of
    /// the IPv4 route.
    pub fn advertise(mut self, address: Address) -> Self {
        self.advertise = Some(address);
        self
    }

    /// Sets what else to register: id, weight, metadata.
    ///
    /// ```
    /// # use discovery_core::{Backend, Error};
    /// # fn example(backend: std::sync::Arc<dyn Backend>) -> Result<(), Error> {
    /// use discovery_core::Weight;
    /// use discovery_tonic::server::RegisteredServer;
    ///
    /// let weight = Weight::new(200)?;
    /// let builder = RegisteredServer::builder(backend, "greeter".parse()?)
    ///     .instance(move |instance| instance.with_weight(weight));
    /// # Ok(())
    /// # }
    /// ```
    pub fn instance(mut self, describe: impl FnOnce(Instance) -> Instance + Send + 'static) -> Self {
        self.describe = Box::new(describe);
        self
    }

    /// Sets what to do if another owner has registered the same id; by default the server takes
    /// over, as a restarted process must.
    ///
    /// With [`Claim::IfAbsent`], the server stops gracefully with a
    /// [`Conflict`](ErrorKind::Conflict) if another owner's entry exists. That may be the entry of
    /// the server's own former process, if that was killed less than a time to live ago.
    pub fn claim(mut self, claim: Claim) -> Self {
        self.config.claim = claim;
        self
    }

    /// Registers the server under another service too, as the same instance: the same id, address,
    /// weight and metadata. A service that is named twice counts once.
    ///
    /// All services are registered, updated and left together. The server has reached
    /// [`Stage::Serving`](super::Stage::Serving) once all entries are written. Before that, a final
    /// error of one, such as a [`Conflict`](ErrorKind::Conflict), stops the server and removes the
    /// others.
    ///
    /// ```
    /// # use discovery_core::{Backend, Error};
    /// # fn example(backend: std::sync::Arc<dyn Backend>) -> Result<(), Error> {
    /// use discovery_tonic::server::RegisteredServer;
    ///
    /// let builder = RegisteredServer::builder(backend, "orders".parse()?).also("ingest".parse()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn also(mut self, service: ServiceName) -> Self {
        self.config.services.add(service);
        self
    }

    /// Lets the server serve without being registered if the backend does not support
    /// registrations, so that the same program runs on a fixed set, such as
    /// [`FixedResolver`](discovery_core::FixedResolver); default off, which ends the server with
    /// [`Unsupported`](ErrorKind::Unsupported).
    ///
    /// Such a server logs `serving without registering`, reaches
    /// [`Stage::Serving`](super::Stage::Serving), and its status stays
    /// [`Lost`](discovery_core::Status::Lost) with that error. [`ServerHandle::update`] fails with
    /// `Unsupported`, since nobody would see the change. Other errors have the same effect as
    /// without this setting.
    ///
    /// It stops without a [drain time](Self::drain_time): clients with a fixed set do not notice
    /// that a server leaves, so waiting would not help them. They notice its GOAWAY, and those that
    /// check health notice NOT_SERVING.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use discovery_core::FixedResolver;
    /// use discovery_tonic::server::{RegisteredServer, Stage};
    /// use greeter::Greeter;
    /// use tonic::transport::Server;
    ///
    /// // Or what `discovery::open` returns for a URL.
    /// let backend = FixedResolver::new([]);
    /// let server = RegisteredServer::builder(backend, "greeter".parse()?)
    ///     .register_if_supported()
    ///     .bind("127.0.0.1:0".parse()?)
    ///     .await?;
    /// let handle = server.handle();
    /// let greeter = Server::builder().add_service(Greeter::new("one").into_service());
    /// let running = tokio::spawn(
    ///     server.serve(|incoming, goaway| greeter.serve_with_incoming_shutdown(incoming, goaway)),
    /// );
    /// handle.reached(Stage::Serving).await;
    /// handle.stop();
    /// running.await??;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`ServerHandle::update`]: super::ServerHandle::update
    pub fn register_if_supported(mut self) -> Self {
        self.config.if_supported = true;
        self
    }

    /// Sets a future to wait for before registering, for example until caches are warm or a health
    /// check has passed; default none.
    ///
    /// Connections are accepted meanwhile, so a check may call the server itself. A server that
    /// calls others waits here until its own channels are ready
    /// ([`wait_until_ready`](crate::BalancedChannel::wait_until_ready)): otherwise its first calls
    /// may come before it knows whom to call.
    pub fn ready(mut self, ready: impl Future<Output = ()> + Send + 'static) -> Self {
        self.config.ready = Mutex::new(Box::pin(ready));
        self
    }

    /// Sets the reporter of the server's health (`grpc.health.v1`). It reports for the server as a
    /// whole and for the given gRPC services, such as `greeter.v1.Greeter`: SERVING from just
    /// before the server registers until it is asked to stop, NOT_SERVING otherwise.
    ///
    /// Meanwhile the program may set other statuses, which the registration can follow
    /// ([`when_not_serving`](Self::when_not_serving)).
    ///
    /// The service that answers the checks is the other half of
    /// [`tonic_health::server::health_reporter`], in the crate `tonic-health`.
    pub fn health_reporter<S: Into<String>>(
        mut self,
        reporter: HealthReporter,
        services: impl IntoIterator<Item = S>,
    ) -> Self {
        self.config.health = Some(Health::new(reporter, services.into_iter().map(Into::into)));
        self
    }

    /// Sets what becomes of the registrations while the server reports that it is not serving;
    /// default [`NotServing::Stay`]. Any other value needs a
    /// [`health_reporter`](Self::health_reporter), whose statuses are followed within the process.
    ///
    /// The server counts as not serving while it as a whole (the empty name) or one of the gRPC
    /// services named to `health_reporter` has a status other than SERVING, or none. This begins
    /// with the server's own report of SERVING, just before it registers, and ends when it is asked
    /// to stop.
    ///
    /// Each change of the entries is awaited before the next. Of changes of the health in the
    /// meantime only the last counts. While the registry is unreachable the server keeps trying, so
    /// in the end the registry has what the health is by then.
    ///
    /// With [`NotServing::Leave`]:
    ///
    /// - The status is [`Lost`](discovery_core::Status::Lost) with
    ///   [`Unavailable`](ErrorKind::Unavailable) while the server has left. A server that is not
    ///   serving from the beginning is not registered, and stays in
    ///   [`Stage::Starting`](super::Stage::Starting).
    /// - A server that returns does not take its id over from an owner who has it since, whatever
    ///   the [`claim`](Self::claim): its status is then
    ///   [`Superseded`](discovery_core::Status::Superseded). If its own entry could not be removed,
    ///   it registers soon after that entry is gone, which its lease ensures.
    /// - If all instances leave, their clients have none. With [`NotServing::ZeroWeight`] they
    ///   share the calls instead.
    ///
    /// ```
    /// # use discovery_core::{Backend, Error};
    /// # fn example(backend: std::sync::Arc<dyn Backend>) -> Result<(), Error> {
    /// use discovery_tonic::server::{NotServing, RegisteredServer};
    ///
    /// let (reporter, checks) = tonic_health::server::health_reporter();
    /// // Set the status later through `reporter`, for example while a database is unreachable.
    /// let builder = RegisteredServer::builder(backend, "greeter".parse()?)
    ///     .health_reporter(reporter.clone(), ["greeter.v1.Greeter"])
    ///     .when_not_serving(NotServing::ZeroWeight);
    /// # Ok(())
    /// # }
    /// ```
    pub fn when_not_serving(mut self, reaction: NotServing) -> Self {
        self.config.not_serving = reaction;
        self
    }

    /// Stops the server on Ctrl-C and, where it exists, SIGTERM: gracefully on the first signal, at
    /// once on the second.
    ///
    /// This affects the whole process for as long as it lives: after the server has stopped, the
    /// signals have no effect unless other code listens for them. Two signals within 50 ms count as
    /// one, since some tools, such as `timeout` of the coreutils, signal a process and then its
    /// group.
    pub fn stop_on_signals(mut self) -> Self {
        self.config.stop_on_signals = true;
        self
    }

    /// Sets how long the server keeps serving after it has left the registry, so that clients
    /// notice first; default 5 s. A server that was never registered does not wait.
    pub fn drain_time(mut self, time: Duration) -> Self {
        self.config.drain_time = time;
        self
    }

    /// Sets how long requests in flight may take after the drain time before they are cut; default
    /// 10 s, so that the [whole stop](super#how-long-it-takes-to-stop) takes less than 30 s.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.config.shutdown_timeout = timeout;
        self
    }

    /// Listens at an address; port 0 picks a free port. Clients may connect from then on, and are
    /// served once [`serve`](RegisteredServer::serve) is awaited.
    ///
    /// # Errors
    ///
    /// - [`Unavailable`](ErrorKind::Unavailable) if the address cannot be bound, or if it is the
    ///   unspecified address and there is no default route.
    /// - [`InvalidInput`](ErrorKind::InvalidInput) if the address may not be registered, or if
    ///   [`when_not_serving`](Self::when_not_serving) is set without a
    ///   [`health_reporter`](Self::health_reporter).
    /// - [`NoRuntime`](ErrorKind::NoRuntime) outside a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropped before completion, it leaves no listener behind.
    pub async fn bind(self, address: SocketAddr) -> Result<RegisteredServer, Error> {
        self.check()?;
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|error| self.error(format!("cannot listen at {address}"), error))?;
        self.listen(listener)
    }

    /// Uses an existing listener, such as one handed over by a supervisor.
    ///
    /// # Errors
    ///
    /// Same errors as [`bind`](Self::bind).
    pub fn listen_on(self, listener: std::net::TcpListener) -> Result<RegisteredServer, Error> {
        self.check()?;
        let listener = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
        let listener = listener.map_err(|error| self.error("cannot listen".to_owned(), error))?;
        self.listen(listener)
    }

    fn check(&self) -> Result<(), Error> {
        let checked = if tokio::runtime::Handle::try_current().is_err() {
            Err(Error::new(ErrorKind::NoRuntime, "a server needs a tokio runtime, and none is running here"))
        } else if self.config.not_serving != NotServing::Stay && self.config.health.is_none() {
            let message = "`when_not_serving` follows the statuses of a `health_reporter`, and none is set";
            Err(Error::new(ErrorKind::InvalidInput, message))
        } else {
            Ok(())
        };
        checked.map_err(|error| error.with_operation("listen").with_service(self.config.services.first()))
    }

    fn listen(self, listener: TcpListener) -> Result<RegisteredServer, Error> {
        let bound = listener.local_addr().map_err(|error| self.error("cannot listen".to_owned(), error))?;
        // `only_v6` fails for an IPv4 socket, for which the answer does not matter.
        let takes_ipv4 = SockRef::from(&listener).only_v6().is_ok_and(|only| !only);
        let address = self.advertise.clone().map_or_else(|| advertise::address(bound, takes_ipv4), Ok);
        let address =
            address.map_err(|error| error.with_operation("listen").with_service(self.config.services.first()))?;
        Ok(RegisteredServer::new(self.config, listener, (self.describe)(Instance::new(address))))
    }

    fn error(&self, message: String, cause: std::io::Error) -> Error {
        Error::new(ErrorKind::Unavailable, message)
            .with_source(cause)
            .with_operation("listen")
            .with_service(self.config.services.first())
    }
}

impl fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("ServerBuilder");
        shown
            .field("services", &self.config.services)
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
        // The default of the etcd backend.
        let deadline = Duration::from_secs(10);
        assert_eq!(
            deadline + drain_time + shutdown_timeout + LAST,
            Duration::from_secs(26),
            "as documented for the module"
        );
    }
}
