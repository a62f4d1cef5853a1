use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind};

/// The name of a service: one path segment.
///
/// A name has 1 to 253 bytes of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`, and is neither `.` nor `..`,
/// so it can be part of a key, a path or a log line as it is. Namespaces belong in the backend's
/// prefix. Cloning is cheap.
///
/// ```
/// use discovery_core::ServiceName;
///
/// let payments: ServiceName = "payments".parse()?;
/// assert_eq!(payments.as_str(), "payments");
///
/// let error = "pay/ments".parse::<ServiceName>().unwrap_err();
/// assert!(error.to_string().contains("'/' is not allowed"));
/// # Ok::<(), discovery_core::Error>(())
/// ```
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ServiceName(Arc<str>);

/// The id of an instance within its service; default its address.
///
/// An id has 1 to 259 bytes of printable ASCII without space and `/`, and is neither `.` nor `..`,
/// because it is one segment of the registry's key. Two registrations with the same id are the same
/// instance: the later one takes over. Cloning is cheap.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct InstanceId(Arc<str>);

impl ServiceName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl InstanceId {
    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = Error;

    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`], with what is wrong and what is allowed.
    fn from_str(name: &str) -> Result<Self, Error> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        parse_segment(name, MAX_NAME_BYTES, allowed).map(Self).map_err(|problem| {
            Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "invalid service name {}: {problem}; allowed are 1 to {MAX_NAME_BYTES} bytes of A-Z a-z 0-9 . _ -, except \".\" and \"..\"",
                    excerpt(name)
                ),
            )
        })
    }
}

impl FromStr for InstanceId {
    type Err = Error;

    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`], with what is wrong and what is allowed.
    fn from_str(id: &str) -> Result<Self, Error> {
        let allowed = |c: char| c.is_ascii_graphic() && c != '/';
        parse_segment(id, MAX_ID_BYTES, allowed).map(Self).map_err(|problem| {
            Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "invalid instance id {}: {problem}; allowed are 1 to {MAX_ID_BYTES} bytes of printable ASCII without space and /, except \".\" and \"..\"",
                    excerpt(id)
                ),
            )
        })
    }
}

macro_rules! text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                (*text.0).to_owned()
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self, Error> {
                text.parse()
            }
        }

        impl TryFrom<&str> for $name {
            type Error = Error;

            fn try_from(text: &str) -> Result<Self, Error> {
                text.parse()
            }
        }
    };
}

text!(ServiceName);
text!(InstanceId);

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("it is empty")]
    Empty,
    #[error("it has {0} bytes")]
    TooLong(usize),
    #[error("it refers to a directory")]
    Dots,
    #[error("{0:?} is not allowed")]
    Character(char),
}

/// The grammar of both types: a path segment over an alphabet.
fn parse_segment(text: &str, max: usize, allowed: impl Fn(char) -> bool) -> Result<Arc<str>, Problem> {
    if text.is_empty() {
        return Err(Problem::Empty);
    }
    if text.len() > max {
        return Err(Problem::TooLong(text.len()));
    }
    if let Some(other) = text.chars().find(|c| !allowed(*c)) {
        return Err(Problem::Character(other));
    }
    if matches!(text, "." | "..") {
        return Err(Problem::Dots);
    }
    Ok(text.into())
}

/// Returns the input as it may be shown: quoted, escaped and truncated.
pub(crate) fn excerpt(text: &str) -> String {
    const SHOWN: usize = 64;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// The longest DNS name (RFC 1035).
const MAX_NAME_BYTES: usize = 253;
/// The longest DNS name with a colon and a port, so that every address is an id.
const MAX_ID_BYTES: usize = 259;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_invalid_name_is_an_error_that_names_what_is_allowed() {
        for (name, problem) in [
            ("", "it is empty"),
            ("a/b", "'/' is not allowed"),
            ("..", "it refers to a directory"),
            (".", "it refers to a directory"),
            ("a\nb", r"'\n' is not allowed"),
            ("ä", "'ä' is not allowed"),
            (&"a".repeat(300), "it has 300 bytes"),
        ] {
            let error = name.parse::<ServiceName>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            let text = error.to_string();
            assert!(text.contains(problem), "{text}");
            assert!(text.contains("allowed are 1 to 253 bytes"), "{text}");
            assert!(!text.contains('\n') && text.len() < 300, "{text}");
        }
    }

    #[test]
    fn an_id_may_be_an_address_but_not_a_path() {
        for id in ["10.0.0.1:80", "[::1]:80", "pod-7_a@b", "..."] {
            assert_eq!(id.parse::<InstanceId>().unwrap().as_str(), id);
        }
        for id in ["", "a/b", "..", "a b", "a\u{202e}b", "a\0b"] {
            assert_eq!(id.parse::<InstanceId>().unwrap_err().kind(), ErrorKind::InvalidInput, "{id:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_name_or_an_error(text in ".{0,300}") {
            match text.parse::<ServiceName>() {
                Ok(name) => prop_assert_eq!(name.to_string(), text),
                Err(error) => prop_assert!(!error.to_string().chars().any(char::is_control)),
            }
        }
    }
}
