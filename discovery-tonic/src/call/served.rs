use std::{error::Error as StdError, fmt, sync::Arc};

use discovery_core::{Instance, InstanceId};
use tonic::Status;

use crate::error::BoxError;

/// Which instance answered, and which were tried before: an extension of every response.
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
    /// `None` where there are none, which costs nothing.
    pub(crate) before: Option<Arc<[InstanceId]>>,
}

/// Which instances a failed call was sent to, and what the last one did: the source of the call's
/// [`tonic::Status`].
///
/// It never travels on: a status that a server passes to its own caller carries neither this nor
/// its text. A response that began says who gave it by its [`ServedBy`]; the status that its server
/// ends it with later carries nothing of this.
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
    /// The instance, as it was registered when the request was sent.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// The instances that the request was sent to before this one, in this order; empty where
    /// nothing was repeated.
    pub fn tried(&self) -> &[InstanceId] {
        self.before.as_deref().unwrap_or_default()
    }
}

impl Tried {
    pub(crate) fn new(instances: Vec<InstanceId>, cause: Option<BoxError>) -> Self {
        Self { instances, cause }
    }

    /// What a failed call carries, if a balanced channel made it fail.
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

    /// The instances that the request was sent to, in this order; empty where there was none to
    /// send it to.
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

/// A status whose source says who was tried.
pub(crate) fn with_tried(mut status: Status, tried: Tried) -> Status {
    status.set_source(Arc::new(tried));
    status
}
