//! Which endpoint takes a call.

use super::*;
use crate::config::{ClientConfig, ClientOptions};
use crate::endpoint::Endpoints;
use crate::policy::breaker::Outcome;

const SERVICE: Service = Service::Embedding;
/// Long enough for nobody to be new.
const LATER: Duration = Duration::from_secs(60);

fn pool(count: u16) -> Pool {
    let addresses = (1..=count).map(|port| format!("http://127.0.0.1:{port}")).collect();
    let options = ClientOptions {
        addresses: Some(addresses),
        breaker_failures: Some(1),
        ..ClientOptions::default()
    };
    let config = ClientConfig::try_new(&options).unwrap();
    let registry = Endpoints::default();
    let members = Members::new(SERVICE, &Arc::new(config), &registry).unwrap();
    Pool::new(SERVICE, members)
}

fn index(pool: &Pool, admitted: &Admitted) -> usize {
    let place = &admitted.place.endpoint;
    pool.members
        .current()
        .iter()
        .position(|member| Arc::ptr_eq(member, place))
        .unwrap()
}

/// How many of `calls` each endpoint takes; they all stay out.
fn shares(pool: &Pool, calls: usize, now: Instant) -> Vec<usize> {
    let mut random = fastrand::Rng::with_seed(7);
    let held: Vec<_> = (0..calls).map(|_| pool.pick(&[], &mut random, now).unwrap()).collect();
    let mut shares = vec![0; pool.members.current().len()];
    for admitted in &held {
        shares[index(pool, admitted)] += 1;
    }
    shares
}

fn open(pool: &Pool, index: usize, now: Instant) {
    let permit = pool.members.current()[index].breaker.admit(now).unwrap();
    permit.report(now, Outcome::Failure);
}

#[test]
fn calls_are_spread_over_all_endpoints() {
    let shares = shares(&pool(4), 400, Instant::now() + LATER);
    assert!(shares.iter().all(|share| (90..=110).contains(share)), "{shares:?}");
}

#[test]
fn an_endpoint_that_is_three_times_as_slow_is_given_about_a_third() {
    let (pool, now) = (pool(2), Instant::now() + LATER);
    for _ in 0..1000 {
        pool.members.current()[0].note_answer(3.0, now);
        pool.members.current()[1].note_answer(1.0, now);
    }
    let shares = shares(&pool, 400, now);
    assert!((85..=130).contains(&shares[0]), "{shares:?}");
}

#[test]
fn an_endpoint_that_has_just_come_back_begins_slowly() {
    let (pool, now) = (pool(2), Instant::now() + LATER);
    open(&pool, 0, now);
    let now = now + LATER;
    let probe = pool.members.current()[0].breaker.admit(now).unwrap();
    probe.report(now, Outcome::Success);
    let at_first = shares(&pool, 110, now);
    assert!((8..=12).contains(&at_first[0]), "{at_first:?}");
    let afterwards = shares(&pool, 110, now + LATER);
    assert!((50..=60).contains(&afterwards[0]), "{afterwards:?}");
}

// requirement: isolation 5.4
#[test]
fn an_open_breaker_moves_the_load_and_all_open_ones_say_how_long() {
    let (pool, now) = (pool(2), Instant::now());
    let mut random = fastrand::Rng::with_seed(7);
    open(&pool, 0, now);
    for _ in 0..10 {
        let picked = pool.pick(&[], &mut random, now).unwrap();
        assert_eq!(index(&pool, &picked), 1);
    }
    assert!(!pool.has_untried(&[pool.members.current()[1].id()], now));
    open(&pool, 1, now + Duration::from_secs(1));
    let refused = pool.pick(&[], &mut random, now + Duration::from_secs(2)).unwrap_err();
    assert!(Arc::ptr_eq(&refused.endpoint.unwrap(), &pool.members.current()[0]));
    assert_eq!(refused.retry_after, Duration::from_secs(3));
}

#[test]
fn a_retry_goes_where_the_call_has_not_been() {
    let (pool, now) = (pool(3), Instant::now());
    let mut random = fastrand::Rng::with_seed(7);
    let tried = [pool.members.current()[0].id(), pool.members.current()[2].id()];
    for _ in 0..6 {
        let picked = pool.pick(&tried, &mut random, now).unwrap();
        assert_eq!(index(&pool, &picked), 1);
    }
    assert!(pool.has_untried(&tried, now));
    let all: Vec<u64> = pool.members.current().iter().map(|member| member.id()).collect();
    assert!(!pool.has_untried(&all, now));
    assert!(
        pool.pick(&all, &mut random, now).is_ok(),
        "where all have been tried, one is tried again"
    );
}

#[test]
fn an_outlier_is_left_alone_unless_half_of_all_are() {
    let (pool, now) = (pool(3), Instant::now() + LATER);
    let set_aside = |index: usize| {
        for _ in 0..20 {
            pool.note_failure(&pool.members.current()[index], now);
        }
        assert!(pool.members.current()[index].aside(now));
    };
    set_aside(0);
    assert_eq!(shares(&pool, 100, now)[0], 0);
    // Two of three would leave less than half of them.
    for _ in 0..20 {
        pool.members.current()[1].note_outlier(0.0, now);
    }
    assert!(pool.members.current()[1].aside(now));
    let shares = shares(&pool, 100, now);
    assert!(shares.iter().all(|share| *share > 20), "{shares:?}");
}

#[test]
fn where_all_fail_alike_nobody_is_an_outlier() {
    let (pool, now) = (pool(3), Instant::now() + LATER);
    for _ in 0..30 {
        for member in &*pool.members.current() {
            pool.note_failure(member, now);
        }
    }
    let aside = pool.members.current().iter().filter(|member| member.aside(now)).count();
    assert!(
        aside <= 1,
        "{aside}: the first failures of the first one come before those of the others"
    );
}

#[test]
fn a_single_endpoint_takes_every_call_and_nothing_is_measured() {
    let (pool, now) = (pool(1), Instant::now());
    let admitted = pool.pick(&[], &mut fastrand::Rng::with_seed(1), now).unwrap();
    pool.note_answer(&admitted.place, ("GenerateEmbeddings", 10), LATER, now);
    assert_eq!(pool.statuses(now)[0].slowness, None);
    assert!(!pool.note_failure(&pool.members.current()[0], now));
}
