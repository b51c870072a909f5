//! A second file with the same points, made while the first one is in use.

use std::path::Path;

use super::scan::{Part, Scan};
use super::{Points, Store};
use crate::error::Error;

/// Points that are written in one transaction.
const PART: Scan = Scan {
    payloads: true,
    sparse: true,
    part_bytes: 32 * 1024 * 1024,
    part_points: 65_536,
};

impl Store {
    /// Writes the points as they are when it begins into a new file; how many there are. Written point by point, so that it holds
    /// nothing of what was removed before, and is in the layout of this version. `each` hears of the bytes of vectors that
    /// were copied, and ends it by returning an error.
    ///
    /// # Errors
    /// What `each` returns; [`Error::StorageFull`]; what [`Self::scan`] says.
    pub fn copy_to(&self, path: &Path, mut each: impl FnMut(u64) -> Result<(), Error>) -> Result<u64, Error> {
        let copy = Self::create(path, self.properties)?;
        let (mut points, mut bytes) = (0, 0);
        let take = |part: Part| {
            points += part.ids.len() as u64;
            bytes += part.vectors.len() as u64;
            let part = Points {
                vectors: part.vectors.into(),
                ids: part.ids,
                payloads: part.payloads,
                sparse: part.sparse,
            };
            copy.write(&part, || Ok(()))?;
            each(bytes)
        };
        self.scan(PART, || Ok(()), take)?;
        Ok(points)
    }

    /// Opens a file that will have another name; [`Self::path`] is that one.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_as(path: &Path, named: &Path) -> Result<Self, Error> {
        let mut store = Self::open(path)?;
        named.clone_into(&mut store.file.path);
        Ok(store)
    }
}

#[cfg(test)]
mod tests {
    use super::super::floats;
    use super::*;
    use crate::index::sparse::Rows;
    use crate::index::store::{Metric, Properties, Storage, Wanted};

    fn points(ids: std::ops::Range<u16>, value: f32) -> Points {
        Points {
            vectors: bytemuck::cast_slice(&ids.clone().map(|i| [f32::from(i), value]).collect::<Vec<_>>())
                .to_vec()
                .into(),
            payloads: ids.clone().map(|i| format!("{{\"n\":{i}}}")).collect(),
            sparse: Rows::try_new(
                ids.clone().map(|i| usize::from(i - ids.start) + 1).collect(),
                ids.clone().map(u32::from).collect(),
                vec![value; ids.len()],
            )
            .unwrap(),
            ids: ids.map(|i| format!("{i:05}")).collect(),
        }
    }

    fn ids_of(store: &Store) -> Vec<String> {
        let mut ids = store.read_all().unwrap().0.ids;
        ids.sort_unstable();
        ids
    }

    #[test]
    fn a_copy_has_what_there_was_when_it_began_and_is_its_own_file() {
        let folder = tempfile::tempdir().unwrap();
        let properties = Properties {
            dimension: 2,
            metric: Metric::L2,
            storage: Storage::F16,
            sparse_dimension: 3_000,
        };
        let store = Store::create(&folder.path().join("a.redb"), properties).unwrap();
        store.write(&points(0..1_000, 1.0), || Ok(())).unwrap();
        let path = folder.path().join("b.redb");
        let copied = store
            .copy_to(&path, |_| store.write(&points(500..2_000, 2.0), || Ok(())).map(drop))
            .unwrap();
        assert_eq!(copied, 1_000);
        let (staged, named) = (folder.path().join("c.staged"), folder.path().join("c.redb"));
        std::fs::rename(&path, &staged).unwrap();
        let copy = Store::open_as(&staged, &named).unwrap();
        assert_eq!((copy.properties, copy.path()), (properties, named.as_path()));
        assert_eq!(ids_of(&copy), points(0..1_000, 1.0).ids);
        let wanted = Wanted {
            vectors: true,
            payloads: true,
            sparse: true,
        };
        let all = copy
            .fetch(&points(0..1_000, 1.0).ids, wanted, usize::MAX)
            .unwrap()
            .unwrap();
        assert!(floats(&all.vectors).skip(1).step_by(2).all(|value| value < 1.5));
        assert_eq!(all.payloads, points(0..1_000, 1.0).payloads);
        assert_eq!(all.sparse, points(0..1_000, 1.0).sparse);
        copy.write(&points(0..1, 9.0), || Ok(())).unwrap();
        assert_eq!(ids_of(&store).len(), 2_000, "the first one is as it was");
    }

    #[test]
    fn whoever_listens_can_end_it() {
        let folder = tempfile::tempdir().unwrap();
        let properties = Properties {
            dimension: 2,
            metric: Metric::L2,
            storage: Storage::F32,
            sparse_dimension: 0,
        };
        let store = Store::create(&folder.path().join("a.redb"), properties).unwrap();
        store.write(&points(0..10, 1.0), || Ok(())).unwrap();
        let ended = store.copy_to(&folder.path().join("b.redb"), |_| Err(Error::CallerLeft));
        assert!(matches!(ended, Err(Error::CallerLeft)));
    }
}
