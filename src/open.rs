use std::{collections::BTreeMap, sync::Arc};

use discovery_core::{Address, Backend, Error, ErrorKind, FixedResolver, Instance, ServiceName};

/// Opens the backend that a URL names.
///
/// | URL | Backend | Feature |
/// |---|---|---|
/// | `etcd://user:password@host:2379,host:2379/prefix?ttl=15s` | etcd; the port defaults to 2379; user, prefix and parameters are optional | `etcd` |
/// | `etcd://host/prefix?ca_file=/etc/etcd/ca.pem` | etcd over TLS; `cert_file` and `key_file` are for client certificates | `etcd-tls` |
/// | `memory:` | a registry in this process, a new one for each call | `memory` |
/// | `fixed://host:80,host:81` | exactly these instances, for every service; it accepts no registrations | |
/// | `fixed://?orders=host:80,host:81&ingest=host:82` | exactly these instances of each service; one that is not named has none | |
///
/// Returns immediately. If the registry cannot be reached, calls on the backend report that, and
/// the backend keeps trying.
///
/// So one variable decides between a registry in production and fixed addresses in development. A
/// server runs on either with `ServerBuilder::register_if_supported`.
///
/// Open a registry once per process and clone the [`Arc`] for each channel and server: each call
/// creates a separate backend, with its own connection and lease.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), discovery::Error> {
/// use discovery::Resolver;
///
/// let backend = discovery::open("fixed://10.0.0.1:80,10.0.0.2:80")?;
/// assert_eq!(backend.list(&"payments".parse()?).await?.len(), 2);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`InvalidInput`](ErrorKind::InvalidInput) for an invalid URL, with what is allowed;
/// [`Unsupported`](ErrorKind::Unsupported) if its scheme, or the TLS that it asks for, is not
/// compiled in, with the missing Cargo feature; [`NoRuntime`](ErrorKind::NoRuntime) outside a tokio
/// runtime. An error never repeats the URL, which may hold a password.
pub fn open(url: &str) -> Result<Arc<dyn Backend>, Error> {
    by_scheme(url).map_err(|error| error.with_operation("open"))
}

fn by_scheme(url: &str) -> Result<Arc<dyn Backend>, Error> {
    let (scheme, rest) = url.split_once(':').ok_or_else(no_scheme)?;
    match scheme {
        "etcd" => etcd(url),
        "fixed" => fixed(rest),
        "memory" => memory(rest),
        _ => Err(unknown(scheme, rest)),
    }
}

#[cfg(feature = "etcd")]
fn etcd(url: &str) -> Result<Arc<dyn Backend>, Error> {
    let config: discovery_etcd::EtcdConfig = url.parse()?;
    require_runtime()?;
    Ok(Arc::new(discovery_etcd::EtcdBackend::new(config)?))
}

#[cfg(not(feature = "etcd"))]
fn etcd(_: &str) -> Result<Arc<dyn Backend>, Error> {
    Err(missing("etcd"))
}

#[cfg(feature = "memory")]
fn memory(rest: &str) -> Result<Arc<dyn Backend>, Error> {
    if !matches!(rest, "" | "//") {
        return Err(invalid("a memory: URL has nothing after its scheme; allowed is memory:"));
    }
    require_runtime()?;
    Ok(Arc::new(discovery_memory::MemoryBackend::new()))
}

#[cfg(not(feature = "memory"))]
fn memory(_: &str) -> Result<Arc<dyn Backend>, Error> {
    Err(missing("memory"))
}

fn fixed(rest: &str) -> Result<Arc<dyn Backend>, Error> {
    let list =
        rest.strip_prefix("//").filter(|list| !list.is_empty()).ok_or_else(|| fixed_error("it has no addresses"))?;
    let (list, parameters) = match list.split_once('?') {
        Some((list, parameters)) => (list, Some(parameters)),
        None => (list, None),
    };
    // An address is quoted in the error about it, so text that could hold a secret is rejected
    // first.
    let is_more = |text: &str| text.contains(['@', '/', '?', '#']);
    if is_more(list) || parameters.is_some_and(is_more) {
        return Err(fixed_error("it has a user, a path, a fragment or a second ?"));
    }
    let resolver = match parameters {
        None => FixedResolver::new(instances(list)?),
        Some(_) if !list.is_empty() => return Err(fixed_error("it has a list for all services and parameters too")),
        Some(parameters) => FixedResolver::by_service(sets(parameters)?),
    };
    require_runtime()?;
    Ok(Arc::new(resolver))
}

fn instances(list: &str) -> Result<Vec<Instance>, Error> {
    list.split(',').map(|text| text.parse::<Address>().map(Instance::new)).collect()
}

