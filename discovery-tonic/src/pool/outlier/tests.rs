use proptest::prelude::*;
use tonic::Code;

use super::*;

/// Endpoints that act as a test prescribes, sweep after sweep.
struct Scene {
    rule: OutlierDetection,
    fleet: Fleet,
    now: Instant,
    endpoints: Vec<Simulated>,
}

struct Simulated {
    outlier: Outlier,
    seen: Observation,
    /// It completes handshakes, which take `handshake` sweeps.
    is_alive: bool,
    handshake: u32,
    checks: Vec<Instant>,
    ejections: u32,
}

impl Scene {
    /// Endpoints that have answered before.
    fn of(count: usize) -> Self {
        let now = Instant::now();
        let seen = Observation {
            now,
            is_sweep: true,
            is_connected: true,
            waiting: 0,
            failures: 0,
            totals: Totals::default(),
            cold: None,
            tickets: Tickets::Unlimited,
            check: Checked::None,
        };
        let simulated = |_| Simulated {
            outlier: Outlier::default(),
            seen,
            is_alive: true,
            handshake: 0,
            checks: Vec::new(),
            ejections: 0,
        };
        let endpoints = (0..count).map(simulated).collect();
        Self { rule: OutlierDetection::default(), fleet: Fleet::default(), now, endpoints }
    }

    /// Lets the endpoints act, then sweeps; returns the orders.
    fn sweep(&mut self, mut act: impl FnMut(usize, &mut Simulated)) -> Vec<Orders> {
        self.now += SWEEP;
        let mut census = Census::default();
        for (number, endpoint) in self.endpoints.iter_mut().enumerate() {
            endpoint.seen.now = self.now;
            let lasts = endpoint.checks.last().map_or(Duration::ZERO, |since| self.now - *since);
            if endpoint.seen.check == Checked::Pending && lasts > SWEEP * endpoint.handshake {
                let open = Checked::Open { former: false, answered: false };
                endpoint.seen.check = if endpoint.is_alive { open } else { Checked::Failed };
            }
            act(number, endpoint);
            endpoint.outlier.observe(&endpoint.seen, &mut self.fleet);
            endpoint.outlier.count_in(&mut census, &self.fleet);
        }
        self.fleet.take(census);
        let mut all = Vec::new();
        for endpoint in &mut self.endpoints {
            let orders = endpoint.outlier.judge(&self.rule, &endpoint.seen, &self.fleet);
            endpoint.obey(self.now, orders);
            if matches!(orders.news, Some(News::Ejected { again: false, .. })) {
                self.fleet.eject();
            }
            all.push(orders);
        }
        all
    }

    /// Sweeps until there are orders for the first endpoint; returns the number of sweeps, and the
    /// orders.
    fn until_ordered(&mut self, mut act: impl FnMut(usize, &mut Simulated)) -> (u32, Orders) {
        let orders = (1..10_000).find_map(|count| {
            let orders = self.sweep(&mut act)[0];
            (orders != Orders::default()).then_some((count, orders))
        });
        orders.expect("there are orders eventually")
    }

    fn ejected(&self) -> usize {
        self.endpoints.iter().filter(|endpoint| endpoint.outlier.ejected_until().is_some()).count()
    }
}

impl Simulated {
    fn obey(&mut self, now: Instant, orders: Orders) {
        match orders.access {
            Some(Access::Open) => self.seen.tickets = Tickets::Unlimited,
            Some(Access::Tickets(0)) => self.take_ticket(),
            Some(Access::Tickets(_) | Access::Check) => self.seen.tickets = Tickets::Left,
            None => {}
        }
        match orders.check {
            Some(CheckOrder::Begin) => {
                assert_eq!(self.seen.check, Checked::None, "one at a time");
                self.seen.check = Checked::Pending;
                self.checks.push(now);
            }
            Some(CheckOrder::End | CheckOrder::Replace) => self.seen.check = Checked::None,
            None => {}
        }
        self.ejections += u32::from(matches!(orders.news, Some(News::Ejected { again: false, .. })));
    }

    /// Takes all tickets.
    fn take_ticket(&mut self) {
        self.seen.tickets = if self.seen.waiting > 0 { Tickets::Taken } else { Tickets::Gone };
    }

