use crate::{Failure, report::Report, table::Row};

/// F12: 1,000 registrations of one process.
pub(super) fn rate() -> Result<Vec<Row>, Failure> {
    let report = Report::of("registrations", &["rate".to_owned(), COUNT.to_string(), PAIRS.to_string()])?;
    let what = format!("ms for {COUNT} registrations of one process, the median of {PAIRS}");
    Ok(vec![
        Row::new("F12", what, report.number("ms for all")?).against(RAW, report.number("ms for all raw")?).ratio(1.11),
        Row::new("F12", format!("streams that keep {COUNT} registrations alive"), report.number("streams")?)
            .against(RAW, report.number("streams raw")?)
            .ratio(1.0 / f64::from(COUNT)),
        Row::new("F12", "messages on them a minute", report.number("messages a minute")?)
            .against(RAW, report.number("messages a minute raw")?)
            .ratio(2.0 / f64::from(COUNT)),
    ])
}

/// F17: 10,000 entries of one process are lost at once; 1,000 registrations are dropped during an
/// outage.
pub(super) fn overload() -> Result<Vec<Row>, Failure> {
    let lost = Report::of("registrations", &["lost".to_owned(), LOST.to_string(), ROUNDS.to_string()])?;
    let dropped = Report::of("registrations", &["dropped".to_owned(), COUNT.to_string()])?;
    let mut rows = Vec::new();
    for round in 1..=ROUNDS {
        let what = format!("s until {LOST} entries are back that were lost at once, round {round}");
        let row = Row::new("F17", what, lost.number(&format!("s round {round}"))?);
        rows.push(row.against("raw grant and put of as many", lost.number("s raw")?).most(30.0));
    }
    let what = format!("a second for {COUNT} registrations that were dropped while etcd resets connections");
    rows.push(Row::new("F17", format!("connections {what}"), dropped.number("connections a second")?).most(10.0));
    rows.push(Row::new("F17", "percent of a core for that", dropped.number("percent of a core")?).most(5.0));
    Ok(rows)
}

const COUNT: u32 = 1_000;
const PAIRS: u32 = 9;
const LOST: u32 = 10_000;
const ROUNDS: u32 = 5;
const RAW: &str = "raw etcd-client: a lease, a put and a stream each";
