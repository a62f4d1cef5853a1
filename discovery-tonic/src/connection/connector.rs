use discovery_core::{Address, Error, ErrorKind};
use futures::TryFutureExt;
use http::{
    Uri,
    uri::{Authority, Scheme},
};
use hyper::rt::{Read, Write};
use tokio::time::timeout;
use tower::{Service, ServiceExt, util::BoxCloneSyncService};

#[cfg(feature = "tls")]
use super::tls::client::TlsClient;
use super::{origin::Origin, settings::EndpointSettings, tcp::TcpConnector, wire::Io};
use crate::error::BoxError;

/// Opens the byte stream of a connection to an endpoint's address.
#[derive(Debug)]
pub(crate) struct Connector {
    transport: Transport,
    /// The scheme of requests to endpoints without an origin of their own; over TLS always https.
    scheme: Scheme,
    #[cfg(feature = "tls")]
    tls: Option<std::sync::Arc<TlsClient>>,
}

/// What carries the bytes, below TLS if there is any.
#[derive(Debug)]
pub(crate) enum Transport {
    Custom(BoxCloneSyncService<Uri, Box<dyn Io>, BoxError>),
    Tcp,
}

/// An open byte stream, and the origin of the requests on it.
pub(super) struct Connected {
    pub(super) io: Box<dyn Io>,
    pub(super) origin: Origin,
}

impl Connector {
    /// A connector without TLS of its own.
    pub(crate) fn plain(transport: Transport, scheme: Scheme) -> Self {
        Self {
            transport,
            scheme,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// A connector with TLS on top of what carries the bytes.
    #[cfg(feature = "tls")]
    pub(crate) fn with_tls(transport: Transport, tls: TlsClient) -> Self {
        Self { transport, scheme: Scheme::HTTPS, tls: Some(std::sync::Arc::new(tls)) }
    }

    /// Connects to an instance's address. If it is a name, `first` selects which of its addresses
    /// is tried first.
    pub(super) async fn connect(
        &self,
        address: &Address,
        settings: &EndpointSettings,
        first: usize,
    ) -> Result<Connected, BoxError> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return self.connect_with_tls(tls, address, settings, first).await;
        }
        let origin = settings.origin.clone().unwrap_or_else(|| Origin::of(self.scheme.clone(), address));
        if matches!(self.transport, Transport::Tcp) && origin.scheme == Scheme::HTTPS {
            let message = "an https origin over plain TCP: give the channel's builder `tls`, or a connector with TLS";
            return Err(Error::new(ErrorKind::InvalidInput, message).into());
        }
        let io = self.transport.connect(&origin.scheme, address, settings, first).await?;
        Ok(Connected { io, origin })
    }

    #[cfg(feature = "tls")]
    async fn connect_with_tls(
        &self,
        tls: &std::sync::Arc<TlsClient>,
        address: &Address,
        settings: &EndpointSettings,
        first: usize,
    ) -> Result<Connected, BoxError> {
        if settings.origin.as_ref().is_some_and(|origin| origin.scheme != Scheme::HTTPS) {
            let message = "an http origin over TLS: allowed is https";
            return Err(Error::new(ErrorKind::InvalidInput, message).into());
        }
        let host = settings.origin.as_ref().map(|origin| origin.authority.host());
        let name = tls.name_for(settings.server_name.as_ref(), host, address)?;
        let origin = settings.origin.clone().unwrap_or_else(|| {
            // An address without a name of its own keeps its port.
            match tls.has_name(settings.server_name.as_ref()) {
                true => Origin::named(&name),
                false => Origin::of(Scheme::HTTPS, address),
            }
        });
        let io = self.transport.connect(&Scheme::HTTP, address, settings, first).await?;
        let limit = settings.connect_timeout;
        let too_slow = || Error::new(ErrorKind::DeadlineExceeded, format!("no TLS handshake within {limit:?}"));
        let io = timeout(limit, tls.shake_hands(io, name)).await.unwrap_or_else(|_| Err(too_slow().into()))?;
        Ok(Connected { io, origin })
    }
}

impl Transport {
    /// The user's connector, with its types erased.
    pub(crate) fn custom<C>(connector: C) -> Self
    where
        C: Service<Uri> + Clone + Send + Sync + 'static,
        C::Response: Read + Write + Send + Unpin + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send + 'static,
    {
        Self::Custom(BoxCloneSyncService::new(
            connector
                .map_response(|io| Box::new(io) as Box<dyn Io>)
                .map_err(Into::into)
                .map_future(TryFutureExt::into_future),
        ))
    }

    async fn connect(
        &self,
        scheme: &Scheme,
        address: &Address,
        settings: &EndpointSettings,
        first: usize,
    ) -> Result<Box<dyn Io>, BoxError> {
        let limit = settings.connect_timeout;
        match self {
            Self::Tcp => {
                let tcp = TcpConnector::new().connect_timeout(limit);
                Ok(Box::new(tcp.connect(address, first).await?))
            }
            Self::Custom(custom) => {
                let target = target(scheme, address);
                let connect = async { custom.clone().ready().await?.call(target).await };
                timeout(limit, connect).await.unwrap_or_else(|_| {
                    let message = format!("the connector returned no connection within {limit:?}");
                    Err(Error::new(ErrorKind::DeadlineExceeded, message).into())
                })
            }
        }
    }
}

/// The URI that a custom connector is given.
fn target(scheme: &Scheme, address: &Address) -> Uri {
    let authority = Authority::try_from(address.to_string()).expect("an address is a host and a port");
    let uri = Uri::builder().scheme(scheme.clone()).authority(authority).path_and_query("/");
    uri.build().expect("scheme, authority and path make a URI")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trailing_dot_is_used_only_for_resolving() {
        let address = "payments.default.svc.:80".parse().unwrap();
        assert_eq!(target(&Scheme::HTTP, &address).authority().unwrap().as_str(), "payments.default.svc.:80");
        assert_eq!(Origin::of(Scheme::HTTP, &address).authority.as_str(), "payments.default.svc:80");
    }
}