    /// Answers a call on a former connection.
    fn answer(&mut self) {
        self.seen.totals.answers += 1;
        if let Checked::Open { former, .. } = &mut self.seen.check {
            *former = true;
        }
        self.seen.failures = 0;
    }

    /// Answers a call on the new connection.
    fn answer_check(&mut self) {
        self.seen.totals.answers += 1;
        if let Checked::Open { answered, .. } = &mut self.seen.check {
            *answered = true;
        }
        self.seen.failures = 0;
    }

    fn fail(&mut self, code: Code) {
        self.seen.totals.answers += 1;
        self.seen.totals.failed += 1;
        self.seen.failures = if code == Code::Unavailable { self.seen.failures + 1 } else { 0 };
    }
}

/// The first endpoint hangs with calls in flight; the others answer.
fn hang(number: usize, endpoint: &mut Simulated) {
    if number > 0 {
        return endpoint.answer();
    }
    endpoint.seen.waiting = 3;
    if endpoint.seen.tickets == Tickets::Left {
        endpoint.take_ticket();
    }
}

#[test]
fn a_frozen_endpoint_is_suspected_checked_and_ejected() {
    let mut scene = Scene::of(4);
    scene.endpoints[0].is_alive = false;
    let (sweeps, orders) = scene.until_ordered(hang);
    let suspected = Orders { access: Some(Access::Tickets(0)), check: Some(CheckOrder::Begin), news: None };
    assert_eq!((sweeps, orders), (2, suspected));

    let (sweeps, orders) = scene.until_ordered(hang);
    let until = scene.now + Duration::from_secs(1);
    let ejected = News::Ejected { until, cause: Cause::Unreachable, again: false };
    assert_eq!((sweeps, orders.news), (1, Some(ejected)));

    // Until it completes a handshake it is only checked, once per second. Every tenth time a
    // request is sent nevertheless, since it may still answer.
    for round in 1..=20 {
        let (sweeps, orders) = scene.until_ordered(hang);
        assert_eq!((sweeps, orders.check, orders.access), (10, Some(CheckOrder::Begin), None));
        let (_, mut orders) = scene.until_ordered(hang);
        let mut cause = Cause::Unreachable;
        if round % MOST_FAILED_CHECKS == 0 {
            assert_eq!((orders.news, orders.access), (Some(News::Probed), Some(Access::Tickets(1))));
            orders = scene.until_ordered(hang).1;
            cause = Cause::Silent;
        }
        let until = scene.now + Duration::from_secs(if round == 20 { 2 } else { 1 });
        assert_eq!(orders.news, Some(News::Ejected { until, cause, again: true }), "{round}");
    }

    scene.endpoints[0].is_alive = true;
    let (sweeps, orders) = scene.until_ordered(hang);
    assert_eq!((sweeps, orders.check), (20, Some(CheckOrder::Begin)));
    let (_, orders) = scene.until_ordered(hang);
    assert_eq!((orders.news, orders.access), (Some(News::Probed), Some(Access::Tickets(1))));
    let (_, orders) = scene.until_ordered(|_, endpoint| endpoint.answer_check());
    assert_eq!(orders.news, Some(News::Restored));
    assert_eq!(scene.ejected(), 0);
}

#[test]
fn a_hung_endpoint_that_completes_handshakes_is_ejected_after_single_requests() {
    let mut scene = Scene::of(4);
    scene.until_ordered(hang);
    let mut trials = 0;
    let until = loop {
        let (_, orders) = scene.until_ordered(hang);
        trials += u32::from(orders.access == Some(Access::Tickets(1)));
        if let Some(News::Ejected { until, cause, .. }) = orders.news {
            assert_eq!((cause, orders.check), (Cause::Silent, Some(CheckOrder::End)));
            break until;
        }
    };
    assert_eq!((trials, until - scene.now), (TRIALS, Duration::from_secs(1)));

    // Each failed probe doubles the time, up to the maximum.
    let mut times = Vec::new();
    while times.len() < 8 {
        let (_, orders) = scene.until_ordered(hang);
        match orders.news {
            Some(News::Ejected { until, again, .. }) => {
                assert!(again);
                times.push((until - scene.now).as_secs());
            }
            // On a new connection, in case the old one is stuck.
            None => assert_eq!(orders.check, Some(CheckOrder::Begin)),
            news => assert_eq!((news, orders.access), (Some(News::Probed), Some(Access::Tickets(1)))),
        }
    }
    assert_eq!(times, [2, 4, 8, 16, 32, 60, 60, 60]);
    // A late answer is as good as the answer to a probe.
    let (sweeps, orders) = scene.until_ordered(|_, endpoint| endpoint.answer());
    assert_eq!((sweeps, orders.news), (1, Some(News::Restored)));
}

