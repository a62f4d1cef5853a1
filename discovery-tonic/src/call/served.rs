//! The instances that a call was sent to, as callers see them: in responses and in errors.

use std::{error::Error as StdError, fmt, sync::Arc};

use discovery_core::{Instance, InstanceId};
use tonic::Status;

use crate::error::BoxError;

/// The instance that answered a call, and those tried before: an extension of every response.
///
/// ```
/// # fn example(response: tonic::Response<()>) {
/// use discovery_tonic::ServedBy;
///
/// if let Some(served_by) = response.extensions().get::<ServedBy>() {
///     println!("answered by {}, after {:?}", served_by.instance().address(), served_by.tried());
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ServedBy {
    pub(crate) instance: Arc<Instance>,
    /// `None` if there are none, which saves an allocation.
    pub(crate) before: Option<Arc<[InstanceId]>>,
}

/// The instances that a failed call was sent to, and the cause of the last failure: a source of the
/// call's [`tonic::Status`].
///
/// It never travels on: a status that a server passes to its own caller carries neither this value
/// nor its text. If a response began, its [`ServedBy`] names the instance; a status that the server
/// ends that response with later carries no `Tried`. Nor does the error of a timeout that wraps the
/// channel or the call, such as tower's: use a [deadline](crate::BalancedChannel#deadlines).
///
/// ```
/// # fn example(status: tonic::Status) {
/// use discovery_tonic::Tried;
///
/// if let Some(tried) = Tried::from_status(&status) {
///     println!("tried {:?}", tried.instances());
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Tried {
    instances: Vec<InstanceId>,
    cause: Option<BoxError>,
}

impl ServedBy {
    /// Returns the instance, as it was registered when the request was sent.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// Returns the instances that the request was sent to before this one, in order of the
    /// attempts; empty if nothing was repeated.
    pub fn tried(&self) -> &[InstanceId] {
        self.before.as_deref().unwrap_or_default()
    }
}

impl Tried {
    pub(crate) fn new(instances: Vec<InstanceId>, cause: Option<BoxError>) -> Self {
        Self { instances, cause }
    }

    /// Returns the instances tried, if the status is an error of a balanced channel.
    pub fn from_status(status: &Status) -> Option<&Self> {
        let mut next = status.source();
        while let Some(source) = next {
            if let Some(tried) = source.downcast_ref() {
                return Some(tried);
            }
            next = source.source();
        }
        None
    }

    /// Returns the instances that the request was sent to, in order of the attempts; empty if it
    /// was sent to none.
    pub fn instances(&self) -> &[InstanceId] {
        &self.instances
    }
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.instances[..] {
            [] => f.write_str("sent to no instance"),
            [first, rest @ ..] => {
                write!(f, "sent to {first}")?;
                rest.iter().try_for_each(|id| write!(f, ", {id}"))
            }
        }
    }
}

impl StdError for Tried {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

/// Makes the instances tried the source of a status.
pub(crate) fn with_tried(mut status: Status, tried: Tried) -> Status {
    status.set_source(Arc::new(tried));
    status
}
