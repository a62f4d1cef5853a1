//! The table of results: figure, ours, peer, ratio, target, verdict.

use std::fmt;

use crate::rounds::Quartiles;

/// All rows of a run.
#[derive(Debug, Default)]
pub struct Table(Vec<Row>);

/// One measured figure.
#[derive(Clone, Debug)]
pub struct Row {
    figure: &'static str,
    what: String,
    ours: f64,
    peer: Option<(&'static str, f64)>,
    rounds: Option<Quartiles>,
    target: Target,
}

/// The target of a figure.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// Ours is at least this fraction of the peer's.
    Least(f64),
    /// Ours is at most this much more than the peer's.
    More(f64),
    /// Ours is at most this.
    Most(f64),
    /// None: the figure is only printed.
    Printed,
    /// Ours is at most this fraction of the peer's.
    Ratio(f64),
}

impl Table {
    /// Adds rows.
    pub fn extend(&mut self, rows: Vec<Row>) {
        self.0.extend(rows);
    }

    /// Returns whether any row missed its target.
    #[must_use]
    pub fn missed(&self) -> bool {
        self.0.iter().any(Row::missed)
    }
}

impl Row {
    /// Creates a figure that is only printed, until a target is set.
    pub fn new(figure: &'static str, what: impl Into<String>, ours: f64) -> Self {
        Self { figure, what: what.into(), ours, peer: None, rounds: None, target: Target::Printed }
    }

    /// Sets the number of the peer with this name.
    #[must_use]
    pub fn against(mut self, peer: &'static str, value: f64) -> Self {
        self.peer = Some((peer, value));
        self
    }

    /// Sets the quartiles of the ratios to the peer over many rounds. Their median is judged
    /// instead of the ratio of the two numbers.
    #[must_use]
    pub fn rounds(mut self, ratios: Quartiles) -> Self {
        self.rounds = Some(ratios);
        self
    }

    /// Sets the target: ours is at least this fraction of the peer's.
    #[must_use]
    pub fn least(mut self, limit: f64) -> Self {
        self.target = Target::Least(limit);
        self
    }

    /// Sets the target: ours is at most this fraction of the peer's.
    #[must_use]
    pub fn ratio(mut self, limit: f64) -> Self {
        self.target = Target::Ratio(limit);
        self
    }

    /// Sets the target: ours is at most this.
    #[must_use]
    pub fn most(mut self, limit: f64) -> Self {
        self.target = Target::Most(limit);
        self
    }

    /// Sets the target: ours is at most this much more than the peer's.
    #[must_use]
    pub fn more(mut self, limit: f64) -> Self {
        self.target = Target::More(limit);
        self
    }

    fn ratio_of(&self) -> Option<f64> {
        let ratio = self.peer.filter(|(_, value)| *value > 0.0).map(|(_, value)| self.ours / value);
        self.rounds.map(|ratios| ratios.median).or(ratio)
    }

    /// A ratio or difference without a peer counts as missed.
    fn missed(&self) -> bool {
        match self.target {
            Target::Least(limit) => self.ratio_of().is_none_or(|ratio| ratio < limit),
            Target::More(limit) => self.peer.is_none_or(|(_, value)| self.ours - value > limit + ROUNDING),
            Target::Most(limit) => self.ours > limit,
            Target::Printed => false,
            Target::Ratio(limit) => self.ratio_of().is_none_or(|ratio| ratio > limit),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| Figure | What | Ours | Peer | | Ratio | Target | Verdict |")?;
        writeln!(f, "|---|---|---:|---|---:|---:|---:|---|")?;
        self.0.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (peer, value) = self.peer.map(|(peer, value)| (peer, number(value))).unwrap_or_default();
        let mut ratio = self.ratio_of().map(|ratio| format!("{ratio:.3}")).unwrap_or_default();
        if let Some(Quartiles { first, third, .. }) = self.rounds {
            ratio = format!("{ratio} ({first:.3} to {third:.3})");
        }
        let part = |limit: f64| {
            let limit = format!("{limit:.3}");
            format!("{}×", limit.strip_suffix('0').unwrap_or(&limit))
        };
        let target = match self.target {
            Target::Least(limit) => format!("≥ {}", part(limit)),
            Target::More(limit) => format!("≤ +{limit}"),
            Target::Most(limit) => format!("≤ {limit}"),
            Target::Printed => String::new(),
            Target::Ratio(limit) => format!("≤ {}", part(limit)),
        };
        let verdict = match self.target {
            Target::Printed => "printed",
            _ if self.missed() => "MISSED",
            _ => "reached",
        };
        let figure = self.figure;
        let what = &self.what;
        let ours = number(self.ours);
        write!(f, "| {figure} | {what} | {ours} | {peer} | {value} | {ratio} | {target} | {verdict} |")
    }
}

/// Formats whole numbers in groups of three; small ones with one decimal if they have any.
fn number(value: f64) -> String {
    if value < 1_000.0 {
        return format!("{value:.1}").trim_end_matches(".0").to_owned();
    }
    let digits = format!("{value:.0}");
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

/// Allows for rounding in a difference of two numbers with one decimal.
const ROUNDING: f64 = 1e-6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_missed_beyond_its_limit_and_without_its_peer() {
        let row = |ours| Row::new("F0", "things", ours);
        assert!(!row(10.0).against("peer", 100.0).ratio(0.1).missed());
        assert!(row(11.0).against("peer", 100.0).ratio(0.1).missed());
        assert!(row(10.0).ratio(0.1).missed());
        assert!(!row(3.1).against("peer", 2.1).more(1.0).missed());
        assert!(row(3.2).against("peer", 2.1).more(1.0).missed());
        assert!(row(1.0).most(0.0).missed() && !row(1.0).missed());
        assert!(!row(90.0).against("peer", 100.0).least(0.9).missed());
        assert!(row(89.0).against("peer", 100.0).least(0.9).missed());
        assert!(row(90.0).least(0.9).missed());
    }

    #[test]
    fn rounds_are_judged_by_their_median() {
        let ratios = Quartiles { first: 0.8, median: 0.94, third: 1.1 };
        let row = Row::new("F0", "things", 100.0).against("peer", 100.0).rounds(ratios).least(0.95);
        assert!(row.missed());
        assert!(row.to_string().contains("| 0.940 (0.800 to 1.100) | ≥ 0.95× | MISSED |"));
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0.0, 33.5, 262.0, 69_734.4, 1_234_567.0].map(number), ["0", "33.5", "262", "69,734", "1,234,567"]);
    }
}