/// Requests that hang at an endpoint that never answered count as single requests.
#[test]
fn an_endpoint_that_never_answered_gets_five_requests() {
    let mut scene = Scene::of(4);
    scene.endpoints[0].seen.cold = Some(3);
    scene.endpoints[0].seen.tickets = Tickets::Taken;
    let mut requests = 3;
    while scene.ejected() == 0 {
        let (_, orders) = scene.until_ordered(hang);
        requests += u32::from(orders.access == Some(Access::Tickets(1)));
    }
    assert_eq!(requests, 5);
}

/// Requests that are given up one after the other prove silence like one that keeps waiting.
#[test]
fn callers_that_give_up_are_evidence_of_silence() {
    let mut scene = Scene::of(4);
    scene.endpoints[0].seen.cold = Some(3);
    let mut requests = 0;
    while scene.ejected() == 0 {
        scene.sweep(|number, endpoint| {
            if number > 0 {
                return endpoint.answer();
            }
            if matches!(endpoint.seen.tickets, Tickets::Left | Tickets::Unlimited) {
                requests += 1;
                endpoint.seen.totals.given_up += 1;
                endpoint.seen.tickets = Tickets::Gone;
            }
        });
        assert!(requests <= 5);
    }
}

/// A stuck connection is replaced by one that is answered, even if there is no other endpoint. A
/// slow connection is not replaced.
#[test]
fn the_connection_that_is_answered_takes_over() {
    for (count, is_slow) in [(1, false), (1, true), (4, false), (4, true)] {
        let mut scene = Scene::of(count);
        // Until the check begins, which takes longer if there is no other endpoint.
        let (sweeps, orders) = scene.until_ordered(hang);
        assert_eq!((sweeps, orders.check), (if count == 1 { 10 } else { 2 }, Some(CheckOrder::Begin)));
        scene.sweep(hang);
        scene.sweep(|number, endpoint| if number == 0 { endpoint.answer_check() } else { endpoint.answer() });
        let former = scene.endpoints[0].seen.tickets;
        assert_ne!(former, Tickets::Unlimited, "no request goes to the silent connection");
        for _ in 0..50 {
            scene.sweep(|number, endpoint| if number == 0 { endpoint.answer_check() } else { endpoint.answer() });
        }
        let (_, orders) = scene.until_ordered(|_, endpoint| match is_slow {
            true => endpoint.answer(),
            false => endpoint.answer_check(),
        });
        let wanted = match is_slow {
            true => (Some(CheckOrder::End), Some(Access::Open)),
            false => (Some(CheckOrder::Replace), None),
        };
        assert_eq!((orders.check, orders.access), wanted, "{count} {is_slow}");
        assert_eq!(scene.endpoints[0].ejections, 0);
    }
}

/// If no other endpoint answers, a single request that ends without an answer does not decide about
/// a new connection.
#[test]
fn a_check_of_a_single_endpoint_gets_another_request() {
    let mut scene = Scene::of(1);
    let (_, orders) = scene.until_ordered(hang);
    assert_eq!(orders.check, Some(CheckOrder::Begin));
    scene.sweep(hang);
    for _ in 0..5 {
        let orders = scene.sweep(|_, endpoint| {
            endpoint.seen.totals.given_up += 1;
            endpoint.seen.tickets = Tickets::Gone;
        });
        assert_eq!(orders[0].access, Some(Access::Check));
    }
    let (_, orders) = scene.until_ordered(|_, endpoint| {
        endpoint.seen.tickets = Tickets::Unlimited;
        endpoint.answer_check();
    });
    assert_eq!(orders.access, Some(Access::Tickets(0)), "none for the silent connection");
    let (_, orders) = scene.until_ordered(|_, endpoint| endpoint.answer_check());
    assert_eq!(orders.check, Some(CheckOrder::Replace));
}

