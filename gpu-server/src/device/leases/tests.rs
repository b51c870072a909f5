//! The promises of leases: nothing is overdrawn, nobody starves, turns and order hold; then the desk, on a stopped clock.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::book::Book;
use super::desk::Desk;
use super::line::Ticket;
use super::*;
use crate::device::ledger::{Holder, Ledger};
use crate::device::{ActiveDevice, DeviceInfo};
use crate::lingering::link;

const TTL: Duration = Duration::from_secs(10);
const GRACE: Duration = Duration::from_secs(3);

fn rooms() -> Vec<Room> {
    [("cuda:0", "GPU-0", 100), ("cuda:1", "MIG-1", 80)]
        .map(|(id, uuid, total)| Room {
            id: id.into(),
            uuid: uuid.into(),
            total,
            taken: 0,
        })
        .into()
}

fn ask(tenant: &str, bytes: u64, device: &str) -> Ask {
    Ask {
        tenant: tenant.to_owned(),
        owner: "me".to_owned(),
        bytes,
        device: device.to_owned(),
        ttl: TTL,
        connection: None,
        origin: Origin::default(),
    }
}

/// Serves all that can be served: ticket and lease, in order.
fn serve(book: &mut Book, rooms: &[Room], now: Instant) -> Vec<(Ticket, Lease)> {
    let mut served = Vec::new();
    while let Some(turn) = book.next(rooms) {
        let lease = book.grant(&turn, format!("lease-{}", turn.ticket), now).unwrap();
        served.push((turn.ticket, lease));
    }
    served
}

fn tickets(served: &[(Ticket, Lease)]) -> Vec<Ticket> {
    served.iter().map(|(ticket, _)| *ticket).collect()
}

#[test]
fn the_device_with_most_left_is_taken_and_none_is_overdrawn() {
    let (mut book, now) = (Book::default(), Instant::now());
    for _ in 0..3 {
        book.join(ask("a", 60, "")).unwrap();
    }
    let served = serve(&mut book, &rooms(), now);
    let devices: Vec<&str> = served.iter().map(|(_, lease)| lease.device.as_str()).collect();
    assert_eq!(devices, ["cuda:0", "cuda:1"]);
    assert_eq!((book.leased("cuda:0"), book.leased("cuda:1")), (60, 60));
}

#[test]
fn a_device_is_named_by_id_or_uuid_also_a_mig_device() {
    let (mut book, now) = (Book::default(), Instant::now());
    for device in ["MIG-1", "cuda:1", "GPU-0"] {
        book.join(ask("a", 40, device)).unwrap();
    }
    let served = serve(&mut book, &rooms(), now);
    let devices: Vec<&str> = served.iter().map(|(_, lease)| lease.device.as_str()).collect();
    assert_eq!(devices, ["cuda:1", "cuda:1", "cuda:0"]);
}

#[test]
fn what_models_and_collections_hold_is_not_leased() {
    let (mut book, now) = (Book::default(), Instant::now());
    let mut rooms = rooms();
    rooms[0].taken = 70;
    book.join(ask("a", 31, "cuda:0")).unwrap();
    assert!(serve(&mut book, &rooms, now).is_empty());
    rooms[0].taken = 69;
    assert_eq!(serve(&mut book, &rooms, now).len(), 1);
}

#[test]
fn a_large_request_is_not_starved_by_small_ones() {
    let (mut book, now) = (Book::default(), Instant::now());
    let rooms = &rooms()[..1];
    let small: Vec<_> = (0..10).map(|_| book.join(ask("a", 10, "")).unwrap()).collect();
    assert_eq!(tickets(&serve(&mut book, rooms, now)), small);
    let large = book.join(ask("b", 100, "")).unwrap();
    // For each small one that ends another one comes: nothing of what becomes free is given to it.
    for (round, ticket) in small.iter().enumerate() {
        let late = book.join(ask("a", 10, "")).unwrap();
        assert!(serve(&mut book, rooms, now).is_empty(), "round {round}");
        assert_eq!(book.before(late), round + 1);
        book.release("a", &format!("lease-{ticket}"), now).unwrap();
    }
    assert_eq!(tickets(&serve(&mut book, rooms, now)), [large]);
}

