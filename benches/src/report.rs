//! The output of a driver on its way to the table: a name and a number per line.

use std::{
    collections::HashMap,
    process::{Command, Stdio},
};

use crate::{Failure, callgrind::driver};

/// Numbers by name.
#[derive(Clone, Debug)]
pub struct Report(HashMap<String, f64>);

impl Report {
    /// Runs a driver to its end and reads what it prints.
    ///
    /// # Errors
    ///
    /// If it is missing, fails, or prints anything else.
    pub fn of(name: &str, arguments: &[String]) -> Result<Self, Failure> {
        let mut command = Command::new(driver(name)?);
        let output = command.args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            return Err(format!("{command:?} failed: {}", output.status).into());
        }
        let text = String::from_utf8(output.stdout)?;
        let mut numbers = HashMap::new();
        for line in text.lines() {
            eprintln!("{name} {line}");
            let (name, number) = line.rsplit_once(' ').ok_or_else(|| format!("no name and number: {line}"))?;
            numbers.insert(name.to_owned(), number.parse()?);
        }
        Ok(Self(numbers))
    }

    /// Returns the number with this name.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn number(&self, name: &str) -> Result<f64, Failure> {
        self.0.get(name).copied().ok_or_else(|| format!("the driver did not report {name}").into())
    }
}