/// The silence of an endpoint ends with its last connection.
#[test]
fn a_lost_connection_ends_the_silence() {
    let mut scene = Scene::of(3);
    scene.until_ordered(hang);
    let orders = scene.sweep(|number, endpoint| {
        endpoint.seen.is_connected = number > 0;
        if number > 0 {
            endpoint.answer();
        } else {
            endpoint.seen.waiting = 0;
        }
    });
    assert_eq!((orders[0].access, scene.ejected()), (Some(Access::Open), 0));
    assert!(scene.endpoints[0].outlier.state == State::In);
}

#[test]
fn a_pause_of_the_client_is_not_silence() {
    let mut scene = Scene::of(4);
    for _ in 0..100 {
        // One sweep after a pause of any length, in which no endpoint could answer; then all do.
        scene.now += Duration::from_secs(5);
        for orders in scene.sweep(|_, endpoint| endpoint.seen.waiting = 3) {
            assert_eq!(orders, Orders::default());
        }
        scene.sweep(|_, endpoint| {
            endpoint.seen.waiting = 0;
            endpoint.answer();
        });
    }
}

/// Waits are compared with the slow answers before.
#[test]
fn a_usual_wait_is_not_silence() {
    let mut scene = Scene::of(4);
    for round in 0..20 {
        for sweep in 0..15 {
            scene.sweep(|number, endpoint| {
                // The first is slow, the others answer at once.
                let answers = number > 0 || sweep == 14;
                endpoint.seen.waiting = u32::from(!answers);
                if endpoint.seen.tickets == Tickets::Left {
                    endpoint.take_ticket();
                }
                if answers {
                    endpoint.answer();
                }
            });
        }
        let endpoint = &scene.endpoints[0];
        assert_eq!((endpoint.ejections, endpoint.checks.len()), (0, 1), "in round {round}");
    }
}

/// If one answer per second is usual for all, most are silent most of the time. One that hangs is
/// found nevertheless.
#[test]
fn a_hung_endpoint_is_found_among_slow_ones() {
    for is_alive in [false, true] {
        let mut scene = Scene::of(10);
        let mut sweeps = 0;
        while scene.ejected() == 0 {
            sweeps += 1;
            scene.sweep(|number, endpoint| {
                endpoint.seen.waiting = 2;
                if number == 0 && sweeps > 100 {
                    endpoint.is_alive = is_alive;
                    if endpoint.seen.tickets == Tickets::Left {
                        endpoint.take_ticket();
                    }
                } else if (sweeps + number) % 10 == 0 {
                    endpoint.answer();
                }
            });
            assert!(sweeps < 300);
        }
        println!("ejected {} sweeps after it hung", sweeps - 100);
        assert!(sweeps > 110 && scene.endpoints[0].ejections == 1);
    }
}

/// Requests that are expected to be slow, or that end at once, take tickets but prove nothing.
#[test]
fn requests_that_prove_nothing_are_no_evidence() {
    let mut scene = Scene::of(4);
    for _ in 0..1000 {
        scene.sweep(|number, endpoint| {
            if number > 0 {
                return endpoint.answer();
            }
            // Older requests wait, and each ticket is used up at once.
            endpoint.seen.waiting = 2;
            if endpoint.seen.tickets != Tickets::Unlimited {
                endpoint.seen.tickets = Tickets::Gone;
            }
        });
        assert_eq!(scene.ejected(), 0);
    }
}

#[test]
fn failures_in_a_row_eject_while_the_others_succeed() {
    for (code, fails, is_ejected) in [
        (Code::Unavailable, 4, false),
        (Code::Unavailable, 5, true),
        // The application's verdict on one call, from one poisonous caller.
        (Code::Internal, 19, false),
    ] {
        let mut scene = Scene::of(3);
        for count in [0, fails - 1, 1] {
            scene.sweep(|number, endpoint| match number {
                0 => (0..count).for_each(|_| endpoint.fail(code)),
                _ => endpoint.answer(),
            });
        }
        assert_eq!(scene.ejected() == 1, is_ejected, "{fails} times {code:?}");
    }
    let mut scene = Scene::of(3);
    for _ in 0..100 {
        scene.sweep(|_, endpoint| (0..5).for_each(|_| endpoint.fail(Code::Unavailable)));
    }
    assert_eq!(scene.ejected(), 0, "all fail");
}

