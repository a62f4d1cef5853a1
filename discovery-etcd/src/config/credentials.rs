use std::{fmt, fs, path::PathBuf};

use discovery_core::Error;

use super::settings::invalid;

/// The user that the handle is to etcd.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    user: String,
    password: Password,
}

/// Where the password is.
#[derive(Clone)]
enum Password {
    File(PathBuf),
    Text(Secret),
}

/// Text that is never shown.
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

    /// The same for another user.
    pub(super) fn for_user(self, user: String) -> Self {
        Self { user, ..self }
    }

    /// Whether the password is in a file.
    pub(super) fn has_file(&self) -> bool {
        matches!(self.password, Password::File(_))
    }

    /// Whether there is a password that is not in a file.
    pub(super) fn has_text(&self) -> bool {
        matches!(&self.password, Password::Text(Secret(text)) if !text.is_empty())
    }

    /// The password as it is now.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](discovery_core::ErrorKind::InvalidInput) where the file cannot be read or
    /// is empty.
    pub(crate) fn read_password(&self) -> Result<Secret, Error> {
        let path = match &self.password {
            Password::File(path) => path,
            Password::Text(secret) => return Ok(secret.clone()),
        };
        // Not shown where somebody took the password itself for a path: then there is no such file.
        let problem = |what: &str| invalid(format!("invalid password_file: it {what}"));
        let text = fs::read_to_string(path).map_err(|error| problem("cannot be read").with_source(error))?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(problem("holds no password"));
        }
        Ok(Secret(password.to_owned()))
    }

    /// Checks what can be checked without reading a file.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.user.is_empty() || !(self.has_file() || self.has_text()) {
            return Err(invalid("invalid credentials: a user and a password, or its file, belong together"));
        }
        Ok(())
    }
}

impl Secret {
    /// The text itself, for the one place that sends it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    /// Prints no path: somebody may have put the password there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::File(_)) { "(in a file)" } else { "(secret)" })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}
