//! What a scene leaves behind, also when it fails: its calls, its figures, and the last lines of
//! its processes.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::report::Report;

/// The record of one scene.
#[derive(Debug)]
pub(crate) struct Ledger {
    begun: Instant,
    pages: Mutex<Pages>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Pages {
    pub(crate) calls: u64,
    pub(crate) failed: u64,
    /// Figures and remarks for the table.
    pub(crate) notes: Vec<String>,
    pub(crate) lines: VecDeque<Line>,
}

/// A line that a process has printed.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    at: Duration,
    process: String,
    text: String,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self { begun: Instant::now(), pages: Mutex::default() }
    }

    pub(crate) fn add(&self, report: &Report) {
        let mut pages = self.lock();
        pages.calls += report.calls;
        pages.failed += report.failed;
    }

    pub(crate) fn note(&self, note: impl Into<String>) {
        self.lock().notes.push(note.into());
    }

    /// Notes the time from one event to another. What came before the event took no time.
    pub(crate) fn note_time(&self, what: &str, from_ns: u64, until_ns: u64) {
        let time = Duration::from_nanos(until_ns.saturating_sub(from_ns));
        self.note(format!("{what} {} ms", time.as_millis()));
    }

    /// Keeps a line of a process, and forgets an old one, but never the reason of a panic. Of a
    /// client's reports it keeps the last.
    pub(crate) fn line(&self, process: &str, text: &str) {
        let at = self.begun.elapsed();
        let line = Line { at, process: process.to_owned(), text: text.chars().take(WIDTH).collect() };
        let mut pages = self.lock();
        if line.is_report() {
            pages.lines.retain(|former| !former.is_report() || former.process != process);
        }
        if pages.lines.len() >= LINES {
            let oldest = pages.lines.iter().position(|line| !line.is_panic());
            pages.lines.remove(oldest.unwrap_or_default());
        }
        pages.lines.push_back(line);
    }

    /// Returns the reason of a process's panic.
    pub(crate) fn panic_of(&self, process: &str) -> Option<String> {
        let pages = self.lock();
        pages.lines.iter().find(|line| line.process == process && line.is_panic()).map(|line| line.text.clone())
    }

    pub(crate) fn time(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(crate) fn pages(&self) -> Pages {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn is_panic(&self) -> bool {
        self.text.contains("panic")
    }

    fn is_report(&self) -> bool {
        self.text.contains(r#""event":"report""#)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:6.2}s {}: {}", self.at.as_secs_f64(), self.process, self.text)
    }
}

/// How many lines of its processes a failed scene shows, and how long each may be.
const LINES: usize = 24;
const WIDTH: usize = 400;
