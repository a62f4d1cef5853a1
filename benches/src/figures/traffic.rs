use crate::{
    Failure,
    report::Report,
    rounds::Quartiles,
    servers::{Kind, Servers},
    table::Row,
    traffic::{SHAPES, Shape},
};

/// F20: many callers, large bodies, many messages and uploads, over four servers in another
/// process.
pub(super) fn rows() -> Result<Vec<Row>, Failure> {
    let servers = Servers::start(&[Kind::Greeter; 4])?;
    let mut arguments = vec![ROUNDS.to_string()];
    arguments.extend(servers.addresses().iter().map(ToString::to_string));
    let report = Report::of("traffic", &arguments)?;

    let mut rows = Vec::new();
    for Shape { name, call, .. } in SHAPES {
        for (measure, _) in call.measures() {
            let what = match *measure {
                "rate" => format!("{} a second, {name}", call.unit()),
                _ => format!("µs of a call, {measure}, {name}"),
            };
            let number = |of: &str| report.number(&format!("{name}, {measure} {of}"));
            for (peer, client) in PEERS {
                let quartile = |which: &str| number(&format!("{client} {which}"));
                let ratios = Quartiles { first: quartile("q1")?, median: quartile("q2")?, third: quartile("q3")? };
                let row = Row::new("F20", &what, number("ours")?).against(peer, number(client)?).rounds(ratios);
                // Bare hyper is the lower bound of every client.
                rows.push(match (client, *measure) {
                    ("bare", "rate") => row.least(0.95),
                    ("bare", "p99") => row.ratio(1.1),
                    _ => row,
                });
            }
        }
    }
    Ok(rows)
}

/// Per shape.
const ROUNDS: u32 = 30;
/// The names in the table and in the driver.
const PEERS: [(&str, &str); 3] = [
    ("hyper, four connections in turn", "bare"),
    ("tonic `balance_list`", "balanced"),
    ("one tonic `Channel`", "single"),
];
