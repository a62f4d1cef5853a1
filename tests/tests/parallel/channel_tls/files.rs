//! The files: what is checked when a channel is built, and when they are read again.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use discovery_core::{ErrorKind, FixedResolver};
use discovery_tonic::{BalancedChannel, ChannelTls, EndpointSettings};
use support::{Authority, Flaw, Log, eventually, scene::SOON};
use tracing::Level;

use super::{TlsServer, greet, trusting};

#[tokio::test(flavor = "multi_thread")]
async fn unusable_files_are_refused_when_the_channel_is_built() {
    let folder = tempfile::tempdir().unwrap();
    let other_folder = tempfile::tempdir().unwrap();
    let authority = Authority::in_folder(folder.path());
    let own = authority.client("own", Flaw::None);
    let other = Authority::in_folder(other_folder.path()).client("own", Flaw::None);
    let missing = folder.path().join("missing.pem");
    let fifo = fifo(folder.path());
    let huge = folder.path().join("huge.pem");
    fs::write(&huge, vec![b'x'; (1 << 20) + 1]).unwrap();
    let broken = format!("{}-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", authority.pem());
    let ca = || trusting(authority.pem());
    for (tls, expected) in [
        (ChannelTls::new().ca_file(&missing), "missing.pem\": it cannot be read"),
        (ChannelTls::new().ca_file(&fifo), "it is not a regular file"),
        (ChannelTls::new().ca_file(folder.path()), "it is not a regular file"),
        (ChannelTls::new().ca_file(&huge), "it has more than 1 MiB"),
        (ChannelTls::new().ca(broken), "a part of it is no certificate in PEM"),
        (ChannelTls::new().ca(own.key.clone()), "authority (in memory): it holds no certificate in PEM"),
        (ChannelTls::new().ca_file(authority.pem()), "authority (not a path): the path of a file is expected"),
        (ca().identity_files(&missing, &own.key_file), "certificate \""),
        (ca().identity_files(&own.key_file, &own.key_file), "own.key\": it holds no certificate in PEM"),
        (ca().identity_files(&own.cert_file, &own.cert_file), "own.pem\": it holds no private key in PEM"),
        (ca().identity_files(&own.cert_file, &own.key), "key (not a path): the path of a file is expected"),
        (ca().identity(own.cert.clone(), other.key.clone()), "key (in memory): it does not go with the certificate"),
        (ca().server_name("not a name"), "invalid server name \"not a name\": allowed are a host name and an IP"),
        (ca().server_name(""), "invalid server name \"\""),
    ] {
        let shown = format!("{tls:?}");
        let builder = BalancedChannel::builder(FixedResolver::new([]), "orders".parse().unwrap()).tls(tls);
        let error = builder.build().unwrap_err();
        let text = error.report().to_string();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::InvalidInput, Some("connect")), "{text}");
        assert!(text.contains(expected), "{text}");
        let key_line = own.key.lines().nth(1).unwrap();
        assert!(!format!("{text} {error:?} {shown}").contains(key_line), "{text}");
    }
    assert!(EndpointSettings::default().server_name("a b").is_err());
}

/// Half-written files leave the former ones in use, and the next good ones are used.
#[tokio::test]
async fn files_that_cannot_be_used_leave_the_former_ones_in_use() {
    let log = Log::down_to(Level::DEBUG);
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::in_folder(folder.path());
    let own = authority.client("own", Flaw::None);
    let server = TlsServer::start(&authority.server(Flaw::None), Some(authority.pem())).await;
    let tls = ChannelTls::new().ca_file(authority.file()).identity_files(&own.cert_file, &own.key_file);
    // Each second a new connection reads the files.
    let settings = EndpointSettings::default().max_connection_age(Duration::from_secs(1)).unwrap();
    let channel = server.channel().tls(tls).endpoint_settings(move |_| settings.clone()).build().unwrap();
    greet(&channel).await.unwrap();

    let connections = || log.with("endpoint connected").len();
    let half = &own.key[..own.key.len() / 2];
    fs::write(&own.key_file, half).unwrap();
    let former = connections();
    eventually("the former files are used", SOON, async || connections() >= former + 3).await;
    greet(&channel).await.unwrap();
    // That the files are read shows an expired certificate, which the server refuses.
    authority.client("own", Flaw::Expired);
    let refused = async || log.with("connection attempt failed").iter().any(|line| line.contains("CN=own; expired on"));
    eventually("the expired certificate is presented", SOON, refused).await;
    greet(&channel).await.unwrap();
    authority.client("own", Flaw::None);
    let former = connections();
    eventually("the good certificate is presented", SOON, async || connections() > former).await;
    greet(&channel).await.unwrap();
}

/// A file that never ends, such as a FIFO, keeps nothing waiting.
#[tokio::test]
async fn a_file_that_becomes_a_fifo_hangs_nothing() {
    let log = Log::down_to(Level::DEBUG);
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::in_folder(folder.path());
    let server = TlsServer::start(&authority.server(Flaw::None), None).await;
    let settings = EndpointSettings::default().max_connection_age(Duration::from_secs(1)).unwrap();
    let tls = ChannelTls::new().ca_file(authority.file());
    let channel = server.channel().tls(tls).endpoint_settings(move |_| settings.clone()).build().unwrap();
    greet(&channel).await.unwrap();
    fs::rename(fifo(folder.path()), authority.file()).unwrap();
    let former = log.with("endpoint connected").len();
    let connected = async || log.with("endpoint connected").len() >= former + 3;
    eventually("the former authorities are used", SOON, connected).await;
    greet(&channel).await.unwrap();
}

fn fifo(folder: &Path) -> PathBuf {
    let path = folder.join("fifo.pem");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}
