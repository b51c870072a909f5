//! The queue's promises: fairness, no starvation, deadlines, the budget, and a cost that does not grow with what waits.

use proptest::prelude::*;

use super::*;

const POLICY: Policy = Policy {
    window: 2_000,
    age: Duration::from_secs(2),
    patience: Duration::from_secs(5),
    credit: 3_000,
    smallest: 50,
};

/// A queue with a clock that stands still unless it is moved.
struct Bench {
    queue: Queue,
    now: Instant,
    expired: Vec<u64>,
}

impl Bench {
    fn new(policy: Policy) -> Self {
        Self {
            queue: Queue::new(policy),
            now: Instant::now(),
            expired: Vec::new(),
        }
    }

    fn push(&mut self, tenant: &str, lengths: &[usize]) -> u64 {
        self.push_for(tenant, 0, lengths, None)
    }

    /// So many jobs of 10,000 tokens.
    fn flood(&mut self, tenant: &str, jobs: usize) {
        for _ in 0..jobs {
            self.push(tenant, &[100; 100]);
        }
    }

    fn push_for(&mut self, tenant: &str, model: usize, lengths: &[usize], left: Option<Duration>) -> u64 {
        let deadline = left.map(|left| self.now + left);
        self.queue
            .push(&tenant.into(), model, lengths.to_vec(), deadline, self.now)
    }

    fn pick(&mut self, budget: usize) -> Vec<Item> {
        let picked = self.queue.pick(self.now, |_| budget, &mut self.expired);
        picked.map_or_else(Vec::new, |picked| picked.items)
    }

    fn places(&mut self, budget: usize) -> Vec<(u64, usize)> {
        self.pick(budget).iter().map(|item| (item.job, item.index)).collect()
    }
}

#[test]
fn near_lengths_join_the_oldest() {
    let mut bench = Bench::new(POLICY);
    let job = bench.push("a", &[10, 200, 11, 9, 180, 10]);
    assert_eq!(bench.places(40), [(job, 0), (job, 5), (job, 3), (job, 2)]);
    assert_eq!(bench.places(400), [(job, 1), (job, 4)]);
    assert!(bench.pick(400).is_empty());
    assert_eq!(bench.queue.tokens(), 0);
}

#[test]
fn other_models_wait_and_the_oldest_input_leads() {
    let mut bench = Bench::new(POLICY);
    let first = bench.push_for("a", 7, &[10, 10], None);
    let second = bench.push_for("a", 8, &[10, 10], None);
    assert_eq!(bench.places(15), [(first, 0)]);
    assert_eq!(bench.places(100), [(first, 1)]);
    assert_eq!(bench.places(100), [(second, 0), (second, 1)]);
}

#[test]
fn an_input_longer_than_the_budget_goes_alone() {
    let mut bench = Bench::new(POLICY);
    let job = bench.push("a", &[300, 300]);
    assert_eq!(bench.places(100), [(job, 0)]);
    assert_eq!(bench.places(100), [(job, 1)]);
}

/// Who led each of the next batches.
fn leaders(bench: &mut Bench, batches: usize) -> Vec<String> {
    let mut pick = || bench.queue.pick(bench.now, |_| 1_000, &mut bench.expired);
    (0..batches).filter_map(|_| Some(pick()?.tenant.to_string())).collect()
}

#[test]
fn what_a_light_tenant_brings_goes_before_a_flood() {
    let mut bench = Bench::new(POLICY);
    bench.flood("flood", 100);
    leaders(&mut bench, 50);
    bench.push("light", &[100; 15]);
    bench.push("light", &[100; 15]);
    assert_eq!(leaders(&mut bench, 5), ["light", "light", "light", "flood", "flood"]);
}

#[test]
fn a_flood_that_begins_is_not_taken_for_a_light_tenant() {
    let mut bench = Bench::new(POLICY);
    for _ in 0..20 {
        bench.push("steady", &[100; 20]);
        leaders(&mut bench, 2);
    }
    for _ in 0..50 {
        bench.push("flood", &[100; 10]);
    }
    bench.push("steady", &[100; 20]);
    // One batch behind when the flood came, it takes turns from then on.
    assert_eq!(leaders(&mut bench, 5), ["flood", "flood", "steady", "flood", "steady"]);
}

#[test]
fn who_keeps_coming_gets_its_share_and_no_more_than_the_credit_beyond() {
    let mut bench = Bench::new(POLICY);
    bench.flood("flood", 50);
    leaders(&mut bench, 50);
    let mut lead = 0_i64;
    for _ in 0..200 {
        // As soon as it has an answer it asks again.
        if bench.queue.tenants.get("eager").is_none_or(|tenant| tenant.tokens == 0) {
            bench.push("eager", &[100; 10]);
        }
        lead += if leaders(&mut bench, 1) == ["eager"] {
            1_000
        } else {
            -1_000
        };
        let most = i64::try_from(POLICY.credit).unwrap() + 2_000;
        assert!((-2_000..=most).contains(&lead), "{lead}");
    }
    assert!(lead > 0, "it never had its credit");
}