/// Earlier successes do not count when all endpoints fail together.
#[test]
fn endpoints_that_all_begin_to_fail_at_once_are_not_ejected() {
    let mut scene = Scene::of(5);
    for round in 0..200 {
        scene.sweep(|number, endpoint| match round % 100 < 50 {
            true => (0..100).for_each(|_| endpoint.answer()),
            false => (0..=number).for_each(|_| endpoint.fail(Code::Unavailable)),
        });
        assert_eq!(scene.ejected(), 0, "in sweep {round}");
    }
}

/// A failed check is repeated if the endpoint may not be ejected, but not at once.
#[test]
fn failed_checks_are_repeated_once_a_second() {
    let mut scene = Scene::of(1);
    scene.endpoints[0].is_alive = false;
    (0..300).for_each(|_| drop(scene.sweep(|_, endpoint| endpoint.seen.waiting = 1)));
    let endpoint = &scene.endpoints[0];
    assert!((20..=30).contains(&endpoint.checks.len()), "{}", endpoint.checks.len());
    assert_eq!(endpoint.ejections, 0);
}

/// However a check ends, the next one begins after it.
#[test]
fn checks_may_last_longer_than_the_time_between_them() {
    for handshake in [0, 50, 1_000_000] {
        let mut scene = Scene::of(2);
        scene.rule = OutlierDetection::default().silence(Some(Duration::from_secs(8)));
        scene.endpoints[0].handshake = handshake;
        for _ in 0..5000 {
            scene.sweep(hang);
        }
        let endpoint = &scene.endpoints[0];
        println!("{handshake}: {} checks, {} ejections", endpoint.checks.len(), endpoint.ejections);
        assert!(endpoint.checks.len() > 2 && endpoint.ejections > 0);
    }
}

#[test]
fn a_share_of_failures_ejects_if_it_stands_out() {
    for (own, others, is_ejected) in
        [(85, 0, true), (84, 0, false), (100, 50, true), (100, 51, false), (85, 42, true), (85, 85, false)]
    {
        let mut scene = Scene::of(3);
        for _ in 0..=100 {
            scene.sweep(|number, endpoint| {
                let failed = if number == 0 { own } else { others };
                (0..failed).for_each(|_| endpoint.fail(Code::Internal));
                (failed..100).for_each(|_| endpoint.answer());
            });
        }
        scene.sweep(|_, _| {});
        assert_eq!(scene.ejected() == 1, is_ejected, "{own} against {others} of a hundred");
    }
}

/// An interval lasts until it has enough calls.
#[test]
fn few_calls_are_judged_later() {
    let mut scene = Scene::of(2);
    let mut calls = 0;
    while scene.endpoints[0].ejections == 0 {
        calls += 1;
        scene.sweep(|number, endpoint| if number == 0 { endpoint.fail(Code::DataLoss) } else { endpoint.answer() });
        (0..5).for_each(|_| drop(scene.sweep(|_, _| {})));
    }
    assert_eq!(calls, 21, "the first call begins the interval");
    // Failed probes eject it again, and a successful one restores it.
    let (_, orders) = scene.until_ordered(|_, _| {});
    assert_eq!(orders.news, Some(News::Probed));
    let (_, orders) = scene.until_ordered(|_, endpoint| endpoint.fail(Code::DataLoss));
    assert!(matches!(orders.news, Some(News::Ejected { cause: Cause::Failing, again: true, .. })));
    scene.until_ordered(|_, _| {});
    let (_, orders) = scene.until_ordered(|_, endpoint| endpoint.answer());
    assert_eq!(orders.news, Some(News::Restored));
}

