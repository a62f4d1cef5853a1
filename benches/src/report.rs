//! What a driver measured, from its output to the table: a name and a number on each line.

use std::{
    collections::HashMap,
    process::{Command, Stdio},
};

use crate::{Failure, callgrind::driver};

/// Numbers by their names.
#[derive(Clone, Debug)]
pub struct Report(HashMap<String, f64>);

impl Report {
    /// Runs a driver to its end and takes what it prints.
    ///
    /// # Errors
    ///
    /// Where it is missing, fails, or prints anything else.
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

    /// The number of this name.
    ///
    /// # Errors
    ///
    /// Where there is none.
    pub fn number(&self, name: &str) -> Result<f64, Failure> {
        self.0.get(name).copied().ok_or_else(|| format!("the driver did not say: {name}").into())
    }
}
