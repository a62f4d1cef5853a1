use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn range() -> Keys {
    Keys::Range { from: b"a/".to_vec(), to: b"a0".to_vec() }
}

fn one() -> Keys {
    Keys::One(b"a/1".to_vec())
}

/// A plan, and what its streams have been asked for.
struct Scene {
    plan: Plan,
    now: Instant,
    /// By stream and turn.
    asked: BTreeMap<(u64, u64), u64>,
    /// What was requested, and left before the plan learned the answer.
    past: Vec<((u64, u64), u64)>,
    /// The turn in which each owner listens.
    heard: BTreeMap<u64, u64>,
    ended: Vec<u64>,
    resumed: Vec<u64>,
    closed: Vec<u64>,
}

impl Scene {
    fn new() -> Self {
        Self {
            plan: Plan::default(),
            now: Instant::now(),
            asked: BTreeMap::new(),
            past: Vec::new(),
            heard: BTreeMap::new(),
            ended: Vec::new(),
            resumed: Vec::new(),
            closed: Vec::new(),
        }
    }

    fn act(&mut self, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Ask { stream, number, turn } => drop(self.asked.insert((stream, turn), number)),
                Act::Leave { stream, turn } => {
                    let number = self.asked.remove(&(stream, turn)).expect("it was requested");
                    self.past.push(((stream, turn), number));
                }
                Act::Close { stream } => {
                    let closed = self.asked.iter().filter(|((other, _), _)| *other == stream);
                    self.past.extend(closed.map(|(place, number)| (*place, *number)));
                    self.asked.retain(|(other, _), _| *other != stream);
                    self.closed.push(stream);
                }
                Act::End { number } => self.ended.push(number),
                Act::Resume { number } => self.resumed.push(number),
            }
        }
    }

    fn add(&mut self, number: u64, keys: &Keys, start: Start) {
        // Later than any stream so far.
        self.now += Duration::from_millis(1);
        let acts = self.plan.add(number, keys, start, self.now);
        self.act(acts);
    }

    fn open(&mut self) -> Option<u64> {
        let opening = self.plan.next_opening()?;
        Some(self.opened(opening))
    }

    fn opened(&mut self, opening: Opening) -> u64 {
        self.now += Duration::from_millis(1);
        let (stream, acts) = self.plan.opened(opening, self.now);
        self.act(acts);
        stream
    }

    fn create(&mut self, stream: u64) {
        for (turn, number) in self.asked_on(stream) {
            self.created(stream, number, turn);
        }
    }

    /// Informs the owner and the plan.
    fn created(&mut self, stream: u64, number: u64, turn: u64) {
        let heard = self.heard.entry(number).or_default();
        *heard = turn.max(*heard);
        let acts = self.plan.created(stream, number, turn);
        self.act(acts);
    }

    fn refuse(&mut self, stream: u64, number: u64, is_for_token: bool) {
        self.asked.retain(|(on, _), asked| (*on, *asked) != (stream, number));
        let acts = self.plan.refused(stream, number, is_for_token);
        self.act(acts);
    }

    fn break_off(&mut self, stream: u64, why: Break) {
        let acts = self.plan.broken(stream, why);
        self.act(acts);
    }

    fn asked_on(&self, stream: u64) -> Vec<(u64, u64)> {
        let on = self.asked.iter().filter(|((on, _), _)| *on == stream);
        on.map(|((_, turn), number)| (*turn, *number)).collect()
    }

    fn numbers_on(&self, stream: u64) -> Vec<u64> {
        let mut numbers: Vec<u64> = self.asked_on(stream).into_iter().map(|(_, number)| number).collect();
        numbers.sort_unstable();
        numbers
    }
}

#[test]
fn all_watches_share_one_stream() {
    let mut scene = Scene::new();
    assert_eq!(scene.open(), None);
    scene.add(1, &range(), Start::Level);
    scene.add(2, &one(), Start::Level);
    let stream = scene.open().unwrap();
    scene.add(3, &range(), Start::Level);
    assert_eq!(scene.open(), None);
    assert_eq!(scene.numbers_on(stream), [1, 2, 3]);
    for number in 1..=3 {
        let acts = scene.plan.leave(number);
        scene.act(acts);
    }
    assert_eq!(scene.closed, [stream], "nothing is watched any more");
}

#[test]
fn a_break_ends_services_and_resumes_entries() {
    let mut scene = Scene::new();
    scene.add(1, &range(), Start::Level);
    scene.add(2, &one(), Start::Level);
    let stream = scene.open().unwrap();
    scene.create(stream);
    scene.break_off(stream, Break::Lost);
    assert_eq!((&scene.ended[..], &scene.resumed[..]), (&[1][..], &[2][..]));
    let next = scene.open().unwrap();
    assert_eq!(scene.numbers_on(next), [2]);
}