#[test]
fn who_waits_for_one_device_does_not_hold_up_another_one() {
    let (mut book, now) = (Book::default(), Instant::now());
    book.join(ask("a", 80, "cuda:1")).unwrap();
    serve(&mut book, &rooms(), now);
    let waits = book.join(ask("a", 1, "cuda:1")).unwrap();
    let other = book.join(ask("a", 1, "cuda:0")).unwrap();
    assert_eq!(tickets(&serve(&mut book, &rooms(), now)), [other]);
    book.leave(waits);
    let next = book.join(ask("b", 80, "cuda:1")).unwrap();
    book.release("a", "lease-0", now).unwrap();
    assert_eq!(tickets(&serve(&mut book, &rooms(), now)), [next]);
}

#[test]
fn tenants_take_turns() {
    let (mut book, now) = (Book::default(), Instant::now());
    let rooms = &rooms()[..1];
    book.join(ask("x", 100, "")).unwrap();
    serve(&mut book, rooms, now);
    let a: Vec<_> = (0..3).map(|_| book.join(ask("a", 100, "")).unwrap()).collect();
    let b: Vec<_> = (0..2).map(|_| book.join(ask("b", 100, "")).unwrap()).collect();
    let (mut order, mut last) = (Vec::new(), ("x".to_owned(), 0));
    for _ in 0..5 {
        book.release(&last.0, &format!("lease-{}", last.1), now).unwrap();
        let [(ticket, lease)] = &serve(&mut book, rooms, now)[..] else {
            panic!("one fits at a time")
        };
        last = (lease.tenant.clone(), *ticket);
        order.push(*ticket);
    }
    assert_eq!(order, [a[0], b[0], a[1], b[1], a[2]]);
}

#[test]
fn a_tenant_cannot_fill_the_line_for_others() {
    let mut book = Book::default();
    for _ in 0..128 {
        book.join(ask("a", 1, "")).unwrap();
    }
    assert!(matches!(book.join(ask("a", 1, "")), Err(Error::QueueFull { .. })));
    book.join(ask("b", 1, "")).unwrap();
}

#[test]
fn a_lease_is_renewed_and_released_by_its_tenant_while_it_holds_and_each_refusal_says_why() {
    let (mut book, now) = (Book::default(), Instant::now());
    for _ in 0..2 {
        book.join(ask("a", 10, "")).unwrap();
    }
    serve(&mut book, &rooms(), now);
    let soon = now + Duration::from_secs(9);
    let refused = |outcome: Result<Lease, Error>| outcome.unwrap_err().to_string();
    for foreign in [
        book.renew("b", "lease-0", TTL, None, soon),
        book.release("b", "lease-0", soon),
    ] {
        assert_eq!(refused(foreign), "lease \"lease-0\" is unknown, expired or released");
    }
    book.renew("a", "lease-0", TTL, None, soon).unwrap();
    let late = now + TTL;
    let over = book.expire(late);
    assert_eq!(
        (over.len(), over[0].0.id.as_str(), over[0].1),
        (1, "lease-1", Ended::Expired)
    );
    assert!(refused(book.renew("a", "lease-1", TTL, None, late)).contains("has expired"));
    assert!(refused(book.renew("b", "lease-1", TTL, None, late)).contains("unknown"));
    assert_eq!(book.release("a", "lease-0", late).unwrap().bytes, 10);
    assert!(refused(book.release("a", "lease-0", late)).contains("released already"));
    assert_eq!(book.wake(), None);
}

