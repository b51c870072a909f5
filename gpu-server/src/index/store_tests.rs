//! The file against a plain map: what is written is what is read, in every order of writes, after damage or not at all.

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;

use proptest::prelude::*;
use redb::{Database, ReadableDatabase as _, TableHandle as _};

use super::*;
use crate::index::sparse::Rows;

/// Vector and payload of each id.
type Plain = BTreeMap<String, (Vec<f32>, String)>;

const ALL: Wanted = Wanted {
    vectors: true,
    payloads: true,
    sparse: true,
};
const PLAIN: Properties = Properties {
    dimension: 3,
    metric: Metric::Dot,
    storage: Storage::F32,
    sparse_dimension: 0,
};

fn made(folder: &tempfile::TempDir, properties: Properties) -> (PathBuf, Store) {
    let path = folder.path().join("tenant").join("one.redb");
    let store = Store::create(&path, properties).unwrap();
    (path, store)
}

fn points(plain: &Plain) -> Points {
    let rows: Vec<f32> = plain.values().flat_map(|(row, _)| row.clone()).collect();
    Points {
        ids: plain.keys().cloned().collect(),
        vectors: bytemuck::cast_slice::<f32, u8>(&rows).to_vec().into(),
        payloads: plain.values().map(|(_, payload)| payload.clone()).collect(),
        ..Points::default()
    }
}

fn write(store: &Store, plain: &Plain) -> u64 {
    store.write(&points(plain), || Ok(())).unwrap().count
}