#[test]
fn two_floods_share() {
    let mut bench = Bench::new(POLICY);
    bench.flood("first", 10);
    leaders(&mut bench, 20);
    bench.flood("second", 10);
    let second = leaders(&mut bench, 40).iter().filter(|name| *name == "second").count();
    assert!((19..=21).contains(&second), "{second} of 40");
}

#[test]
fn only_what_used_less_than_its_share_takes_the_express_lane() {
    let mut bench = Bench::new(POLICY);
    bench.flood("flood", 10);
    bench.pick(1_000);
    bench.pick(1_000);
    let light = |bench: &mut Bench, served: &str| {
        let picked = bench
            .queue
            .pick_light(bench.now, |_| 50, |tenant| tenant == served, &mut bench.expired);
        picked.map(|picked| picked.tenant.to_string())
    };
    assert_eq!(light(&mut bench, ""), None, "a flood takes no express lane");
    bench.push("light", &[20]);
    assert_eq!(light(&mut bench, "light"), None, "it is being served");
    assert_eq!(light(&mut bench, ""), Some("light".to_owned()));
}

#[test]
fn a_tenant_without_a_turn_gets_one_after_a_while() {
    let mut bench = Bench::new(POLICY);
    bench.flood("old", 10);
    for _ in 0..90 {
        bench.pick(1_000);
    }
    // Newcomers with credit keep coming; alone they would fill every batch.
    let mut old_turns = 0;
    for number in 0..100 {
        bench.push(&format!("new-{number}"), &[1_000]);
        bench.now += Duration::from_millis(500);
        let picked = bench.queue.pick(bench.now, |_| 1_000, &mut bench.expired).unwrap();
        old_turns += usize::from(&*picked.tenant == "old");
    }
    // 50 seconds, a turn every 5.
    assert!((8..=11).contains(&old_turns), "{old_turns}");
}

#[test]
fn an_input_of_an_unloved_length_is_overtaken_for_a_bounded_time() {
    let mut bench = Bench::new(POLICY);
    let odd = bench.push("a", &[10, 500]);
    let mut batches = 0;
    loop {
        bench.push("a", &[10; 20]);
        batches += 1;
        if bench.places(200).contains(&(odd, 1)) {
            break;
        }
        assert!(batches < 100, "it starves");
    }
    // It leads as soon as what came before it is gone.
    assert_eq!(batches, 2);
}

#[test]
fn what_has_aged_goes_first() {
    let mut bench = Bench::new(POLICY);
    let job = bench.push("a", &[10, 50, 10]);
    bench.now += POLICY.age;
    assert_eq!(bench.places(60), [(job, 0), (job, 1)]);
}

#[test]
fn what_has_expired_is_handed_over_and_never_picked() {
    let mut bench = Bench::new(POLICY);
    let soon = bench.push_for("a", 0, &[10; 300], Some(Duration::from_secs(1)));
    let later = bench.push_for("a", 0, &[10], Some(Duration::from_secs(3)));
    assert_eq!(bench.pick(100).len(), 10);
    bench.now += Duration::from_secs(1);
    assert_eq!(bench.places(100), [(later, 0)]);
    assert_eq!(bench.expired, [soon]);
    assert!(bench.pick(100).is_empty());
    assert!(bench.queue.tokens() == 0 && bench.queue.order.is_empty());
}

#[test]
fn small_batches_are_filled_up_with_other_tenants_inputs() {
    let mut bench = Bench::new(POLICY);
    bench.push("flood", &[10; 100]);
    bench.pick(100);
    let light = bench.push("light", &[10]);
    let items = bench.pick(100);
    assert_eq!(
        (items[0].job, items.len()),
        (light, 5),
        "up to the smallest batch, not to the budget"
    );
    let full = bench.push("light", &[10; 5]);
    assert!(bench.pick(100).iter().all(|item| item.job == full));
}

#[test]
fn many_names_do_not_fill_the_memory() {
    let mut bench = Bench::new(POLICY);
    for number in 0..20_000 {
        bench.push(&format!("tenant-{number}"), &[10]);
        bench.pick(1_000);
    }
    assert!(
        bench.queue.tenants.len() <= 2 * REMEMBERED,
        "{}",
        bench.queue.tenants.len()
    );
    assert!(bench.queue.order.is_empty() && bench.queue.turns.is_empty() && bench.queue.jobs.is_empty());
}

