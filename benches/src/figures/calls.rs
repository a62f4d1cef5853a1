use std::collections::HashMap;

use crate::{
    Failure,
    callgrind::{Cost, cost_per_operation},
    servers::{Kind, Servers},
    table::Row,
};

/// F3: the client's cost of a unary call with 64 bytes, over ten servers in another process.
pub(super) fn rows() -> Result<Vec<Row>, Failure> {
    let servers = Servers::start(&[Kind::Greeter; 10])?;
    let mut rows = Vec::new();
    for (width, how) in [("1", "one after the other"), ("50", "50 at once")] {
        let mut costs: HashMap<&str, Cost> = HashMap::new();
        for client in CLIENTS {
            let mut arguments = vec![client.to_owned(), width.to_owned()];
            arguments.extend(servers.addresses().iter().map(ToString::to_string));
            costs.insert(client, cost_per_operation("call", &arguments)?);
        }
        let row = |ours: &str, what: &str, peer: &'static str, client: &str| {
            Row::new("F3", format!("instructions per call, {how}{what}"), costs[ours].instructions)
                .against(peer, costs[client].instructions)
        };
        rows.extend([
            row("ours", "", "tonic `balance_list`", "balanced").ratio(0.90),
            row("ours", "", "one tonic `Channel`", "single").ratio(0.97),
            row("ours", "", "hyper, ten connections in turn", "bare").ratio(1.03),
            row("ours", "", "hyper, one connection", "bare-single"),
            row("ours-deadline", ", with a deadline", "tonic `balance_list`", "balanced-deadline"),
        ]);
        let allocations = |peer: &'static str, client: &str| {
            let row = Row::new("F3", format!("allocations per call, {how}"), costs["ours"].allocations);
            row.against(peer, costs[client].allocations)
        };
        rows.extend([
            allocations("one tonic `Channel`", "single").ratio(0.95),
            allocations("tonic `balance_list`", "balanced"),
            allocations("hyper, ten connections in turn", "bare"),
        ]);
    }
    Ok(rows)
}

/// Arguments of the `call` driver.
const CLIENTS: [&str; 7] = ["ours", "ours-deadline", "balanced", "balanced-deadline", "single", "bare", "bare-single"];