/// All that a file has, through each way of reading it.
fn read(store: &Store) -> Result<Plain, Error> {
    let (all, _) = store.read_all()?;
    let dimension = store.properties.dimension;
    let mut payloads = BTreeMap::new();
    store.each_payload(|id, payload| {
        payloads.insert(id.to_owned(), payload.to_owned());
        ControlFlow::Continue(())
    })?;
    let mut ids = all.ids.clone();
    ids.push("nobody".to_owned());
    let fetched = store.fetch(&ids, ALL, usize::MAX)?.unwrap();
    assert_eq!((&fetched.ids, &fetched.missing), (&all.ids, &vec!["nobody".to_owned()]));
    assert_eq!(fetched.vectors, all.vectors);
    assert_eq!(store.payloads(&all.ids)?, fetched.payloads);
    let rows: Vec<f32> = all
        .vectors
        .chunks(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    let found: Plain = all
        .ids
        .into_iter()
        .zip(rows.chunks(dimension).map(<[f32]>::to_vec).zip(fetched.payloads))
        .collect();
    let with_payload: BTreeMap<String, String> = found
        .iter()
        .filter(|(_, (_, payload))| !payload.is_empty())
        .map(|(id, (_, payload))| (id.clone(), payload.clone()))
        .collect();
    assert_eq!(payloads, with_payload);
    Ok(found)
}

/// Blocks and the rows in them, dead ones too.
fn blocks(path: &Path) -> (u64, u64) {
    use redb::ReadableTableMetadata as _;
    let table: TableDefinition<'_, u64, (u32, u32)> = TableDefinition::new("living");
    let database = Database::open(path).unwrap();
    let living = database.begin_read().unwrap().open_table(table).unwrap();
    let rows = living
        .iter()
        .unwrap()
        .map(|entry| u64::from(entry.unwrap().1.value().0));
    (living.len().unwrap(), rows.sum())
}

#[derive(Debug, Clone)]
enum Step {
    Write(BTreeMap<u8, (i8, bool)>),
    Remove(Vec<u8>),
    Refuse(BTreeMap<u8, (i8, bool)>),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let some = || proptest::collection::btree_map(0_u8..60, (any::<i8>(), any::<bool>()), 1..30);
    prop_oneof![
        6 => some().prop_map(Step::Write),
        3 => proptest::collection::vec(0_u8..60, 1..30).prop_map(Step::Remove),
        1 => some().prop_map(Step::Refuse),
        1 => Just(Step::Reopen),
    ]
}

fn named(some: BTreeMap<u8, (i8, bool)>, dimension: usize) -> Plain {
    let payload = |value: i8, has: bool| {
        if has {
            format!(r#"{{"n":{value}}}"#)
        } else {
            String::new()
        }
    };
    some.into_iter()
        .map(|(id, (value, has))| {
            (
                format!("p{id}"),
                (vec![f32::from(value); dimension], payload(value, has)),
            )
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_file_holds_what_a_map_does(
        steps in proptest::collection::vec(step(), 1..14),
        // Rows of which many share a block, a few do, and each has its own.
        dimension in prop_oneof![Just(3_usize), Just(8_192), Just(300_000)],
    ) {
        // The largest are slow to write.
        let steps = if dimension > 100_000 { &steps[..steps.len().min(4)] } else { &steps[..] };
        let folder = tempfile::tempdir().unwrap();
        let (path, mut store) = made(&folder, Properties { dimension, ..PLAIN });
        let mut plain = Plain::new();
        for step in steps.iter().cloned() {
            let before = store.generation().unwrap();
            match step {
                Step::Write(some) => {
                    let some = named(some, dimension);
                    let new = some.keys().filter(|id| !plain.contains_key(*id)).count() as u64;
                    prop_assert_eq!(write(&store, &some), new);
                    plain.extend(some);
                }
                Step::Remove(ids) => {
                    let ids: Vec<String> = ids.into_iter().map(|id| format!("p{id}")).collect();
                    let count = plain.len();
                    plain.retain(|id, _| !ids.contains(id));
                    prop_assert_eq!(store.remove(&ids).unwrap().count, (count - plain.len()) as u64);
                }
                Step::Refuse(some) => {
                    let refusal = || Err(Error::ShuttingDown);
                    let refused = store.write(&points(&named(some, dimension)), refusal);
                    prop_assert!(matches!(refused, Err(Error::ShuttingDown)));
                    prop_assert_eq!(store.generation().unwrap(), before);
                    continue;
                }
                Step::Reopen => {
                    drop(store);
                    store = Store::open(&path).unwrap();
                    prop_assert_eq!(store.generation().unwrap(), before);
                    continue;
                }
            }
            prop_assert_eq!(store.generation().unwrap(), before + 1);
        }
        prop_assert_eq!(read(&store).unwrap(), plain);
    }
}

#[test]
fn space_does_not_grow_under_overwrites_and_is_given_back_by_removals() {
    const COUNT: usize = 2_000;
    let folder = tempfile::tempdir().unwrap();
    let dimension = 96;
    let (path, store) = made(&folder, Properties { dimension, ..PLAIN });
    let all = |value: usize| -> Plain {
        let row = vec![value as f32; dimension];
        (0..COUNT)
            .map(|id| (format!("p{id:05}"), (row.clone(), String::new())))
            .collect()
    };
    let mut plain = all(0);
    write(&store, &plain);
    let mut sizes = Vec::new();
    for round in 1..=40 {
        // Every seventh point, another seven each time: blocks die slowly, and never as a whole.
        let some: Plain = all(round).into_iter().skip(round % 7).step_by(7).collect();
        assert_eq!(write(&store, &some), 0);
        plain.extend(some);
        sizes.push(store.disk_bytes());
    }
    assert_eq!(read(&store).unwrap(), plain);
    let settled = sizes[19];
    assert!(sizes[39] <= settled + settled / 10, "{sizes:?}");
    let ids: Vec<String> = plain.keys().take(COUNT - 10).cloned().collect();
    assert_eq!(store.remove(&ids).unwrap().count, ids.len() as u64);
    let kept: Plain = plain.into_iter().skip(COUNT - 10).collect();
    assert_eq!(read(&store).unwrap(), kept);
    drop(store);
    let (_, rows) = blocks(&path);
    assert!(rows <= 2 * 10 + 200, "{rows} rows lie in blocks, for 10 points");
}

#[test]
fn at_most_half_of_the_rows_are_dead_once_writes_have_caught_up() {
    let folder = tempfile::tempdir().unwrap();
    let (path, store) = made(&folder, PLAIN);
    let all = |value: i8| named((0..60).map(|id| (id, (value, true))).collect(), 3);
    for round in 0..30 {
        // One point at a time: each makes a block of its own, and one row of another one dead.
        for (id, point) in all(round) {
            write(&store, &Plain::from([(id, point)]));
        }
    }
    assert_eq!(read(&store).unwrap(), all(29));
    drop(store);
    let (_, rows) = blocks(&path);
    assert!(rows <= 2 * 60 + 2, "{rows} rows lie in blocks, for 60 points");
}

#[test]
fn a_file_of_before_there_were_blocks_is_read_and_rewritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.redb");
    let vectors: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("vectors");
    let payloads: TableDefinition<'_, &str, &str> = TableDefinition::new("payloads");
    let mut plain = Plain::new();
    {
        let database = Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        // Before there was a choice of storage.
        let properties = br#"{"dimension":3,"metric":"l2"}"#;
        transaction
            .open_table(PROPERTIES)
            .unwrap()
            .insert(COLLECTION, properties.as_slice())
            .unwrap();
        for number in 0..20_000_u16 {
            let (id, row) = (format!("p{number}"), vec![f32::from(number); 3]);
            let mut table = transaction.open_table(vectors).unwrap();
            table.insert(id.as_str(), bytemuck::cast_slice(&row)).unwrap();
            let payload = if number % 3 == 0 {
                format!(r#"{{"n":{number}}}"#)
            } else {
                String::new()
            };
            let mut table = transaction.open_table(payloads).unwrap();
            if !payload.is_empty() {
                table.insert(id.as_str(), payload.as_str()).unwrap();
            }
            plain.insert(id, (row, payload));
        }
        transaction.commit().unwrap();
    }
    let store = Store::open(&path).unwrap();
    let metric = Metric::L2;
    assert_eq!(store.properties, Properties { metric, ..PLAIN });
    assert_eq!(read(&store).unwrap(), plain);
    write(&store, &named([(1, (9, true))].into(), 3));
    plain.extend(named([(1, (9, true))].into(), 3));
    drop(store);
    assert_eq!(read(&Store::open(&path).unwrap()).unwrap(), plain);
    let database = Database::open(&path).unwrap();
    let tables = database.begin_read().unwrap();
    let names: Vec<String> = tables
        .list_tables()
        .unwrap()
        .map(|table| table.name().to_owned())
        .collect();
    assert!(
        !names.iter().any(|name| name == "vectors" || name == "payloads"),
        "{names:?}"
    );
}

/// Exchanges the byte at `at`.
fn flip(path: &Path, at: u64, with: u8) {
    let mut file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ with]).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn a_flipped_byte_is_noticed_or_does_not_matter(at in any::<prop::sample::Index>(), with in 1_u8.., while_open: bool) {
        let folder = tempfile::tempdir().unwrap();
        let dimension = 96;
        let (path, store) = made(&folder, Properties { dimension, ..PLAIN });
        let plain = named((0..60).map(|id| (id, (7, true))).collect(), dimension);
        write(&store, &plain);
        drop(store);
        let length = usize::try_from(std::fs::metadata(&path).unwrap().len()).unwrap();
        let at = at.index(length) as u64;
        let found = if while_open {
            let store = Store::open(&path).unwrap();
            flip(&path, at, with);
            read(&store)
        } else {
            flip(&path, at, with);
            Store::open(&path).and_then(|store| read(&store))
        };
        match found {
            Ok(found) => prop_assert_eq!(found, plain),
            Err(error) => prop_assert!(matches!(error, Error::CollectionDamaged { .. }), "{}", error),
        }
    }
}

#[test]
fn a_sparse_vector_that_was_changed_while_the_file_was_open_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let (path, store) = made(
        &folder,
        Properties {
            sparse_dimension: 100,
            ..PLAIN
        },
    );
    let value = 12_345.678_f32;
    let rows = Rows::try_new(vec![2], vec![3, 50], vec![1.0, value]).unwrap();
    let mut points = points(&named([(1, (7, false))].into(), 3));
    points.sparse = rows.clone();
    store.write(&points, || Ok(())).unwrap();
    let fetch = |store: &Store| store.fetch(&points.ids, ALL, usize::MAX);
    assert_eq!(fetch(&store).unwrap().unwrap().sparse, rows);
    drop(store);
    let store = Store::open(&path).unwrap();
    let file = std::fs::read(&path).unwrap();
    let places = file
        .windows(4)
        .enumerate()
        .filter(|(_, bytes)| *bytes == value.to_le_bytes());
    let places: Vec<u64> = places.map(|(at, _)| at as u64).collect();
    assert!(!places.is_empty());
    for at in places {
        flip(&path, at, 1);
    }
    for error in [fetch(&store).unwrap_err(), store.read_all().unwrap_err()] {
        assert!(matches!(error, Error::CollectionDamaged { .. }), "{error}");
    }
}

#[test]
fn what_is_no_whole_file_is_damaged_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (path, store) = made(&folder, PLAIN);
    write(&store, &named((0..60).map(|id| (id, (7, true))).collect(), 3));
    drop(store);
    let whole = std::fs::read(&path).unwrap();
    let middle = whole.len() / 2;
    let mut zeroed = whole.clone();
    zeroed[4096..middle].fill(0);
    for (what, bytes) in [
        ("empty", &[][..]),
        ("no redb", &b"not a database"[..]),
        ("no redb, and long", &vec![7; 100_000]),
        ("cut in the middle", &whole[..middle]),
        ("cut in the header", &whole[..100]),
        ("a part of zeros", &zeroed),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = Store::open(&path).and_then(|store| read(&store)).unwrap_err();
        assert!(
            matches!(&error, Error::CollectionDamaged { name, .. } if name == "one"),
            "{what}: {error}"
        );
        assert_eq!(
            std::fs::read(&path).unwrap().len(),
            bytes.len(),
            "{what}: it is kept as it is"
        );
    }
    for properties in [
        "{}",
        r#"{"dimension":0,"metric":"dot"}"#,
        r#"{"dimension":3,"metric":"far"}"#,
        "no json",
    ] {
        std::fs::write(&path, &whole).unwrap();
        let database = Database::open(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        let mut table = transaction.open_table(PROPERTIES).unwrap();
        table.insert(COLLECTION, properties.as_bytes()).unwrap();
        drop(table);
        transaction.commit().unwrap();
        drop(database);
        let error = Store::open(&path).unwrap_err();
        assert!(
            matches!(error, Error::CollectionDamaged { .. }),
            "{properties}: {error}"
        );
    }
    // Another length of rows than the file has.
    std::fs::write(&path, &whole).unwrap();
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let mut table = transaction.open_table(PROPERTIES).unwrap();
    table
        .insert(COLLECTION, br#"{"dimension":4,"metric":"dot"}"#.as_slice())
        .unwrap();
    drop(table);
    transaction.commit().unwrap();
    drop(database);
    let error = Store::open(&path).and_then(|store| read(&store)).unwrap_err();
    assert!(matches!(error, Error::CollectionDamaged { .. }), "{error}");
}
