//! The user, and a password that never appears in `Debug` or in an error.

use std::{fmt, path::PathBuf};

use discovery_core::Error;

use super::{file, settings::invalid};

/// The user as which the handle authenticates.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    user: String,
    password: Password,
}

/// A password, or the file that holds it.
#[derive(Clone)]
enum Password {
    File(PathBuf),
    Text(Secret),
}

/// Text that `Debug` never shows.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Credentials {
    pub(super) fn with_password(user: String, password: String) -> Self {
        Self { user, password: Password::Text(Secret(password)) }
    }

    pub(super) fn with_file(user: String, file: impl Into<PathBuf>) -> Self {
        Self { user, password: Password::File(file.into()) }
    }

    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    /// Replaces the user.
    pub(super) fn for_user(self, user: String) -> Self {
        Self { user, ..self }
    }

    /// Whether the password is in a file.
    pub(super) fn has_file(&self) -> bool {
        matches!(self.password, Password::File(_))
    }

    /// Whether there is a password in memory that is not empty.
    pub(super) fn has_text(&self) -> bool {
        matches!(&self.password, Password::Text(Secret(text)) if !text.is_empty())
    }

    /// Returns the password, reading its file if it is in one.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](discovery_core::ErrorKind::InvalidInput) if the file cannot be read or
    /// holds no password.
    pub(crate) fn read_password(&self) -> Result<Secret, Error> {
        let path = match &self.password {
            Password::File(path) => path,
            Password::Text(secret) => return Ok(secret.clone()),
        };
        // The path is not shown: it may be the password itself, given in the wrong place.
        let problem = |what: &str| invalid(format!("invalid password_file: it {what}"));
        let content = file::read(path).map_err(|error| problem("cannot be read").with_source(error))?;
        // Without the source, which shows a part of the content.
        let text = String::from_utf8(content).map_err(|_| problem("holds no text in UTF-8"))?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(problem("holds no password"));
        }
        Ok(Secret(password.to_owned()))
    }

    /// Checks everything except the content of the file.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.user.is_empty() || !(self.has_file() || self.has_text()) {
            return Err(invalid("invalid credentials: both a user and a password, or a password_file, are required"));
        }
        Ok(())
    }
}

impl Secret {
    /// Returns the text. Only the code that sends it may call this.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    /// Omits the path, which may be the password itself, given in the wrong place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::File(_)) { "(in a file)" } else { "(secret)" })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}
