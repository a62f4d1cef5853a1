//! The settings of a program, from its environment.

use std::{
    env,
    error::Error,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use discovery::{Instance, InstanceId};

use crate::BoxError;

/// The settings of a program, which its environment holds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// `SHOP_REGISTRY`: the URL of the registry, such as `etcd://127.0.0.1:2379/shop`.
    pub registry: String,
    /// `SHOP_TLS`: the folder with `ca.pem`, `cert.pem` and `key.pem`; without it, plain text.
    pub tls: Option<PathBuf>,
    /// `SHOP_LISTEN`: where the program listens; default a free port of 127.0.0.1.
    pub listen: SocketAddr,
    /// `SHOP_METRICS`: where a server has `/metrics`; default nowhere.
    pub metrics: Option<SocketAddr>,
    /// `SHOP_INSTANCE`: the id of a server in the registry and in metrics; default its address.
    pub instance: Option<InstanceId>,
    /// `SHOP_DRAIN`: how long a server serves on after it has left the registry; default 5 s.
    pub drain: Duration,
    /// `SHOP_CONNECTION_AGE`: after this time a connection is replaced, so that renewed
    /// certificates come into use; default one hour.
    pub connection_age: Duration,
    /// `SHOP_RATE`: how many orders the worker places per second; default 10.
    pub rate: u32,
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    ///
    /// If `SHOP_REGISTRY` is missing, or if a variable cannot be parsed; the error names it.
    pub fn from_env() -> Result<Self, BoxError> {
        Ok(Self {
            registry: variable("SHOP_REGISTRY")?
                .ok_or("SHOP_REGISTRY is missing: set it to a URL such as etcd://127.0.0.1:2379/shop")?,
            tls: variable("SHOP_TLS")?,
            listen: variable("SHOP_LISTEN")?.unwrap_or(FREE_PORT),
            metrics: variable("SHOP_METRICS")?,
            instance: variable("SHOP_INSTANCE")?,
            drain: duration("SHOP_DRAIN")?.unwrap_or(Duration::from_secs(5)),
            connection_age: duration("SHOP_CONNECTION_AGE")?.unwrap_or(Duration::from_secs(3600)),
            rate: variable("SHOP_RATE")?.unwrap_or(10),
        })
    }

    /// Returns what gives the registered instance the id of these settings.
    pub fn naming(&self) -> impl FnOnce(Instance) -> Instance + use<> {
        let id = self.instance.clone();
        move |instance| match id {
            Some(id) => instance.with_id(id),
            None => instance,
        }
    }
}

fn variable<T: FromStr<Err: Error>>(name: &str) -> Result<Option<T>, BoxError> {
    let Some(text) = env::var_os(name) else { return Ok(None) };
    let text = text.into_string().map_err(|_| format!("{name} is not UTF-8"))?;
    text.parse().map(Some).map_err(|error| format!("invalid {name}: {error}").into())
}

fn duration(name: &str) -> Result<Option<Duration>, BoxError> {
    Ok(variable::<humantime::Duration>(name)?.map(Into::into))
}

const FREE_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