#[test]
fn settings_that_are_off_eject_no_endpoint() {
    let mut scene = Scene::of(4);
    scene.rule = OutlierDetection::default().silence(None).consecutive_failures(None).failure_percentage(None);
    for _ in 0..1000 {
        let orders = scene.sweep(|number, endpoint| match number {
            0 => endpoint.fail(Code::Unavailable),
            1 => endpoint.seen.waiting = 5,
            _ => endpoint.answer(),
        });
        assert!(orders.iter().all(|orders| *orders == Orders::default()), "{orders:?}");
    }
}

/// An instance that returns as another endpoint stays ejected.
#[test]
fn a_successor_inherits_the_ejection() {
    let mut scene = Scene::of(4);
    assert!(scene.endpoints[0].outlier.for_successor().is_none());
    scene.endpoints[0].is_alive = false;
    while scene.ejected() == 0 {
        scene.sweep(hang);
    }
    let ejected = scene.endpoints[0].outlier;
    assert_eq!(ejected.for_successor().unwrap().ejected_until(), ejected.ejected_until());
    let mut renewed = ejected.with_new_connections();
    renewed.observe(&scene.endpoints[0].seen, &mut scene.fleet);
    assert!(!renewed.answered, "the tally stays, so its answers are not new");
}

/// What one endpoint does in a sweep.
#[derive(Clone, Copy, Debug)]
enum Act {
    Answer,
    AnswerCheck,
    Fail,
    GiveUp,
    Nothing,
    Wait,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => Just(Act::Answer),
        1 => Just(Act::AnswerCheck),
        1 => Just(Act::Fail),
        1 => Just(Act::GiveUp),
        1 => Just(Act::Nothing),
        3 => Just(Act::Wait),
    ]
}

impl Simulated {
    fn act(&mut self, act: Act) {
        match act {
            Act::Answer => self.answer(),
            Act::AnswerCheck => self.answer_check(),
            Act::Fail => self.fail(Code::Unavailable),
            Act::GiveUp => self.seen.totals.given_up += 1,
            Act::Nothing => self.seen.waiting = 0,
            Act::Wait => self.seen.waiting = 2,
        }
        if self.seen.tickets != Tickets::Unlimited {
            self.take_ticket();
        }
    }
}

proptest! {
    /// What all endpoints do ejects none, and each is checked at most once a minute.
    #[test]
    fn what_all_endpoints_do_ejects_none(
        count in 1usize..6,
        is_alive in any::<bool>(),
        acts in proptest::collection::vec((act(), 1u32..40), 1..60),
    ) {
        let mut scene = Scene::of(count);
        for (act, times) in acts {
            for _ in 0..times {
                scene.sweep(|_, endpoint| {
                    endpoint.is_alive = is_alive;
                    endpoint.act(act);
                });
                prop_assert_eq!(scene.ejected(), 0);
            }
        }
        for endpoint in &scene.endpoints {
            let gaps = endpoint.checks.windows(2).map(|pair| pair[1] - pair[0]);
            let least = if is_alive { CHECK_INTERVAL } else { Duration::from_secs(1) };
            prop_assert!(gaps.into_iter().all(|gap| gap >= least), "{:?}", endpoint.checks);
        }
    }

    /// Whatever they do, at most half are ejected at a time, and each is restored once it answers.
    #[test]
    fn at_most_half_are_ejected_and_all_are_restored(
        acts in proptest::collection::vec((proptest::collection::vec((act(), any::<bool>()), 5), 1u32..40), 1..60),
        handshake in 0u32..30,
    ) {
        let mut scene = Scene::of(5);
        scene.endpoints.iter_mut().for_each(|endpoint| endpoint.handshake = handshake);
        for (acts, times) in acts {
            for _ in 0..times {
                scene.sweep(|number, endpoint| {
                    let (act, is_alive) = acts[number];
                    endpoint.is_alive = is_alive;
                    endpoint.act(act);
                });
                prop_assert!(scene.ejected() <= 2, "{}", scene.ejected());
            }
        }
        for _ in 0..1300 {
            scene.sweep(|_, endpoint| {
                endpoint.is_alive = true;
                endpoint.seen.waiting = 0;
                endpoint.act(Act::Answer);
            });
        }
        for endpoint in &scene.endpoints {
            prop_assert!(endpoint.outlier.state == State::In, "{:?}", endpoint.outlier);
            prop_assert_eq!(endpoint.seen.tickets, Tickets::Unlimited);
        }
    }
}
