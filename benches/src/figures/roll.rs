use crate::{
    Failure,
    report::Report,
    servers::{Kind, Servers},
    table::Row,
};

/// F10: 10,000 instances are rolled under load.
pub(super) fn rows() -> Result<Vec<Row>, Failure> {
    let servers = Servers::start(&[Kind::Greeter; 3])?;
    let mut arguments = vec![INSTANCES.to_string(), CHANGES.to_string()];
    arguments.extend(servers.addresses().iter().map(ToString::to_string));
    let roll = Report::of("roll", &arguments)?;
    let connected = Report::of("connected", &[INSTANCES.to_string()])?;

    let what = format!("µs of processor time per change, {} changes in a set of {INSTANCES}", roll.number("changes")?);
    let whole = roll.number("us per change")?;
    let channel = roll.number("us per change of the channel")?;
    let copy = roll.number("us per copy")?;
    let pick = |clock: &str, time: &str| -> Result<Row, Failure> {
        let what = format!("p99.9 of a pick during the roll, ns of {time}");
        let row = Row::new("F10", what, roll.number(&format!("ns {clock} p99.9 roll"))?);
        Ok(row.against("ours before and after", roll.number(&format!("ns {clock} p99.9 idle"))?))
    };
    let idle = |how: &str| -> Result<Row, Failure> {
        let what = format!("percent of a core, {INSTANCES} endpoints connected, five calls a second{how}");
        Ok(Row::new("F10", what, connected.number(&format!("percent of a core{how}"))?))
    };
    Ok(vec![
        Row::new("F10", &what, channel).against("a copy of the set for each", copy).ratio(0.025),
        Row::new("F10", format!("{what}; wanted are 2"), channel),
        Row::new("F10", format!("{what}, with the registry's watch"), whole)
            .against("a copy of the set for each", copy),
        Row::new("F10", format!("{what}, with the registry's watch"), whole)
            .against("a comparison of the set for each", roll.number("us per diff")?),
        Row::new("F10", format!("failed of {} calls during that", roll.number("calls")?), roll.number("failed")?)
            .most(0.0),
        pick("cpu", "processor time")?.ratio(2.0),
        pick("wall", "time")?,
        idle("")?,
        idle(", with slow start")?,
    ])
}

const INSTANCES: usize = 10_000;
/// Ten rolls, each of which removes 10,000 instances and adds as many.
const CHANGES: usize = 200_000;