/// Steps per input when `count` inputs of `tenants` tenants wait at once, some of them given up.
fn steps_per_input(count: usize, tenants: usize) -> u64 {
    let mut bench = Bench::new(POLICY);
    let lengths: Vec<usize> = (0..10).map(|at| 8 + at * 97 % 240).collect();
    let jobs: Vec<u64> = (0..count / 10)
        .map(|job| bench.push(&format!("t{}", job % tenants), &lengths))
        .collect();
    for job in jobs.iter().step_by(7) {
        bench.queue.remove(*job, bench.now);
    }
    while !bench.pick(1_000).is_empty() {}
    assert_eq!(bench.queue.tokens(), 0);
    bench.queue.steps() / count as u64
}

#[test]
fn the_cost_of_an_input_does_not_grow_with_what_waits() {
    for tenants in [1, 50] {
        let (few, many) = (steps_per_input(1_000, tenants), steps_per_input(100_000, tenants));
        assert!(
            many <= 2 * few.max(4),
            "{tenants} tenants: {few} steps an input with 1,000 waiting, {many} with 100,000"
        );
        assert!(many < 12, "{many} steps an input");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Push(u8, u8, Vec<usize>, Option<u64>),
    Remove(u64),
    Pick(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let lengths = proptest::collection::vec(1_usize..512, 1..40);
    prop_oneof![
        4 => (0_u8..4, 0_u8..2, lengths, proptest::option::of(1_u64..3_000))
            .prop_map(|(tenant, model, lengths, left)| Step::Push(tenant, model, lengths, left)),
        1 => (0_u64..50).prop_map(Step::Remove),
        4 => (1_usize..4_096).prop_map(Step::Pick),
        1 => (1_u64..2_000).prop_map(Step::Wait),
    ]
}

/// An input as the plain list has it.
#[derive(Debug)]
struct Expected {
    tenant: String,
    model: usize,
    tokens: usize,
    deadline: Option<Instant>,
}

impl Expected {
    fn is_wanted(&self, now: Instant) -> bool {
        self.deadline.is_none_or(|deadline| deadline > now)
    }
}

proptest! {
    /// Against a plain list of what waits: each input is picked once, by its own model, within the budget, before its deadline and
    /// not after its job was removed; and what is picked first is the oldest of its tenant.
    #[test]
    fn the_queue_keeps_its_promises(steps in proptest::collection::vec(step(), 1..80)) {
        let mut bench = Bench::new(POLICY);
        let mut waiting: BTreeMap<(u64, usize), Expected> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Push(tenant, model, lengths, left) => {
                    let left = left.map(Duration::from_millis);
                    let (tenant, model) = (tenant.to_string(), usize::from(model));
                    let job = bench.push_for(&tenant, model, &lengths, left);
                    for (index, &tokens) in lengths.iter().enumerate() {
                        let deadline = left.map(|left| bench.now + left);
                        waiting.insert((job, index), Expected { tenant: tenant.clone(), model, tokens, deadline });
                    }
                }
                Step::Remove(job) => {
                    bench.queue.remove(job, bench.now);
                    waiting.retain(|&(number, _), _| number != job);
                }
                Step::Wait(milliseconds) => bench.now += Duration::from_millis(milliseconds),
                Step::Pick(budget) => {
                    let picked = bench.queue.pick(bench.now, |_| budget, &mut bench.expired);
                    for job in bench.expired.drain(..) {
                        let before = waiting.len();
                        waiting.retain(|&(number, _), input| number != job || input.is_wanted(bench.now));
                        prop_assert!(waiting.len() < before, "job {job} had not expired");
                    }
                    let Some(picked) = picked else {
                        prop_assert!(waiting.is_empty());
                        continue;
                    };
                    let tokens: usize = picked.items.iter().map(|item| item.tokens).sum();
                    prop_assert!(picked.items.len() == 1 || tokens <= budget, "{tokens} > {budget}");
                    let first = picked.items[0];
                    let oldest = waiting
                        .iter()
                        .find(|(_, input)| *input.tenant == *picked.tenant && input.is_wanted(bench.now));
                    prop_assert_eq!(oldest.map(|(&place, _)| place), Some((first.job, first.index)));
                    for item in &picked.items {
                        let input = waiting.remove(&(item.job, item.index)).unwrap();
                        prop_assert_eq!((input.model, input.tokens), (picked.model, item.tokens));
                        prop_assert!(input.is_wanted(bench.now));
                    }
                }
            }
            prop_assert_eq!(bench.queue.tokens(), waiting.values().map(|input| input.tokens).sum::<usize>());
        }
    }
}