/// Parses a set per service. Neither a service name nor an address has characters that would need
/// percent-encoding.
///
/// No part is quoted in an error, since parameters of other URLs may be passwords.
fn sets(parameters: &str) -> Result<BTreeMap<ServiceName, Vec<Instance>>, Error> {
    let mut sets = BTreeMap::new();
    for (number, parameter) in (1..).zip(parameters.split('&')) {
        let invalid = |problem: &str| fixed_error(&format!("parameter {number} {problem}"));
        let (service, list) = parameter.split_once('=').ok_or_else(|| invalid("has no ="))?;
        let service: ServiceName = service.parse().map_err(|_| {
            invalid("is not named after a service, whose name is 1 to 253 bytes of A-Z a-z 0-9 . _ -, except \".\" and \"..\"")
        })?;
        if list.is_empty() {
            return Err(invalid("has no addresses; leave a service without instances out"));
        }
        let instances = instances(list)
            .map_err(|_| invalid("has an address that is invalid or refused, such as a link-local one"))?;
        if sets.insert(service, instances).is_some() {
            return Err(invalid("names a service that an earlier one names"));
        }
    }
    Ok(sets)
}

fn fixed_error(problem: &str) -> Error {
    let message = format!(
        "invalid fixed: URL: {problem}; allowed are fixed://host:port,host:port for all services, and fixed://?service=host:port,host:port&service=host:port for each its own"
    );
    Error::new(ErrorKind::InvalidInput, message)
}

/// Required for every scheme, so that code that works with one of them works with all.
fn require_runtime() -> Result<(), Error> {
    let handle = tokio::runtime::Handle::try_current();
    handle.map(drop).map_err(|_| Error::new(ErrorKind::NoRuntime, "no tokio runtime is running here"))
}

fn no_scheme() -> Error {
    Error::new(ErrorKind::InvalidInput, format!("the URL has no scheme; allowed are {SCHEMES}"))
}

/// Names the scheme only if it looks like one: `name:password@host` begins like a URL too.
fn unknown(scheme: &str, rest: &str) -> Error {
    let grammar = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    if !rest.starts_with("//") || scheme.is_empty() || scheme.len() > 32 || !scheme.chars().all(grammar) {
        return no_scheme();
    }
    Error::new(ErrorKind::InvalidInput, format!("the scheme {scheme}:// is unknown; allowed are {SCHEMES}"))
}

#[cfg(not(all(feature = "etcd", feature = "memory")))]
fn missing(feature: &'static str) -> Error {
    let message =
        format!("this program was built without {feature}; enable the Cargo feature `{feature}` of `discovery`");
    Error::new(ErrorKind::Unsupported, message)
}

#[cfg(feature = "memory")]
fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

const SCHEMES: &str = "etcd://, fixed:// and memory:";

#[cfg(test)]
mod tests {
    use discovery_core::{Instance, Registry, Resolver, ServiceName};

    use super::*;

    fn service() -> ServiceName {
        "payments".parse().unwrap()
    }

