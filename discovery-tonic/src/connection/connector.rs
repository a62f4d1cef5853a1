use discovery_core::{Address, Error, ErrorKind};
use futures::TryFutureExt;
use http::{Uri, uri::Scheme};
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::time::timeout;
use tower::{Service, ServiceExt, util::BoxCloneSyncService};

use super::{settings::EndpointSettings, tcp, wire::Io};
use crate::error::BoxError;

/// Opens the byte stream of a connection to an endpoint's address.
#[derive(Clone, Debug)]
pub(crate) enum Connector {
    Custom(BoxCloneSyncService<Uri, Box<dyn Io>, BoxError>),
    PlainTcp(HttpConnector),
}

impl Connector {
    /// The default connector: plain TCP.
    pub(crate) fn plain_tcp() -> Self {
        Self::PlainTcp(tcp::connector())
    }

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

    /// Connects to an instance's address. If it is a name, `first` selects which of its addresses
    /// is tried first.
    pub(super) async fn connect(
        &self,
        address: &Address,
        settings: &EndpointSettings,
        first: usize,
    ) -> Result<Box<dyn Io>, BoxError> {
        let target = settings.target(address);
        let limit = settings.connect_timeout;
        match self {
            Self::PlainTcp(_) if target.scheme() == Some(&Scheme::HTTPS) => {
                let message = "an https origin over plain TCP: give the channel's builder a connector with TLS";
                Err(Error::new(ErrorKind::InvalidInput, message).into())
            }
            Self::PlainTcp(tcp) => tcp::connect(tcp, address, first, limit).await,
            Self::Custom(custom) => {
                let connect = async { custom.clone().ready().await?.call(target).await };
                timeout(limit, connect).await.unwrap_or_else(|_| {
                    let message = format!("the connector returned no connection within {limit:?}");
                    Err(Error::new(ErrorKind::DeadlineExceeded, message).into())
                })
            }
        }
    }
}
