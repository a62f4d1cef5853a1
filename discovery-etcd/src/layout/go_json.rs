//! JSON as Go writes and reads it.

use std::fmt;

use discovery_core::{Error, ErrorKind};
use serde::{
    Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;

/// The fields of a Go struct that a layout reads, by name. Go ignores the case of names.
#[derive(Clone, Copy, Debug)]
pub(super) struct GoFields {
    pub(super) address: &'static str,
    pub(super) metadata: Option<&'static str>,
}

/// What was read of them.
#[derive(Debug, Default)]
pub(super) struct GoObject {
    pub(super) address: Option<String>,
    pub(super) metadata: Value,
}

impl GoFields {
    /// Reads a value, as tolerantly as Go reads it.
    pub(super) fn read(self, value: &[u8]) -> Result<GoObject, Error> {
        check_size(value)?;
        let mut deserializer = serde_json::Deserializer::from_slice(value);
        let read = self.deserialize(&mut deserializer).and_then(|read| deserializer.end().map(|()| read));
        read.map_err(|error| invalid("it is not the expected JSON").with_source(excerpt(&error.to_string())))
    }
}

impl GoObject {
    /// Returns the address as text.
    pub(super) fn address(&self, fields: GoFields) -> Result<&str, Error> {
        let text = self.address.as_deref().filter(|text| !text.is_empty());
        text.ok_or_else(|| invalid(format!("it has no {}", fields.address)))
    }
}

impl<'de> DeserializeSeed<'de> for GoFields {
    type Value = GoObject;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<GoObject, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for GoFields {
    type Value = GoObject;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with {}", self.address)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<GoObject, A::Error> {
        let mut read = GoObject::default();
        while let Some(name) = map.next_key::<String>()? {
            if name.eq_ignore_ascii_case(self.address) {
                // As in Go, `null` keeps the value of an earlier field of this name.
                read.address = map.next_value::<Option<String>>()?.or(read.address);
            } else if self.metadata.is_some_and(|metadata| name.eq_ignore_ascii_case(metadata)) {
                read.metadata = map.next_value()?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(read)
    }
}

/// Escapes the characters that Go's encoder escapes and serde_json does not. In JSON they occur
/// only inside strings, so the whole text can be replaced.
pub(super) fn go_escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out
}

/// Refuses a value that is too large to be read.
pub(super) fn check_size(value: &[u8]) -> Result<(), Error> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(invalid(format!("it has {} bytes; at most {MAX_VALUE_BYTES} are read", value.len())));
    }
    Ok(())
}

pub(super) fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

/// Escapes and cuts the error of a parser, which may quote the value.
pub(super) fn excerpt(text: &str) -> String {
    text.chars().take(MAX_SHOWN).flat_map(char::escape_debug).collect()
}

/// More than any instance takes: its 16 KiB of metadata are escaped twice, which makes them up to
/// seven times as long.
const MAX_VALUE_BYTES: usize = 128 << 10;
/// How many characters of a parser's error are kept.
const MAX_SHOWN: usize = 200;