    #[test]
    fn an_invalid_url_is_an_error_that_names_what_is_allowed() {
        for (url, expected) in [
            ("", "the URL has no scheme; allowed are etcd://, fixed:// and memory:"),
            ("payments", "the URL has no scheme"),
            (":", "the URL has no scheme"),
            ("://h:1", "the URL has no scheme"),
            ("host:2379", "the URL has no scheme"),
            ("http://h:1", "the scheme http:// is unknown; allowed are etcd://, fixed:// and memory:"),
            ("consul://h:1", "the scheme consul:// is unknown"),
            ("ETCD://h:1", "the scheme ETCD:// is unknown"),
            ("fixed", "the URL has no scheme"),
            ("fixed:", "allowed are fixed://host:port,host:port"),
            ("fixed://", "allowed are fixed://host:port,host:port"),
            ("fixed:h:1", "allowed are fixed://host:port,host:port"),
            ("fixed:?orders=h:1", "allowed are fixed://host:port,host:port"),
            ("fixed://h:1/path", "it has a user, a path"),
            ("fixed://h:1?weight=3", "a list for all services and parameters too"),
            ("fixed://h:1?", "a list for all services and parameters too"),
            ("fixed://?", "parameter 1 has no ="),
            ("fixed://?orders", "parameter 1 has no ="),
            ("fixed://?orders=h:1&", "parameter 2 has no ="),
            ("fixed://?=h:1", "parameter 1 is not named after a service"),
            ("fixed://?orders=h:1&in%67est=h:2", "parameter 2 is not named after a service"),
            ("fixed://?orders=", "parameter 1 has no addresses"),
            ("fixed://?orders=h:1,", "parameter 1 has an address that is invalid"),
            ("fixed://?orders=h:1&ingest=h", "parameter 2 has an address that is invalid"),
            ("fixed://?orders=169.254.169.254:80", "such as a link-local one"),
            ("fixed://?orders=h:1=h:2", "parameter 1 has an address that is invalid"),
            ("fixed://?orders=h:1&ingest=h:2&orders=h:3", "parameter 3 names a service that an earlier one names"),
            ("fixed://?orders=h:1?ingest=h:2", "a second ?"),
            ("fixed://?orders=h:1#ingest=h:2", "a fragment"),
            ("fixed:///?orders=h:1", "a path"),
            ("fixed://h", "invalid address \"h\": it has no port"),
            ("fixed://h:1,", "invalid address \"\""),
            ("fixed://h:1,h:0", "invalid address \"h:0\": the port"),
            ("fixed://h:1,169.254.169.254:80", "link-local addresses are refused"),
        ] {
            let error = open(url).err().unwrap_or_else(|| panic!("{url:?} was accepted"));
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url:?}: {error}");
            assert!(error.to_string().contains(expected), "{url:?}: {error}");
            assert_eq!(error.operation(), Some("open"), "{url:?}");
        }
    }

    #[test]
    fn errors_keep_secrets() {
        for url in [
            "hunter2",
            "root:hunter2@h:2379",
            "hunter2:root@h:2379",
            "hunter2:",
            "hunter2\n://h:2379",
            "consul://root:hunter2@h:2379",
            "fixed://root:hunter2@h:1",
            "fixed://h:1?password=hunter2",
            "fixed://?password=hunter2",
            "fixed://?password=a&hunter2",
            "fixed://?password=a:1&hunter2=",
            "fixed://?hunter2=a:1&hunter2=b:2",
            "fixed://?orders=root:hunter2@h:1",
            "memory://root:hunter2@h:1",
            "etcd://root:hunter2@h:1,,/?ttl=soon",
            "etcd://root:hunter2@",
            "etcd://root:hunter2@h:99999",
            "etcd://root:hunter2@10.1.2.3:2379",
            "etcd://root:hunter2/2@10.1.2.3:2379",
            "etcd://root:hunter2?2@10.1.2.3:2379",
            "etcd://root:hunter2#2@10.1.2.3:2379",
            "etcd:root:hunter2@h:1",
        ] {
            let error = open(url).err().unwrap_or_else(|| panic!("{url:?} was accepted"));
            assert!(!format!("{error} {error:?} {}", error.report()).contains("hunter2"), "{url:?}: {error:?}");
        }
    }

    #[test]
    fn outside_a_runtime_is_a_typed_error() {
        let compiled_in = [
            Some("fixed://h:1"),
            cfg!(feature = "memory").then_some("memory:"),
            cfg!(feature = "etcd").then_some("etcd://127.0.0.1:2379"),
        ];
        for url in compiled_in.into_iter().flatten() {
            let error = open(url).err().unwrap_or_else(|| panic!("{url:?} was accepted"));
            assert_eq!(error.kind(), ErrorKind::NoRuntime, "{url:?}: {error}");
        }
    }

    #[tokio::test]
    async fn fixed_resolves_its_list_and_accepts_no_registration() {
        let backend = open("fixed://10.0.0.2:80,[2001:db8::1]:80").unwrap();
        let set = backend.list(&service()).await.unwrap();
        let addresses: Vec<String> = set.iter().map(|one| one.address().to_string()).collect();
        assert_eq!(addresses, ["10.0.0.2:80", "[2001:db8::1]:80"]);

        let error = backend.register(&service(), Instance::new("10.0.0.3:80".parse().unwrap())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }

    #[tokio::test]
    async fn fixed_resolves_the_list_of_each_service_and_no_other() {
        let backend = open("fixed://?orders=10.0.0.2:80,[2001:db8::1]:80&in.gest_2-x=h:3").unwrap();
        for (service, expected) in [
            ("orders", vec!["10.0.0.2:80", "[2001:db8::1]:80"]),
            ("in.gest_2-x", vec!["h:3"]),
            ("payments", vec![]),
            ("Orders", vec![]),
        ] {
            let set = backend.list(&service.parse().unwrap()).await.unwrap();
            let addresses: Vec<String> = set.iter().map(|one| one.address().to_string()).collect();
            assert_eq!(addresses, expected, "{service}");
        }
    }

    #[cfg(feature = "memory")]
    #[tokio::test]
    async fn memory_is_a_new_registry_with_each_call() {
        let one = open("memory:").unwrap();
        let other = open("memory:").unwrap();
        let _registration = one.register(&service(), Instance::new("10.0.0.1:80".parse().unwrap())).await.unwrap();
        assert_eq!(one.list(&service()).await.unwrap().len(), 1);
        assert_eq!(other.list(&service()).await.unwrap().len(), 0);
    }

    #[cfg(feature = "memory")]
    #[test]
    fn a_memory_url_has_nothing_after_its_scheme() {
        let error = open("memory:shared").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("allowed is memory:"), "{error}");
    }

    #[cfg(not(feature = "memory"))]
    #[test]
    fn a_scheme_that_is_not_compiled_in_names_its_feature() {
        let error = open("memory:").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("`memory`"), "{error}");
    }

    #[cfg(feature = "etcd-tls")]
    #[tokio::test]
    async fn tls_files_are_read_at_once() {
        let error = open("etcd://etcd.example?ca_file=/nonexistent/ca.pem").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("/nonexistent/ca.pem"), "{error}");
    }

    #[cfg(not(feature = "etcd"))]
    #[test]
    fn etcd_that_is_not_compiled_in_names_its_feature() {
        let error = open("etcd://127.0.0.1:2379").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("`etcd`"), "{error}");
    }
}