#[test]
fn what_no_waiting_can_help_is_refused_at_once() {
    let field = |outcome: Result<(), Error>| match outcome {
        Err(Error::InvalidField { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(check(&rooms(), &ask("a", 101, ""))), "memory_bytes");
    assert_eq!(field(check(&rooms(), &ask("a", 81, "cuda:1"))), "memory_bytes");
    assert_eq!(field(check(&rooms(), &ask("a", u64::MAX, ""))), "memory_bytes");
    assert_eq!(field(check(&rooms(), &ask("a", 1, "cuda:7"))), "device");
    assert!(check(&rooms(), &ask("a", 100, "")).is_ok());
    let device = |id: &str, is_gpu| DeviceInfo {
        id: id.to_owned(),
        is_gpu,
        total_memory: 100,
        ..DeviceInfo::default()
    };
    let nothing = Room::of(&[device("cpu", false), device("GPU-1", true)]);
    assert!(matches!(
        check(&nothing, &ask("a", 1, "")),
        Err(Error::GpuUnavailable { .. })
    ));
}

#[derive(Debug, Clone)]
enum Step {
    Join { tenant: u8, bytes: u64, device: Option<u8> },
    Leave(usize),
    Release(usize),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..4_u8, 1..80_u64, proptest::option::of(0..2_u8))
            .prop_map(|(tenant, bytes, device)| Step::Join { tenant, bytes, device }),
        1 => (0..8_usize).prop_map(Step::Leave),
        2 => (0..8_usize).prop_map(Step::Release),
        1 => (0..6_u64).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..80)
}

/// The plain model: everything in lists, in the order in which it came.
#[derive(Default)]
struct Plain {
    waiting: Vec<(Ticket, Ask)>,
    held: HashMap<Ticket, Lease>,
    /// How many of its own tenant came before one that waits, since the line was last empty.
    earlier: HashMap<Ticket, u32>,
    joined: HashMap<String, u32>,
    /// How often each other tenant was served before one that waits, though it came later.
    overtaken: HashMap<Ticket, HashMap<String, u32>>,
}

proptest! {
    #[test]
    fn never_overdrawn_first_come_within_a_tenant_and_nobody_starves(steps in steps()) {
        let (mut book, mut plain, mut now) = (Book::default(), Plain::default(), Instant::now());
        let rooms = rooms();
        let whole = steps.len();
        for at in 0..whole + 400 {
            match steps.get(at) {
                Some(Step::Join { tenant, bytes, device }) => {
                    let device = device.map_or_else(String::new, |device| format!("cuda:{device}"));
                    let ask = ask(&format!("t{tenant}"), *bytes, &device);
                    let ticket = book.join(ask.clone()).unwrap();
                    let joined = plain.joined.entry(ask.tenant.clone()).or_default();
                    plain.earlier.insert(ticket, *joined);
                    *joined += 1;
                    plain.waiting.push((ticket, ask));
                }
                Some(Step::Leave(which)) if !plain.waiting.is_empty() => {
                    let (ticket, _) = plain.waiting.remove(which % plain.waiting.len());
                    plain.overtaken.remove(&ticket);
                    book.leave(ticket);
                }
                Some(Step::Release(which)) if !plain.held.is_empty() => {
                    let mut tickets: Vec<Ticket> = plain.held.keys().copied().collect();
                    tickets.sort_unstable();
                    let lease = plain.held.remove(&tickets[which % tickets.len()]).unwrap();
                    prop_assert_eq!(book.release(&lease.tenant, &lease.id, now).unwrap(), lease);
                }
                Some(Step::Pass(seconds)) => now += Duration::from_secs(*seconds),
                Some(_) => {}
                // At the end all that is held expires, again and again.
                None if plain.waiting.is_empty() => break,
                None => now += TTL,
            }
            let over: Vec<String> = book.expire(now).into_iter().map(|(lease, _)| lease.id).collect();
            plain.held.retain(|_, lease| {
                let ended = lease.expires <= now;
                assert_eq!(ended, over.contains(&lease.id));
                !ended
            });
            for (ticket, lease) in serve(&mut book, &rooms, now) {
                let place = plain.waiting.iter().position(|(at, _)| *at == ticket).unwrap();
                let (_, own) = plain.waiting.remove(place);
                prop_assert_eq!((&lease.tenant, lease.bytes), (&own.tenant, own.bytes));
                let room = rooms.iter().find(|room| room.id == lease.device).unwrap();
                prop_assert!(room.accepts(&own));
                // First come, first served, for the memory of one device.
                let overtook = plain.waiting[..place].iter().any(|(_, earlier)| earlier.tenant == own.tenant && room.accepts(earlier));
                prop_assert!(!overtook, "{ticket} was served before an earlier one of its tenant");
                plain.overtaken.remove(&ticket);
                // Those who came before it and could have used that memory.
                for (before, waits) in &plain.waiting[..place] {
                    if waits.tenant == own.tenant || !room.accepts(waits) {
                        continue;
                    }
                    let times = plain.overtaken.entry(*before).or_default().entry(own.tenant.clone()).or_default();
                    *times += 1;
                    prop_assert!(*times <= plain.earlier[before], "{before} was overtaken {times} times by {}", own.tenant);
                }
                plain.held.insert(ticket, lease);
            }
            if plain.waiting.is_empty() {
                plain.joined.clear();
            }
            for room in &rooms {
                let here = plain.held.values().filter(|lease| lease.device == room.id);
                let sum: u64 = here.map(|lease| lease.bytes).sum();
                prop_assert!(sum <= room.total);
                prop_assert_eq!(book.leased(&room.id), sum);
            }
        }
        prop_assert!(plain.waiting.is_empty(), "someone waits for ever: {:?}", plain.waiting);
    }
}

