use crate::{Failure, report::Report, rounds::Quartiles, table::Row};

/// F9: the time from a put to the snapshots of the service's watchers, compared with the raw watch
/// event of the same put in the same process.
///
/// With one consumer, the target applies to the median of the differences between snapshot and
/// event, relative to the event's time. 1,000 watched services of one handle are judged against
/// that one consumer.
///
/// With 1,000 consumers of one service, 1,000 tasks must be woken. On two cores a bare channel,
/// which only hands the raw event to as many tasks, takes about 1.25 times as long as one consumer
/// until half of the tasks have run, and 1.4 times until all have. So the median and the last
/// consumer are judged against that channel, and printed against one consumer.
pub(super) fn rows() -> Result<Vec<Row>, Failure> {
    let report = Report::of("propagation", &[MANY.to_string(), ROUNDS.to_string(), PUTS.to_string()])?;
    let number = |name: &str| report.number(name);
    let quartiles = |name: &str| -> Result<Quartiles, Failure> {
        let quartile = |which: &str| number(&format!("{name} {which}"));
        Ok(Quartiles { first: quartile("q1")?, median: quartile("q2")?, third: quartile("q3")? })
    };
    let mut rows = Vec::new();
    for (scene, text) in SCENES {
        let whose = if scene == "consumers" { ", the one in the middle" } else { "" };
        let what = format!("µs by which a snapshot is later than the raw event of the same put, {text}{whose}");
        for quantile in ["p50", "p99"] {
            let row =
                Row::new("F9", format!("{quantile} of the {what}"), number(&format!("{scene} later {quantile}"))?)
                    .against("the raw event, from the put", number(&format!("{scene} raw {quantile}"))?);
            rows.push(match (scene, quantile) {
                ("one", "p50") => row.rounds(quartiles(&format!("{scene} later of raw"))?).ratio(0.05),
                _ => row,
            });
        }
    }
    // Compares the same time of ours and of a peer within each round.
    let against = |what: &str, scene: &str, which: &str, peer: &str, name: &'static str| -> Result<Row, Failure> {
        let row = Row::new("F9", what, number(&format!("{scene} {which} p50"))?)
            .against(name, number(&format!("{peer} {which} p50"))?);
        Ok(row.rounds(quartiles(&format!("{scene} {which} of {peer}"))?))
    };
    let what = format!("µs from a put to the snapshot, {MANY} services watched");
    rows.push(against(&what, "services", "half", "one", ONE)?.ratio(1.2));
    for (which, whose) in [("half", "in the middle"), ("last", "that is last")] {
        let what = format!("µs from a put to the snapshot, of {MANY} consumers the one {whose}");
        rows.push(against(&what, "consumers", which, "channel", CHANNEL)?.ratio(1.2));
        rows.push(against(&what, "consumers", which, "one", ONE)?);
    }
    Ok(rows)
}

const MANY: usize = 1_000;
const ROUNDS: usize = 20;
/// Per round.
const PUTS: usize = 30;
/// The names in the driver and in the table.
const SCENES: [(&str, &str); 3] =
    [("one", "one consumer"), ("services", "1,000 services watched"), ("consumers", "1,000 consumers of one service")];
const ONE: &str = "one consumer";
const CHANNEL: &str = "tokio's watch channel to as many tasks";
