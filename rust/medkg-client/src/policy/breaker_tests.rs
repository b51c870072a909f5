//! What a breaker promises, on a clock that the tests move.

use super::*;

const COOLDOWN: Duration = Duration::from_secs(5);

fn breaker() -> (Breaker, Instant) {
    (
        Breaker::new(BreakerConfig::try_new(3, COOLDOWN).unwrap()),
        Instant::now(),
    )
}

fn end(breaker: &Breaker, now: Instant, outcome: Outcome) {
    breaker.admit(now).unwrap().report(now, outcome);
}

fn opened() -> (Breaker, Instant) {
    let (breaker, now) = breaker();
    for _ in 0..3 {
        end(&breaker, now, Outcome::Failure);
    }
    assert_eq!(breaker.state(now), BreakerState::Open);
    (breaker, now)
}

// requirement: isolation 5.4
#[test]
fn opens_after_so_many_failures_in_a_row_and_says_how_long() {
    let (breaker, now) = opened();
    assert_eq!(breaker.admit(now).unwrap_err().retry_after, COOLDOWN);
    assert_eq!(
        breaker.refuses(now + COOLDOWN / 5).unwrap().retry_after,
        COOLDOWN * 4 / 5
    );
}

#[test]
fn a_success_in_between_starts_the_count_again() {
    let (breaker, now) = breaker();
    for _ in 0..10 {
        end(&breaker, now, Outcome::Failure);
        end(&breaker, now, Outcome::Failure);
        end(&breaker, now, Outcome::Success);
    }
    assert_eq!(breaker.state(now), BreakerState::Closed);
}

// requirement: isolation 5.4
#[test]
fn answers_never_open_it_and_are_no_success_either() {
    let (breaker, now) = breaker();
    for _ in 0..100 {
        end(&breaker, now, Outcome::Answered);
    }
    assert_eq!(breaker.state(now), BreakerState::Closed);
    end(&breaker, now, Outcome::Failure);
    end(&breaker, now, Outcome::Failure);
    end(&breaker, now, Outcome::Answered);
    end(&breaker, now, Outcome::Failure);
    assert_eq!(
        breaker.state(now),
        BreakerState::Open,
        "the answer must not have wiped the failures"
    );
}

#[test]
fn half_open_lets_exactly_one_probe_through() {
    let (breaker, now) = opened();
    let later = now + COOLDOWN;
    assert_eq!(breaker.state(later), BreakerState::HalfOpen);
    let probe = breaker.admit(later).unwrap();
    for _ in 0..10 {
        assert!(
            breaker.admit(later).is_err(),
            "a second call was let through while the probe is out"
        );
    }
    probe.report(later, Outcome::Success);
    assert_eq!(breaker.state(later), BreakerState::Closed);
    assert!(breaker.admit(later).is_ok());
}

#[test]
fn a_cancelled_probe_makes_the_next_call_the_probe() {
    let (breaker, now) = opened();
    let later = now + COOLDOWN;
    drop(breaker.admit(later).unwrap());
    let probe = breaker.admit(later).expect("the place of the cancelled probe is free");
    assert!(breaker.admit(later).is_err());
    probe.report(later, Outcome::Success);
    assert_eq!(breaker.state(later), BreakerState::Closed);
}

#[test]
fn a_cancelled_call_counts_neither_way_while_closed() {
    let (breaker, now) = breaker();
    end(&breaker, now, Outcome::Failure);
    end(&breaker, now, Outcome::Failure);
    drop(breaker.admit(now).unwrap());
    assert_eq!(breaker.state(now), BreakerState::Closed);
    end(&breaker, now, Outcome::Failure);
    assert_eq!(breaker.state(now), BreakerState::Open);
}

#[test]
fn failed_probes_keep_it_open_for_longer_up_to_a_bound() {
    let (breaker, mut now) = opened();
    for factor in [2, 4, 8, 8, 8] {
        now += breaker.refuses(now).unwrap().retry_after;
        end(&breaker, now, Outcome::Failure);
        assert_eq!(breaker.refuses(now).unwrap().retry_after, COOLDOWN * factor);
    }
    now += COOLDOWN * 8;
    end(&breaker, now, Outcome::Success);
    for _ in 0..3 {
        end(&breaker, now, Outcome::Failure);
    }
    assert_eq!(
        breaker.refuses(now).unwrap().retry_after,
        COOLDOWN,
        "success forgets the past"
    );
}

#[test]
fn a_probe_that_is_answered_lets_calls_through_but_forgives_nothing() {
    let (breaker, now) = opened();
    let later = now + COOLDOWN;
    end(&breaker, later, Outcome::Answered);
    assert_eq!(breaker.state(later), BreakerState::Closed);
    end(&breaker, later, Outcome::Answered);
    end(&breaker, later, Outcome::Failure);
    assert_eq!(breaker.state(later), BreakerState::Open);
}

#[test]
fn its_changes_are_told_and_a_person_may_close_it() {
    let (breaker, now) = opened();
    let later = now + COOLDOWN;
    let probe = breaker.admit(later).unwrap();
    assert!(breaker.reset(later));
    assert!(!breaker.reset(later));
    let told: Vec<_> = breaker
        .changes()
        .iter()
        .map(|change| (change.at, change.state))
        .collect();
    let expected = [
        (now, BreakerState::Open),
        (later, BreakerState::HalfOpen),
        (later, BreakerState::Closed),
    ];
    assert_eq!(told, expected);
    // The probe of before says nothing any more, and the count begins anew, at the shortest period.
    probe.report(later, Outcome::Failure);
    end(&breaker, later, Outcome::Failure);
    end(&breaker, later, Outcome::Failure);
    assert_eq!(breaker.state(later), BreakerState::Closed);
    end(&breaker, later, Outcome::Failure);
    assert_eq!(breaker.admit(later).unwrap_err().retry_after, COOLDOWN);
    for _ in 0..100 {
        breaker.reset(later);
        (0..3).for_each(|_| end(&breaker, later, Outcome::Failure));
    }
    assert_eq!(breaker.changes().len(), REMEMBERED);
}

#[test]
fn a_late_answer_from_before_the_change_says_nothing() {
    let (breaker, now) = breaker();
    let (early, another) = (breaker.admit(now).unwrap(), breaker.admit(now).unwrap());
    for _ in 0..3 {
        end(&breaker, now, Outcome::Failure);
    }
    early.report(now, Outcome::Success);
    assert_eq!(breaker.state(now), BreakerState::Open);
    let later = now + COOLDOWN;
    let probe = breaker.admit(later).unwrap();
    another.report(later, Outcome::Failure);
    assert!(breaker.admit(later).is_err(), "the probe is still out");
    probe.report(later, Outcome::Success);
    assert_eq!(breaker.state(later), BreakerState::Closed);
}

#[test]
fn settings_that_make_no_sense_cannot_be_built() {
    assert_eq!(BreakerConfig::try_new(0, COOLDOWN), None);
    assert_eq!(BreakerConfig::try_new(1, Duration::ZERO), None);
}
