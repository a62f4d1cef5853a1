use crate::{Failure, report::Report, rounds::Quartiles, table::Row};

/// F18: a list of 100,000 entries.
pub(super) fn rows() -> Result<Vec<Row>, Failure> {
    let report = Report::of("list", &[ENTRIES.to_string(), ROUNDS.to_string()])?;
    let mut rows = Vec::new();
    for (measure, of, limit) in [("cpu", "of etcd's processor time", 2.0), ("time", "in all", 3.0)] {
        let quartile = |which: &str| report.number(&format!("{measure} {which}"));
        let ratios = Quartiles { first: quartile("q1")?, median: quartile("q2")?, third: quartile("q3")? };
        let row = Row::new("F18", format!("ms {of} for a list of {ENTRIES} entries"), quartile("ours")?);
        rows.push(row.against(RAW, quartile("raw")?).rounds(ratios).ratio(limit));
    }
    rows.push(Row::new("F18", "requests for it", report.number("requests")?).against(RAW, 1.0));
    Ok(rows)
}

const ENTRIES: u32 = 100_000;
const ROUNDS: u32 = 15;
const RAW: &str = "raw range in one piece";