#[test]
fn a_stream_that_cannot_be_opened_ends_services_alone() {
    let mut scene = Scene::new();
    scene.add(1, &range(), Start::Level);
    scene.add(2, &one(), Start::Level);
    let opening = scene.plan.next_opening().unwrap();
    let acts = scene.plan.not_opened(&opening);
    scene.act(acts);
    assert_eq!(scene.ended, [1]);
    let stream = scene.open().unwrap();
    assert_eq!(scene.numbers_on(stream), [2]);
}

#[test]
fn a_move_takes_each_watch_over_once_it_is_created() {
    let mut scene = Scene::new();
    (1..=3).for_each(|number| scene.add(number, &range(), Start::Level));
    let first = scene.open().unwrap();
    scene.create(first);
    let opening = scene.plan.next_move().unwrap();
    let second = scene.opened(opening);
    assert_eq!(scene.numbers_on(second), [1, 2, 3]);
    assert_eq!(scene.numbers_on(first), [1, 2, 3], "it carries them until they are created there");
    scene.add(4, &range(), Start::Level);
    assert_eq!(scene.numbers_on(second), [1, 2, 3, 4]);
    let (turn, number) = scene.asked_on(second)[0];
    let acts = scene.plan.created(second, number, turn);
    scene.act(acts);
    assert_eq!(scene.numbers_on(first).len(), 2);
    // The new stream breaks: what the former one still carries continues there.
    scene.break_off(second, Break::Lost);
    assert_eq!(scene.ended, [number, 4]);
    assert_eq!(scene.numbers_on(first).len(), 2);
    assert!(!scene.closed.contains(&first));
}

#[test]
fn a_new_token_is_tried_on_another_stream_and_then_moves_all_watches() {
    let mut scene = Scene::new();
    scene.add(1, &range(), Start::Level);
    let old = scene.open().unwrap();
    scene.create(old);
    scene.add(2, &range(), Start::Level);
    scene.refuse(old, 2, true);
    assert!(scene.ended.is_empty());
    let fresh = scene.open().unwrap();
    assert_eq!((scene.numbers_on(old), scene.numbers_on(fresh)), (vec![1], vec![2]));
    scene.create(fresh);
    assert_eq!(scene.numbers_on(fresh), [1, 2], "the former token is too old for all of them");
    scene.create(fresh);
    assert_eq!(scene.closed, [old]);
}

#[test]
fn a_forbidden_watch_ends_alone() {
    let mut scene = Scene::new();
    scene.add(1, &range(), Start::Level);
    let old = scene.open().unwrap();
    scene.create(old);
    scene.add(2, &range(), Start::Level);
    scene.refuse(old, 2, true);
    let fresh = scene.open().unwrap();
    scene.refuse(fresh, 2, true);
    assert_eq!((&scene.ended[..], &scene.closed[..]), (&[2][..], &[fresh][..]));
    assert_eq!(scene.numbers_on(old), [1]);
    // Refused for another reason, it ends at once.
    scene.add(3, &range(), Start::Level);
    scene.refuse(old, 3, false);
    assert_eq!(scene.ended, [2, 3]);
    assert_eq!(scene.open(), None);
}

#[test]
fn the_watch_whose_answer_is_too_large_is_found_and_ends_alone() {
    let mut scene = Scene::new();
    (1..=100).for_each(|number| scene.add(number, &range(), Start::Level));
    let mut streams = vec![scene.open().unwrap()];
    scene.create(streams[0]);
    let mut breaks = 0;
    // Breaks whichever stream carries 77.
    while scene.ended.is_empty() {
        let guilty = streams.iter().copied().find(|stream| scene.numbers_on(*stream).contains(&77)).unwrap();
        scene.break_off(guilty, Break::TooLarge);
        breaks += 1;
        while let Some(stream) = scene.open() {
            scene.create(stream);
            streams.push(stream);
        }
    }
    assert_eq!(scene.ended, [77]);
    assert!(breaks <= 8, "{breaks}");
    let acts = scene.plan.gather(scene.now, |_| true);
    scene.act(acts);
    let main = scene.plan.main().unwrap();
    scene.create(main);
    assert_eq!(scene.numbers_on(main).len(), 99, "the others are together again");
    assert_eq!(scene.asked.len(), 99);
}

#[test]
fn a_watch_that_is_behind_starts_on_its_own_stream_and_joins_when_level() {
    let mut scene = Scene::new();
    scene.add(1, &range(), Start::Level);
    let main = scene.open().unwrap();
    scene.create(main);
    scene.add(2, &range(), Start::Behind);
    let beside = scene.open().unwrap();
    assert_eq!(scene.numbers_on(beside), [2]);
    scene.create(beside);
    let acts = scene.plan.gather(scene.now, |_| false);
    scene.act(acts);
    assert_eq!(scene.numbers_on(main), [1]);
    let acts = scene.plan.gather(scene.now, |_| true);
    scene.act(acts);
    scene.create(main);
    assert_eq!((scene.numbers_on(main), &scene.closed[..]), (vec![1, 2], &[beside][..]));
}

