//! Parses the URIs of [`BalancedChannel::from_uris`](super::BalancedChannel::from_uris).

use discovery_core::{Address, Error, ErrorKind, FixedResolver, Host, Instance, ServiceName};
use http::uri::Scheme;

/// What a list of URIs names.
#[derive(Debug)]
pub(super) struct Servers {
    pub(super) resolver: FixedResolver,
    /// The service that they are instances of.
    pub(super) service: ServiceName,
    pub(super) scheme: Scheme,
}

/// Parses a list of URIs.
pub(super) fn servers<U: AsRef<str>>(uris: impl IntoIterator<Item = U>) -> Result<Servers, Error> {
    let mut instances = Vec::new();
    let mut common = None;
    for (number, uri) in (1..).zip(uris) {
        let (scheme, address) = parse(uri.as_ref(), number)?;
        if *common.get_or_insert_with(|| scheme.clone()) != scheme {
            return Err(invalid(format!("URI {number} has another scheme than the first; one channel has one scheme")));
        }
        instances.push(Instance::new(address));
    }
    let nothing = || invalid("there are no URIs; at least one is required".to_owned());
    let first = instances.first().ok_or_else(nothing)?;
    let service = name(first.address());
    let scheme = common.ok_or_else(nothing)?;
    Ok(Servers { resolver: FixedResolver::new(instances), service, scheme })
}

/// A URI is quoted in no error before it is known to have no user info, which may hold a password.
fn parse(uri: &str, number: usize) -> Result<(Scheme, Address), Error> {
    let refused = |problem: &str| invalid(format!("URI {number} {problem}; {ALLOWED}"));
    let (scheme, rest) = uri.split_once("://").ok_or_else(|| refused("has no scheme"))?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('@') {
        return Err(refused("has user info, which is not allowed"));
    }
    if rest.contains(['/', '?', '#']) {
        return Err(refused("has a path, a query or a fragment, which is not allowed"));
    }
    let (scheme, port) = match scheme.to_ascii_lowercase().as_str() {
        "http" => (Scheme::HTTP, 80),
        "https" => (Scheme::HTTPS, 443),
        _ => return Err(refused("has an unknown scheme")),
    };
    // The colons of an IPv6 address are in brackets.
    let after_host = rest.rsplit_once(']').map_or(rest, |(_, after)| after);
    let address = if after_host.contains(':') { rest.parse() } else { format!("{rest}:{port}").parse() };
    let address = address.map_err(|error| refused("has an invalid host or port").with_source(error))?;
    Ok((scheme, address))
}

/// Names the service after the host of an address. A host is a service name, except for the colons
/// of IPv6.
fn name(address: &Address) -> ServiceName {
    let name = match address.without_trailing_dot().host() {
        Host::Dns(name) => name.to_string(),
        Host::Ip(ip) => ip.to_string().replace(':', "-"),
    };
    name.parse().expect("letters, digits, `.`, `_` and `-`, and at most 253 bytes")
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidInput, message).with_operation("connect")
}

const ALLOWED: &str = "allowed is http://host or http://host:port, or https, and nothing after it";

#[cfg(test)]
mod tests {
    use discovery_core::Resolver;
    use futures::FutureExt;

    use super::*;

    fn addresses(resolver: &FixedResolver, service: &ServiceName) -> Vec<String> {
        let set = resolver.list(service).now_or_never().expect("a fixed set is at hand").unwrap();
        set.iter().map(|one| one.address().to_string()).collect()
    }

    #[test]
    fn uris_are_the_instances_of_a_service_named_after_the_first_host() {
        for (uris, expected, name) in [
            (vec!["http://h:1", "http://g:2"], vec!["g:2", "h:1"], "h"),
            (vec!["http://payments.internal"], vec!["payments.internal:80"], "payments.internal"),
            (vec!["HTTP://Payments_1.internal./"], vec!["payments_1.internal.:80"], "payments_1.internal"),
            (vec!["http://10.0.0.1:50051/"], vec!["10.0.0.1:50051"], "10.0.0.1"),
            (vec!["http://[2001:db8::7]"], vec!["[2001:db8::7]:80"], "2001-db8--7"),
            (vec!["http://[::1]:50051"], vec!["[::1]:50051"], "--1"),
            (vec!["http://h:1", "http://h:1"], vec!["h:1"], "h"),
        ] {
            let Servers { resolver, service, scheme } = servers(&uris).unwrap();
            assert_eq!(scheme, Scheme::HTTP);
            assert_eq!(
                (addresses(&resolver, &service), service.as_str()),
                (expected.iter().map(ToString::to_string).collect(), name),
                "{uris:?}"
            );
        }
    }

    #[test]
    fn a_uri_that_is_refused_is_an_error_that_names_what_is_allowed_and_no_secret() {
        for (uri, problem) in [
            ("", "has no scheme"),
            ("h:1", "has no scheme"),
            ("hunter2", "has no scheme"),
            ("unix:/hunter2", "has no scheme"),
            ("unix:///hunter2", "a path"),
            ("unix://hunter2", "an unknown scheme"),
            ("ftp://h", "an unknown scheme"),
            ("http://", "an invalid host or port"),
            ("http://:80", "an invalid host or port"),
            ("http://h:", "an invalid host or port"),
            ("http://h:0", "an invalid host or port"),
            ("http://h:http", "an invalid host or port"),
            ("http://::1", "an invalid host or port"),
            ("http://[::1", "an invalid host or port"),
            ("http://a b", "an invalid host or port"),
            ("http://169.254.169.254", "an invalid host or port"),
            ("http://h:1,g:2", "an invalid host or port"),
            ("http://root:hunter2@h:1", "user info"),
            ("http://root:hunter/2@h:1", "user info"),
            ("http://h/hunter2", "a path"),
            ("http://h//", "a path"),
            ("http://h?password=hunter2", "a path, a query"),
            ("http://h#hunter2", "a fragment"),
        ] {
            let error = servers(["http://h", uri]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{uri}: {error}");
            let text = format!("{error} {error:?}");
            assert!(
                text.contains("URI 2") && text.contains(problem) && text.contains("allowed is http://"),
                "{uri}: {text}"
            );
            assert!(!text.contains("hunter"), "{uri}: {text}");
        }
        assert_eq!(servers([""; 0]).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    #[test]
    fn https_is_the_scheme_of_all_uris_or_of_none() {
        let Servers { resolver, service, scheme } = servers(["https://h", "HTTPS://g:1"]).unwrap();
        assert_eq!((addresses(&resolver, &service), scheme), (vec!["g:1".into(), "h:443".into()], Scheme::HTTPS));
        let error = servers(["https://h", "http://g"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("URI 2 has another scheme"), "{error}");
    }
}
