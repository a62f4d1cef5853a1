use std::{borrow::Cow, error::Error as StdError, fmt, sync::Arc};

use crate::ServiceName;

/// What went wrong, in the one type that every crate of `discovery` returns.
///
/// An error says what failed ([`kind`](Self::kind)) and where: the operation, the service and the registry's key, as far
/// as they are known. It is cheap to clone, because a [`Lost`](crate::Update::Lost) reaches every watcher.
///
/// `Display` prints one line without the cause; [`report`](Self::report) prints the whole chain.
///
/// ```
/// use discovery_core::{ErrorKind, ServiceName};
///
/// let error = "a/b".parse::<ServiceName>().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidInput);
/// assert!(!error.is_retryable());
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

/// The kinds of [`Error`], as coarse as a caller's reactions to them.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The backend was closed by its owner. Final.
    Closed,
    /// Another owner holds the entry. Final for this attempt.
    Conflict,
    /// An answer did not come in time; what was asked may have happened. Retryable.
    DeadlineExceeded,
    /// A fault of this library or of a backend, such as a panic. Final for this attempt.
    Internal,
    /// The caller's input is not allowed; the message says what is. Final.
    InvalidInput,
    /// The call needs a tokio runtime and there is none. Final.
    NoRuntime,
    /// The registry knows who asks and refuses. Final until someone grants it.
    PermissionDenied,
    /// The registry is full, asked for less, or holds more of a service than is read. Retryable.
    ResourceExhausted,
    /// The registry does not accept the credentials. Final until someone mends them.
    Unauthenticated,
    /// The registry cannot be reached, or cannot answer now. Retryable.
    Unavailable,
    /// The backend does not do this at all. Final.
    Unsupported,
}

struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    operation: Option<&'static str>,
    service: Option<ServiceName>,
    key: Option<String>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Makes an error of a kind, with a message in lower case and without a full stop.
    ///
    /// Whatever came from outside (a key, a value, a peer's text) belongs into the message only after
    /// [`escaped`](str::escape_debug).
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner { kind, message: message.into(), operation: None, service: None, key: None, source: None }))
    }

    /// Names the operation that failed, such as `"register"`; the first name given stays.
    #[must_use]
    pub fn with_operation(self, operation: &'static str) -> Self {
        self.edit(|inner| {
            inner.operation.get_or_insert(operation);
        })
    }

    /// Names the service concerned; the first name given stays.
    #[must_use]
    pub fn with_service(self, service: &ServiceName) -> Self {
        self.edit(|inner| {
            inner.service.get_or_insert_with(|| service.clone());
        })
    }

    /// Names the registry's key concerned, which is escaped; the first key given stays.
    #[must_use]
    pub fn with_key(self, key: &str) -> Self {
        self.edit(|inner| {
            inner.key.get_or_insert_with(|| key.escape_debug().to_string());
        })
    }

    /// Attaches the cause, which [`source`](StdError::source) returns and `Display` does not repeat.
    #[must_use]
    pub fn with_source(self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.edit(|inner| inner.source = Some(Arc::from(source.into())))
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self.0.kind {
            ErrorKind::DeadlineExceeded | ErrorKind::ResourceExhausted | ErrorKind::Unavailable => true,
            ErrorKind::Closed
            | ErrorKind::Conflict
            | ErrorKind::Internal
            | ErrorKind::InvalidInput
            | ErrorKind::NoRuntime
            | ErrorKind::PermissionDenied
            | ErrorKind::Unauthenticated
            | ErrorKind::Unsupported => false,
        }
    }

    /// What was being done.
    pub fn operation(&self) -> Option<&'static str> {
        self.0.operation
    }

    /// The service concerned.
    pub fn service(&self) -> Option<&ServiceName> {
        self.0.service.as_ref()
    }

    /// The registry's key concerned, escaped.
    pub fn key(&self) -> Option<&str> {
        self.0.key.as_deref()
    }

    /// Prints the error and all its causes in one line, for logs.
    ///
    /// ```
    /// use discovery_core::{Error, ErrorKind};
    ///
    /// let cause = std::io::Error::other("connection refused");
    /// let error = Error::new(ErrorKind::Unavailable, "no member answers").with_source(cause);
    /// assert_eq!(error.to_string(), "no member answers");
    /// assert_eq!(error.report().to_string(), "no member answers: connection refused");
    /// ```
    pub fn report(&self) -> impl fmt::Display + '_ {
        Report(self)
    }

    /// Edits in place while the error is new, on a copy once it is shared.
    fn edit(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        if Arc::get_mut(&mut self.0).is_none() {
            let inner = &*self.0;
            self.0 = Arc::new(Inner {
                kind: inner.kind,
                message: inner.message.clone(),
                operation: inner.operation,
                service: inner.service.clone(),
                key: inner.key.clone(),
                source: inner.source.clone(),
            });
        }
        change(Arc::get_mut(&mut self.0).expect("the error was just made unique"));
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        if let Some(operation) = inner.operation {
            write!(f, "{operation}: ")?;
        }
        f.write_str(&inner.message)?;
        match (&inner.service, &inner.key) {
            (Some(service), Some(key)) => write!(f, " (service {service}, key {key})"),
            (Some(service), None) => write!(f, " (service {service})"),
            (None, Some(key)) => write!(f, " (key {key})"),
            (None, None) => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}: {})", self.0.kind, self.report())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

struct Report<'a>(&'a Error);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_is_printed_once_and_the_innermost_stays() {
        let service: ServiceName = "payments".parse().unwrap();
        let error = Error::new(ErrorKind::Unavailable, "no member answers")
            .with_operation("grant")
            .with_operation("register")
            .with_service(&service)
            .with_key("payments/\u{1b}[31m");
        assert_eq!(error.operation(), Some("grant"));
        assert_eq!(error.to_string(), r"grant: no member answers (service payments, key payments/\u{1b}[31m)");
    }

    #[test]
    fn a_shared_error_is_copied_before_it_is_edited() {
        let first = Error::new(ErrorKind::Internal, "broken").with_source("cause");
        let second = first.clone().with_operation("watch");
        assert_eq!(first.operation(), None);
        assert_eq!(second.report().to_string(), "watch: broken: cause");
    }
}