#[derive(Clone, Debug)]
enum Step {
    Add { is_range: bool, is_behind: bool },
    Leave(usize),
    Open { fails: bool },
    Move,
    Create(usize),
    Refuse { which: usize, is_for_token: bool },
    Late(usize),
    Break { which: usize, is_too_large: bool },
    Gather,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<bool>(), any::<bool>()).prop_map(|(is_range, is_behind)| Step::Add { is_range, is_behind }),
        1 => any::<usize>().prop_map(Step::Leave),
        4 => (0u8..4).prop_map(|fails| Step::Open { fails: fails == 0 }),
        1 => Just(Step::Move),
        8 => any::<usize>().prop_map(Step::Create),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(which, is_for_token)| Step::Refuse { which, is_for_token }),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(which, is_too_large)| Step::Break { which, is_too_large }),
        1 => any::<usize>().prop_map(Step::Late),
        1 => Just(Step::Gather),
    ]
}

proptest! {
    /// Whatever happens in whatever sequence: once everything requested is created, each watch that
    /// did not end is carried by exactly one stream, and there is no stream without watches.
    #[test]
    fn no_watch_is_lost_and_none_is_carried_twice(steps in proptest::collection::vec(step(), 1..80)) {
        let mut scene = Scene::new();
        let mut alive: BTreeSet<u64> = BTreeSet::new();
        let mut next = 0;
        for step in steps {
            let asked: Vec<_> = scene.asked.iter().map(|(place, number)| (*place, *number)).collect();
            match step {
                Step::Add { is_range, is_behind } => {
                    next += 1;
                    alive.insert(next);
                    let keys = if is_range { range() } else { one() };
                    scene.add(next, &keys, if is_behind { Start::Behind } else { Start::Level });
                }
                Step::Leave(which) => {
                    if let Some(number) = alive.iter().copied().nth(which % alive.len().max(1)) {
                        alive.remove(&number);
                        let acts = scene.plan.leave(number);
                        scene.act(acts);
                    }
                }
                Step::Open { fails } => {
                    if let Some(opening) = scene.plan.next_opening() {
                        if fails {
                            let acts = scene.plan.not_opened(&opening);
                            scene.act(acts);
                        } else {
                            scene.opened(opening);
                        }
                    }
                }
                Step::Move => {
                    if let Some(opening) = scene.plan.next_move() {
                        scene.opened(opening);
                    }
                }
                Step::Create(which) if !asked.is_empty() => {
                    let ((stream, turn), number) = asked[which % asked.len()];
                    scene.created(stream, number, turn);
                }
                Step::Late(which) if !scene.past.is_empty() => {
                    let ((stream, turn), number) = scene.past.swap_remove(which % scene.past.len());
                    scene.created(stream, number, turn);
                }
                Step::Refuse { which, is_for_token } if !asked.is_empty() => {
                    let ((stream, turn), number) = asked[which % asked.len()];
                    // A created watch is not refused.
                    if scene.heard.get(&number).is_none_or(|heard| *heard < turn) {
                        scene.refuse(stream, number, is_for_token);
                    }
                }
                Step::Break { which, is_too_large } if !asked.is_empty() => {
                    let ((stream, _), _) = asked[which % asked.len()];
                    scene.break_off(stream, if is_too_large { Break::TooLarge } else { Break::Lost });
                }
                Step::Gather => {
                    let acts = scene.plan.gather(scene.now, |_| true);
                    scene.act(acts);
                }
                _ => {}
            }
            for ended in scene.ended.drain(..) {
                alive.remove(&ended);
            }
        }
        // From here on everything succeeds.
        for _ in 0..100 {
            while scene.open().is_some() {}
            let streams: BTreeSet<u64> = scene.asked.keys().map(|(stream, _)| *stream).collect();
            streams.into_iter().for_each(|stream| scene.create(stream));
            let acts = scene.plan.gather(scene.now, |_| true);
            scene.act(acts);
        }
        let mut carried: Vec<u64> = scene.asked.values().copied().collect();
        carried.sort_unstable();
        prop_assert_eq!(carried, alive.iter().copied().collect::<Vec<_>>());
        for ((_, turn), number) in &scene.asked {
            prop_assert_eq!(scene.heard.get(number), Some(turn), "{} listens to what is carried", number);
        }
        let main: BTreeSet<u64> = scene.asked.keys().map(|(stream, _)| *stream).collect();
        prop_assert!(main.len() <= 1, "all on one stream");
        prop_assert_eq!(scene.plan.streams.len(), usize::from(!alive.is_empty()));
    }
}
