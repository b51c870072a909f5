//! Every point of a collection, in parts, as it was at one moment: what the file holds is read within one transaction of
//! redb, which sees nothing that is written after it began. Memory is that of one part.

use super::file::Stop;
use super::{Store, blocks, payloads, row_bytes, sparse};
use crate::error::Error;
use crate::index::sparse::Rows;

/// Points that lie side by side.
#[derive(Debug, Default)]
pub struct Part {
    /// Their ids.
    pub ids: Vec<String>,
    /// Their vectors one after the other, f32 little-endian.
    pub vectors: Vec<u8>,
    /// One per id, "" for none; empty if they were not asked for.
    pub payloads: Vec<String>,
    /// One row per id in a collection with sparse vectors; empty if they were not asked for.
    pub sparse: Rows,
}

/// How to read.
#[derive(Debug, Clone, Copy)]
pub struct Scan {
    /// Whether payloads are wanted.
    pub payloads: bool,
    /// Whether sparse vectors are wanted.
    pub sparse: bool,
    /// A part ends with the point that makes it as large as this, all that is read included.
    pub part_bytes: usize,
    /// A part has at most so many points.
    pub part_points: usize,
}

impl Store {
    /// Gives `take` all points there are when it begins, part by part, none twice, in no order that is promised. `begun` is
    /// called when the moment is fixed: whatever is written after it returns is not among them. What one of the two
    /// returns as an error ends it.
    ///
    /// The file keeps what the transaction still needs: while points are replaced during a long scan, it grows.
    ///
    /// # Errors
    /// What `begun` or `take` return; [`Error::Internal`] naming the file.
    pub fn scan(
        &self,
        scan: Scan,
        begun: impl FnOnce() -> Result<(), Error>,
        mut take: impl FnMut(Part) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.file.read_once(|transaction| {
            begun().map_err(Stop::Other)?;
            let vectors = blocks::Reader::new(transaction, row_bytes(self.properties))?;
            let payloads = payloads::Reader::new(transaction)?;
            let sparse = sparse::Table::open(transaction, self.properties)?;
            let (mut part, mut bytes) = (Part::default(), 0);
            vectors.each(|id, vector| {
                bytes += id.len() + vector.len();
                if scan.payloads {
                    let payload = payloads.read(id)?;
                    bytes += payload.len();
                    part.payloads.push(payload);
                }
                if scan.sparse {
                    bytes += sparse.add(id, &mut part.sparse)?;
                }
                part.ids.push(id.to_owned());
                part.vectors.extend_from_slice(vector);
                if bytes >= scan.part_bytes || part.ids.len() >= scan.part_points {
                    bytes = 0;
                    take(std::mem::take(&mut part)).map_err(Stop::Other)?;
                }
                Ok(())
            })?;
            if part.ids.is_empty() {
                return Ok(());
            }
            take(part).map_err(Stop::Other)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::store::{Metric, Points, Properties, Storage};

    const ALL: Scan = Scan {
        payloads: true,
        sparse: true,
        part_bytes: 100,
        part_points: 7,
    };

    fn store(folder: &std::path::Path) -> Store {
        let properties = Properties {
            dimension: 2,
            metric: Metric::Dot,
            storage: Storage::F32,
            sparse_dimension: 0,
        };
        Store::create(&folder.join("c.redb"), properties).unwrap()
    }

    fn points(from: u16, to: u16, value: f32) -> Points {
        Points {
            ids: (from..to).map(|i| format!("{i:04}")).collect(),
            vectors: bytemuck::cast_slice(&(from..to).map(|i| [f32::from(i), value]).collect::<Vec<_>>())
                .to_vec()
                .into(),
            payloads: (from..to)
                .map(|i| {
                    if i % 2 == 0 {
                        String::new()
                    } else {
                        format!("{{\"n\":{i}}}")
                    }
                })
                .collect(),
            ..Points::default()
        }
    }

    #[test]
    fn a_scan_is_one_moment_whatever_is_written_while_it_runs() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        store.write(&points(0, 100, 1.0), || Ok(())).unwrap();
        let (mut seen, mut vectors, mut parts) = (Points::default(), Vec::new(), 0);
        let begun = || store.write(&points(50, 150, 2.0), || Ok(())).map(drop);
        let take = |part: Part| {
            parts += 1;
            let texts: usize = part.ids.iter().chain(&part.payloads).map(String::len).sum();
            assert!(part.ids.len() <= 7 && part.vectors.len() + texts < 200);
            // A write in the middle of it.
            store.remove(&[format!("{:04}", 99)])?;
            seen.ids.extend(part.ids);
            vectors.extend(crate::index::store::floats(&part.vectors));
            seen.payloads.extend(part.payloads);
            Ok(())
        };
        store.scan(ALL, begun, take).unwrap();
        let expected = points(0, 100, 1.0);
        let wanted: Vec<f32> = crate::index::store::floats(&expected.vectors).collect();
        let mut order: Vec<usize> = (0..seen.ids.len()).collect();
        order.sort_by_key(|&at| &seen.ids[at]);
        assert_eq!(
            order.iter().map(|&at| &seen.ids[at]).collect::<Vec<_>>(),
            expected.ids.iter().collect::<Vec<_>>()
        );
        for (place, &at) in order.iter().enumerate() {
            assert_eq!(vectors[at * 2..][..2], wanted[place * 2..][..2]);
            assert_eq!(seen.payloads[at], expected.payloads[place]);
        }
        assert!(parts >= 15);
    }

    #[test]
    fn whoever_takes_the_parts_can_end_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        store.write(&points(0, 100, 1.0), || Ok(())).unwrap();
        let mut parts = 0;
        let take = |_| {
            parts += 1;
            if parts == 3 {
                Err(Error::DeadlineExpired)
            } else {
                Ok(())
            }
        };
        assert!(matches!(store.scan(ALL, || Ok(()), take), Err(Error::DeadlineExpired)));
        assert_eq!(parts, 3);
        let refused = store.scan(ALL, || Err(Error::ShuttingDown), |_| Ok(()));
        assert!(matches!(refused, Err(Error::ShuttingDown)));
    }
}