fn ledger(memory: u64) -> Ledger {
    Ledger::of(Some(&ActiveDevice {
        device: tch::Device::Cpu,
        id: "cuda:0".to_owned(),
        detail: String::new(),
        fast_bf16: false,
        memory: Some(memory),
        watched: None,
    }))
}

fn one_room() -> Vec<Room> {
    rooms()[..1].to_vec()
}

const LONG: Duration = Duration::from_secs(3600);

async fn allocate(desk: &Arc<Desk>, ask: Ask, wait: Duration) -> Result<Lease, Error> {
    desk.allocate(one_room(), ask, wait, None).await
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_until_a_lease_ends_by_itself_or_until_its_time_is_over() {
    let desk = Desk::open(ledger(100), None, GRACE);
    allocate(&desk, ask("a", 100, ""), Duration::ZERO).await.unwrap();
    let refused = allocate(&desk, ask("b", 1, ""), Duration::ZERO).await.unwrap_err();
    let Error::GpuMemoryExhausted {
        wanted_bytes,
        free_bytes,
        waiting,
    } = refused
    else {
        panic!("{refused}")
    };
    assert_eq!((wanted_bytes, free_bytes, waiting), (1, 0, 0));
    let begun = tokio::time::Instant::now();
    let short = Duration::from_secs(4);
    let refused = allocate(&desk, ask("b", 1, ""), short).await.unwrap_err();
    assert!(matches!(refused, Error::GpuMemoryExhausted { .. }));
    assert_eq!(begun.elapsed().as_secs(), 4);
    let lease = allocate(&desk, ask("b", 1, ""), LONG).await.unwrap();
    assert_eq!((lease.bytes, begun.elapsed().as_secs()), (1, TTL.as_secs()));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_leaves_the_line() {
    let desk = Desk::open(ledger(100), None, GRACE);
    let held = allocate(&desk, ask("a", 100, ""), Duration::ZERO).await.unwrap();
    let leaves = {
        let desk = Arc::clone(&desk);
        tokio::spawn(async move { allocate(&desk, ask("b", 100, ""), LONG).await })
    };
    let stays = {
        let desk = Arc::clone(&desk);
        tokio::spawn(async move { allocate(&desk, ask("c", 100, ""), LONG).await })
    };
    tokio::task::yield_now().await;
    leaves.abort();
    assert!(leaves.await.unwrap_err().is_cancelled());
    desk.release("a", &held.id).unwrap();
    assert_eq!(stays.await.unwrap().unwrap().tenant, "c");
    assert_eq!(desk.leased("cuda:0"), 100);
}

#[tokio::test(start_paused = true)]
async fn memory_that_a_model_gives_back_is_leased() {
    let ledger = ledger(100);
    let desk = Desk::open(ledger.clone(), None, GRACE);
    let model = ledger.reserve(Holder::Models, "model \"m\"", 50).unwrap();
    let refused = allocate(&desk, ask("a", 51, ""), Duration::ZERO).await.unwrap_err();
    assert!(
        matches!(refused, Error::GpuMemoryExhausted { free_bytes: 50, .. }),
        "{refused}"
    );
    let waits = {
        let desk = Arc::clone(&desk);
        tokio::spawn(async move { allocate(&desk, ask("a", 51, ""), LONG).await })
    };
    tokio::task::yield_now().await;
    drop(model);
    assert_eq!(waits.await.unwrap().unwrap().bytes, 51);
    let refused = ledger.reserve(Holder::Models, "model \"m\"", 50).unwrap_err();
    assert!(
        matches!(refused, Error::GpuMemoryHeld { leased_bytes: 51, .. }),
        "{refused}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_with_its_connection_after_a_grace_unless_it_is_renewed_over_another_one() {
    let desk = Desk::open(ledger(100), None, GRACE);
    let (first, ends_first) = link(None);
    let (second, ends_second) = link(None);
    let long = Duration::from_secs(3600);
    let bound = |bytes, connection| Ask {
        ttl: long,
        connection,
        ..ask("a", bytes, "")
    };
    let dies = desk.allocate(
        one_room(),
        bound(10, Some(first.id)),
        Duration::ZERO,
        Some(first.clone()),
    );
    let dies = dies.await.unwrap();
    let moves = desk.allocate(
        one_room(),
        bound(20, Some(first.id)),
        Duration::ZERO,
        Some(first.clone()),
    );
    let moves = moves.await.unwrap();
    let outlives = desk.allocate(one_room(), bound(40, None), Duration::ZERO, Some(first.clone()));
    outlives.await.unwrap();
    drop(ends_first);
    tokio::time::sleep(GRACE.saturating_sub(Duration::from_secs(1))).await;
    assert_eq!(desk.leased("cuda:0"), 70, "the owner may come back");
    desk.renew("a", &moves.id, long, Some(second)).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(desk.leased("cuda:0"), 60);
    let told = desk.renew("a", &dies.id, long, None).unwrap_err().to_string();
    assert!(told.contains("connection of its owner died"), "{told}");
    drop(ends_second);
    tokio::time::sleep(GRACE + Duration::from_secs(1)).await;
    assert_eq!(desk.leased("cuda:0"), 40);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_the_server_retires_takes_no_lease_with_it() {
    let desk = Desk::open(ledger(100), None, GRACE);
    let age = Duration::from_secs(60);
    let (old, ends) = link(Some(age));
    let (young, breaks) = link(Some(age));
    for one in [old, young] {
        let bound = Ask {
            ttl: LONG,
            connection: Some(one.id),
            ..ask("a", 10, "")
        };
        desk.allocate(one_room(), bound, Duration::ZERO, Some(one))
            .await
            .unwrap();
    }
    drop(breaks);
    tokio::time::sleep(age).await;
    assert_eq!(desk.leased("cuda:0"), 10, "one broke before its time");
    drop(ends);
    tokio::time::sleep(GRACE * 2).await;
    assert_eq!(desk.leased("cuda:0"), 10);
    tokio::time::sleep(LONG).await;
    assert_eq!(desk.leased("cuda:0"), 0, "its time ends it");
}
