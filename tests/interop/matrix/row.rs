//! The table: one line per scene.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// The result of one scene.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Row {
    pub(crate) generation: String,
    pub(crate) scene: String,
    pub(crate) direction: String,
    pub(crate) calls: u64,
    pub(crate) failed: u64,
    pub(crate) time: Duration,
    /// Figures and remarks.
    pub(crate) notes: Vec<String>,
    /// The reason, if a promise is broken.
    pub(crate) broken: Option<String>,
    /// The last lines of the scene's processes.
    pub(crate) lines: Vec<String>,
}

impl Row {
    /// Returns the row of a generation whose scenes could not all be played.
    pub(crate) fn of_all_scenes(generation: &str, error: &Failure) -> Self {
        Self {
            generation: generation.to_owned(),
            scene: "all scenes".to_owned(),
            direction: String::new(),
            calls: 0,
            failed: 0,
            time: Duration::ZERO,
            notes: Vec::new(),
            broken: Some(error.to_string()),
            lines: Vec::new(),
        }
    }
}

/// Prints the table, and what is known about each scene that failed.
pub(crate) fn print(rows: &[Row]) {
    println!(
        "{:<10} {:<28} {:<21} {:>6} {:>6} {:>7}  RESULT",
        "GENERATION", "SCENE", "SERVERS → CLIENTS", "CALLS", "FAILED", "TIME"
    );
    for row in rows {
        let result = if row.broken.is_some() { "BROKEN" } else { "ok" };
        let notes = if row.notes.is_empty() { String::new() } else { format!(": {}", row.notes.join(", ")) };
        println!(
            "{:<10} {:<28} {:<21} {:>6} {:>6} {:>6.1}s  {result}{notes}",
            row.generation,
            row.scene,
            row.direction,
            row.calls,
            row.failed,
            row.time.as_secs_f64()
        );
    }
    for row in rows {
        let Some(broken) = &row.broken else { continue };
        println!("\n{}, {}, {}: {broken}", row.generation, row.scene, row.direction);
        for line in &row.lines {
            println!("    {line}");
        }
    }
}
