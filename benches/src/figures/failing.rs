use std::time::Duration;

use discovery_tonic::OutlierDetection;
use tokio::time::sleep;
use tonic::Code;

use crate::{
    Failure,
    caller::{Caller, Transport},
    clients,
    load::steady,
    report::Report,
    rounds::Quartiles,
    servers::{Kind, Servers},
    table::Row,
};

/// F16: one of four servers answers every call at once with a failing code.
pub(super) async fn share() -> Result<Vec<Row>, Failure> {
    let usual = OutlierDetection::default();
    let off = OutlierDetection::default().failure_percentage(None).consecutive_failures(None);
    let (internal, unavailable, without) = tokio::try_join!(
        beside(Code::Internal, usual.clone()),
        beside(Code::Unavailable, usual),
        beside(Code::Internal, off)
    )?;
    let calls = RATE * SECONDS;
    let row = |code: &str, [ours, tonic]: [f64; 2]| {
        let what =
            format!("percent of {calls} calls that failed, 1 of 4 servers answers {code}, the others take 60 ms");
        Row::new("F16", what, ours).against("tonic `balance_list`", tonic).most(2.0)
    };
    Ok(vec![
        row("INTERNAL at once", internal),
        row("UNAVAILABLE at once", unavailable),
        // Without ejection, only the load decides, in which failures count.
        row("INTERNAL at once and is not ejected", without),
    ])
}

/// F19: the cost of calls that fail at all of 4,000 endpoints.
pub(super) fn cost() -> Result<Vec<Row>, Failure> {
    let report = Report::of("failing", &[Code::Internal as u32, ENDPOINTS, PAIRS].map(|number| number.to_string()))?;
    let number = |name: &str| report.number(name);
    let ratios = Quartiles { first: number("ratio q1")?, median: number("ratio q2")?, third: number("ratio q3")? };
    let what = format!("µs of processor time for a call that fails at one of {ENDPOINTS} endpoints");
    let ejected = format!("ejected of {ENDPOINTS} endpoints where all fail");
    Ok(vec![
        Row::new("F19", what, number("us failing")?)
            .against("ours, calls that succeed", number("us succeeding")?)
            .rounds(ratios)
            .ratio(1.2),
        Row::new("F19", ejected, number("ejected")?).most(0.0),
    ])
}

/// Returns the failed share of our and of tonic's calls, made at the same time to separate servers.
async fn beside(code: Code, detection: OutlierDetection) -> Result<[f64; 2], Failure> {
    let kinds = [Kind::Failing(code), Kind::Greeter, Kind::Greeter, Kind::Greeter];
    let ours = Servers::start(&kinds)?;
    let tonic = Servers::start(&kinds)?;
    let channel = clients::ours_with(ours.addresses(), |builder| builder.outlier_detection(detection)).await?;
    let failed = tokio::join!(failed(channel), failed(clients::tonic_balanced(tonic.addresses())?));
    Ok(failed.into())
}

/// Returns the share of failed calls in percent.
async fn failed<T: Transport>(transport: T) -> f64 {
    let caller = Caller::new(transport, None);
    let (calls, ()) = steady(&caller, RATE, || WORK, sleep(Duration::from_secs(SECONDS.into()))).await;
    calls.iter().filter(|call| call.failed()).count() as f64 / calls.len() as f64 * 100.0
}

/// Calls per second, and for how many seconds.
const RATE: u32 = 200;
const SECONDS: u32 = 30;
const WORK: Duration = Duration::from_millis(60);
const ENDPOINTS: u32 = 4_000;
const PAIRS: u32 = 5;
