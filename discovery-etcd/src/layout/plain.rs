//! Addresses as plain text.

use discovery_core::{Address, Error, Instance, ServiceName};

use super::{
    Capabilities, Decoded, Layout, Tail, Written,
    go_json::{check_size, excerpt, invalid},
    segment,
};

/// The address of an instance as plain text, under a key of your choice.
///
/// | | |
/// |---|---|
/// | key | `<prefix>/<service>/<address>`, or another [template](Self::with_key) |
/// | value | `10.0.7.4:50051` |
/// | default TTL | 15 s |
/// | id | the address; any, if the template has `{id}` |
/// | weight | always 100 |
/// | metadata | none |
///
/// This is how the repositories of ToadOCR register (with the prefix `/etcdv3_resolver`), go-kit by
/// convention (`/services/<service>/<address>`), and many hand-made registries.
///
/// An instance with a weight or metadata, or with an id that the key does not hold, is refused when
/// it is registered. A reader accepts white space around the address, and one of the schemes
/// `http`, `https`, `grpc` and `grpcs` before it, as go-kit writes it; the scheme is ignored.
///
/// Parameters of a URL are form-encoded: in a template write `+` as `%2B`.
///
/// ```
/// use discovery_etcd::{EtcdConfig, Plain};
///
/// let config = EtcdConfig::new(["10.0.0.1"])
///     .prefix("/services")
///     .layout(Plain::with_key("{service}/providers/{id}")?);
/// let same: EtcdConfig =
///     "etcd://10.0.0.1//services?layout=plain&key_template={service}/providers/{id}".parse()?;
/// assert_eq!(format!("{config:?}"), format!("{same:?}"));
/// # Ok::<(), discovery_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Plain {
    /// The parts of the range before and after the service.
    before: String,
    after: String,
    last: Last,
}

/// What the last part of a key is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Last {
    Address,
    Id,
}

impl Plain {
    /// Creates a layout whose keys are `{service}/{address}`.
    pub fn new() -> Self {
        Self { before: String::new(), after: "/".to_owned(), last: Last::Address }
    }

    /// Creates a layout with this template of a key, below the prefix.
    ///
    /// It has `{service}` once and ends in `/{address}` or `/{id}`. The rest is printable ASCII.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](discovery_core::ErrorKind::InvalidInput) for any other template.
    pub fn with_key(template: &str) -> Result<Self, Error> {
        let problem = || {
            invalid(format!(
                "invalid key_template \"{}\": allowed is text with {{service}} once that ends in /{{address}} or /{{id}}",
                excerpt(template)
            ))
        };
        let (range, last) = match (template.strip_suffix("{address}"), template.strip_suffix("{id}")) {
            (Some(range), _) => (range, Last::Address),
            (None, Some(range)) => (range, Last::Id),
            (None, None) => return Err(problem()),
        };
        let (before, after) = range.split_once("{service}").ok_or_else(problem)?;
        let is_text = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'{' | b'}'));
        if template.len() > MAX_TEMPLATE_BYTES || !after.ends_with('/') || !is_text(before) || !is_text(after) {
            return Err(problem());
        }
        Ok(Self { before: before.to_owned(), after: after.to_owned(), last })
    }
}

impl Default for Plain {
    fn default() -> Self {
        Self::new()
    }
}

impl Layout for Plain {
    fn capabilities(&self) -> Capabilities {
        let capabilities = Capabilities::default().without_weights().without_metadata();
        match self.last {
            Last::Address => capabilities.without_ids(),
            Last::Id => capabilities,
        }
    }

    fn range(&self, service: &ServiceName) -> String {
        format!("{}{service}{}", self.before, self.after)
    }

    fn write(&self, _: &ServiceName, instance: &Instance, _: i64) -> Written {
        Written { tail: instance.id().to_string(), value: instance.address().to_string().into_bytes() }
    }

    fn classify(&self, tail: &str) -> Tail {
        segment::classify(tail)
    }

    fn subtree<'a>(&self, tail: &'a str) -> Option<&'a str> {
        segment::subtree(tail)
    }

    fn read(&self, tail: &str, value: &[u8]) -> Result<Vec<Decoded>, Error> {
        let id = tail.parse()?;
        check_size(value)?;
        let text = std::str::from_utf8(value).map_err(|_| invalid("it is not UTF-8"))?.trim();
        let text = match text.split_once("://") {
            Some(("http" | "https" | "grpc" | "grpcs", rest)) => rest.strip_suffix('/').unwrap_or(rest),
            _ => text,
        };
        let address: Address = text.parse()?;
        Ok(vec![Instance::new(address).with_id(id).into()])
    }
}

const MAX_TEMPLATE_BYTES: usize = 512;

#[cfg(test)]
mod tests {
    use discovery_core::ErrorKind;

    use super::*;

    #[test]
    fn a_template_determines_the_keys() {
        let service = "payments".parse().unwrap();
        let instance = Instance::new("10.0.0.1:80".parse().unwrap());
        for (template, range, has_ids) in [
            ("{service}/{address}", "payments/", false),
            ("{service}/{id}", "payments/", true),
            ("services/{service}/providers/{id}", "services/payments/providers/", true),
            ("/svc-{service}//{address}", "/svc-payments//", false),
        ] {
            let layout = Plain::with_key(template).unwrap();
            assert_eq!(layout.range(&service), range);
            assert_eq!(layout.capabilities().has_ids(), has_ids);
            let written = layout.write(&service, &instance, 0);
            assert_eq!(written, Written { tail: "10.0.0.1:80".to_owned(), value: b"10.0.0.1:80".to_vec() });
        }
        for template in [
            "",
            "{service}",
            "{service}{id}",
            "{service}-{id}",
            "x/{id}",
            "{service}/{id}/",
            "{service}/{service}/{id}",
            "{service}/{lease}/{id}",
            "{service}/{id}/{address}",
            "a b/{service}/{id}",
            "ä/{service}/{id}",
            &format!("{}{{service}}/{{id}}", "x".repeat(600)),
        ] {
            let error = Plain::with_key(template).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("allowed is") && error.to_string().len() < 500, "{error}");
        }
    }

    #[test]
    fn addresses_are_read_with_white_space_and_scheme() {
        let read = |value: &[u8]| Plain::default().read("a1", value);
        for value in ["10.0.0.1:80", " 10.0.0.1:80\n", "http://10.0.0.1:80", "grpc://10.0.0.1:80/"] {
            let instances = read(value.as_bytes()).unwrap();
            assert_eq!(instances[0].instance().unwrap().address().to_string(), "10.0.0.1:80", "{value}");
            assert_eq!(instances[0].id().as_str(), "a1");
        }
        let huge = "1".repeat(70_000);
        for value in ["", "10.0.0.1", "http://10.0.0.1:80/path", "unix:/x", "ftp://10.0.0.1:80", "{}", &huge] {
            assert_eq!(read(value.as_bytes()).unwrap_err().kind(), ErrorKind::InvalidInput, "{value}");
        }
        assert!(read(b"\xff").is_err());
    }
}
