use std::{borrow::Cow, error::Error as StdError, fmt, sync::Arc};

use crate::ServiceName;

/// The error type that every crate of `discovery` returns.
///
/// An error has a [`kind`](Self::kind) and names, as far as they are known, the operation, the
/// service and the registry's key. Cloning is cheap, because a [`Lost`](crate::Update::Lost)
/// reaches every watcher.
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

/// The kind of an [`Error`], as coarse as the reactions of a caller.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The owner closed the backend. Final.
    Closed,
    /// Another owner holds the entry. Final for this attempt.
    Conflict,
    /// No answer came in time; the operation may have taken effect. Retryable.
    DeadlineExceeded,
    /// A fault of this library or of a backend, such as a panic. Final for this attempt.
    Internal,
    /// The caller's input is not allowed; the message names what is. Final.
    InvalidInput,
    /// The call needs a tokio runtime and there is none. Final.
    NoRuntime,
    /// The registry knows the caller and refuses the operation. Final until someone permits it.
    PermissionDenied,
    /// The registry is full or throttles its clients, or the service has more entries than are
    /// read. Retryable.
    ResourceExhausted,
    /// The registry does not accept the credentials. Final until someone corrects them.
    Unauthenticated,
    /// The registry cannot be reached, or cannot answer now. Retryable.
    Unavailable,
    /// The backend does not support the operation. Final.
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
    /// Creates an error with a message, which is in lower case and has no full stop.
    ///
    /// Text that comes from outside (a key, a value, a peer's message) must be
    /// [escaped](str::escape_debug) before it is put into the message.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner { kind, message: message.into(), operation: None, service: None, key: None, source: None }))
    }

    /// Sets the operation that failed, such as `"register"`, unless one is already set.
    #[must_use]
    pub fn with_operation(self, operation: &'static str) -> Self {
        self.edit(|inner| {
            inner.operation.get_or_insert(operation);
        })
    }

    /// Sets the service concerned, unless one is already set.
    #[must_use]
    pub fn with_service(self, service: &ServiceName) -> Self {
        self.edit(|inner| {
            inner.service.get_or_insert_with(|| service.clone());
        })
    }

    /// Sets the registry's key concerned, which is escaped, unless one is already set.
    #[must_use]
    pub fn with_key(self, key: &str) -> Self {
        self.edit(|inner| {
            inner.key.get_or_insert_with(|| key.escape_debug().to_string());
        })
    }

    /// Sets the cause, which [`source`](StdError::source) returns and `Display` does not repeat.
    #[must_use]
    pub fn with_source(self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.edit(|inner| inner.source = Some(Arc::from(source.into())))
    }

    /// Returns the kind.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns whether the same call may succeed later without anyone's intervention.
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

    /// Returns the operation that failed.
    pub fn operation(&self) -> Option<&'static str> {
        self.0.operation
    }

    /// Returns the service concerned.
    pub fn service(&self) -> Option<&ServiceName> {
        self.0.service.as_ref()
    }

    /// Returns the registry's key concerned, escaped.
    pub fn key(&self) -> Option<&str> {
        self.0.key.as_deref()
    }

    /// Returns the error and all its causes in one line, for logs.
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

    /// Edits in place while the error is not shared, and a copy once it is.
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
    fn context_is_printed_once_and_the_first_stays() {
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
