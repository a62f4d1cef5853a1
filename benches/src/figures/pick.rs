use crate::{
    Failure,
    callgrind::{Cost, cost_per_operation},
    table::Row,
};

/// F1: the cost of a pick, over an endpoint that does nothing.
pub(super) fn rows() -> Result<Vec<Row>, Failure> {
    let cost =
        |balancer: &str, candidates: &str| cost_per_operation("pick", &[balancer.to_owned(), candidates.to_owned()]);
    let mut rows = Vec::new();
    let mut ours: Vec<[Cost; 2]> = Vec::new();
    for candidates in ["100", "10000"] {
        let both = [cost("ours", candidates)?, cost("ours-cloned", candidates)?];
        let peers = [
            ("tower `Balance`, in flight", 0.10, [cost("in-flight", candidates)?; 2], false),
            ("tower `Balance`, `PeakEwma`", 0.25, [cost("ewma", candidates)?; 2], false),
            ("tower `Buffer(Balance)`", 0.05, [cost("buffer", candidates)?, cost("buffer-cloned", candidates)?], true),
        ];
        for (n, how) in ["", ", cloned for each call"].into_iter().enumerate() {
            for (peer, limit, costs, clones) in peers {
                let what = format!("instructions per pick of {candidates}{how}");
                let row = Row::new("F1", what, both[n].instructions).against(peer, costs[n].instructions);
                // A clone is judged against a clone. A peer that cannot be cloned is only printed
                // beside it.
                rows.push(if n == 0 || clones { row.ratio(limit) } else { row });
            }
            rows.push(
                Row::new("F1", format!("allocations per pick of {candidates}{how}"), both[n].allocations).most(0.0),
            );
        }
        ours.push(both);
    }
    let [few, many] = [&ours[0][0], &ours[1][0]];
    let row = Row::new("F1", "instructions per pick of 10000", many.instructions);
    rows.push(row.against("ours of 100", few.instructions).ratio(1.05));
    Ok(rows)
}
