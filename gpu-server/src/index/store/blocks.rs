//! How vectors lie in the file: rows in blocks, and for each id the place of its row.
//!
//! A vector per value would cost a page, its checksum and its write for every two or three vectors. So the rows of a write
//! lie side by side in blocks, each about as large as one page of redb can be filled well, and the table of ids only says
//! where. A block is never changed: a row that is replaced or removed stays in it, dead. A block that is dead by half or
//! more is emptied, by later writes: each moves at most as many rows as it has killed, and a block more, so that the work
//! of a write stays bounded, and the space within twice what lives.
//!
//! redb checks its pages when a file is opened, not when they are read. So every row has a checksum beside its place, over
//! the id too: a read gives what was written for that id, or an error.

use std::collections::BTreeMap;

use redb::{
    Error, ReadOnlyTable, ReadTransaction, ReadableTable as _, ReadableTableMetadata as _, Table, TableDefinition,
    WriteTransaction,
};

use super::file::Stop;

/// Block, row, checksum.
type Place = (u64, u32, u32);

const PLACES: TableDefinition<'_, &str, Place> = TableDefinition::new("places");
/// Rows, then for each its id with its length, then the number of rows.
const BLOCKS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("blocks");
/// Rows of a block, and those of them that live.
const LIVING: TableDefinition<'_, u64, (u32, u32)> = TableDefinition::new("living");
/// The blocks that are to be emptied.
const HALF_DEAD: TableDefinition<'_, u64, ()> = TableDefinition::new("half_dead");

/// What redb puts beside a single value in its page.
const PAGE_OVERHEAD: usize = 64;
/// A block fills a page of one of these sizes.
const PAGES: std::ops::RangeInclusive<usize> = 64 * 1024..=1024 * 1024;
/// Rows that a block should have room for: a page is not filled to the last row.
const ROWS_OF_A_BLOCK: usize = 16;

/// Bytes of a block at most, if it has more than one row.
fn block_bytes(row_bytes: usize) -> usize {
    let page = (row_bytes * ROWS_OF_A_BLOCK).next_power_of_two();
    page.clamp(*PAGES.start(), *PAGES.end()) - PAGE_OVERHEAD
}

/// Over an id and what belongs to it.
pub(super) fn checksum(id: &str, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(id.as_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

fn damaged() -> Error {
    Error::Corrupted("a vector is not what was written".to_owned())
}

/// The block that `bytes` are.
#[derive(Debug, Clone, Copy)]
struct Block<'a> {
    bytes: &'a [u8],
    row_bytes: usize,
}

impl<'a> Block<'a> {
    fn row(self, row: u32) -> Option<&'a [u8]> {
        let from = usize::try_from(row).ok()?.checked_mul(self.row_bytes)?;
        self.bytes.get(from..)?.get(..self.row_bytes)
    }

    /// The ids that it was written with, dead ones too; None if it cannot be read.
    fn ids(self) -> Option<Vec<&'a str>> {
        let (rest, count) = self.bytes.split_last_chunk::<4>()?;
        let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
        let mut rest = rest.get(count.checked_mul(self.row_bytes)?..)?;
        let mut ids = Vec::new();
        for _ in 0..count {
            let (length, after) = rest.split_first_chunk::<2>()?;
            let (id, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
            ids.push(std::str::from_utf8(id).ok()?);
            rest = after;
        }
        Some(ids)
    }
}

/// Writes vectors, within one transaction.
pub(super) struct Writer<'t> {
    places: Table<'t, &'static str, Place>,
    blocks: Table<'t, u64, &'static [u8]>,
    living: Table<'t, u64, (u32, u32)>,
    half_dead: Table<'t, u64, ()>,
    row_bytes: usize,
    next: u64,
    /// Rows that died, by block.
    dead: BTreeMap<u64, u32>,
}

impl<'t> Writer<'t> {
    /// Makes the tables where they are not there yet.
    pub(super) fn new(transaction: &'t WriteTransaction, row_bytes: usize) -> Result<Self, Error> {
        let blocks = transaction.open_table(BLOCKS)?;
        let next = blocks.last()?.map_or(0, |(last, _)| last.value() + 1);
        Ok(Self {
            places: transaction.open_table(PLACES)?,
            blocks,
            living: transaction.open_table(LIVING)?,
            half_dead: transaction.open_table(HALF_DEAD)?,
            row_bytes,
            next,
            dead: BTreeMap::new(),
        })
    }

    /// Writes rows (one after the other, for different ids); tells `each` the index of an id and whether it is new.
    pub(super) fn upsert<S: AsRef<str>>(
        &mut self,
        ids: &[S],
        rows: &[u8],
        mut each: impl FnMut(usize, bool) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if rows.len() != ids.len() * self.row_bytes {
            return Err(Error::Corrupted(format!(
                "{} bytes are not {} rows",
                rows.len(),
                ids.len()
            )));
        }
        let points: Vec<(&str, &[u8])> = ids
            .iter()
            .map(AsRef::as_ref)
            .zip(rows.chunks_exact(self.row_bytes))
            .collect();
        let places = self.put(&points)?;
        // In the order of the table: its pages are then filled one after the other.
        let mut order: Vec<usize> = (0..points.len()).collect();
        if !points.is_sorted_by(|a, b| a.0 < b.0) {
            order.sort_unstable_by_key(|&at| points[at].0);
        }
        for at in order {
            let before = self.places.insert(points[at].0, places[at])?;
            if let Some(before) = &before {
                *self.dead.entry(before.value().0).or_default() += 1;
            }
            each(at, before.is_none())?;
        }
        Ok(())
    }

    /// Removes a vector; whether it was there.
    pub(super) fn remove(&mut self, id: &str) -> Result<bool, Error> {
        let before = self.places.remove(id)?;
        if let Some(before) = &before {
            *self.dead.entry(before.value().0).or_default() += 1;
        }
        Ok(before.is_some())
    }

    /// Counts the dead, and empties blocks that have too many. To be called last, before the commit.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        let mut budget = self.dead.values().sum::<u32>();
        for (block, died) in std::mem::take(&mut self.dead) {
            let entry = self.living.get(block)?.map(|entry| entry.value());
            let (rows, living) = entry.ok_or_else(|| Error::Corrupted("a block is not counted".to_owned()))?;
            match living.saturating_sub(died) {
                0 => self.forget(block)?,
                living => {
                    self.living.insert(block, (rows, living))?;
                    if living <= rows / 2 {
                        self.half_dead.insert(block, ())?;
                    }
                }
            }
        }
        let (mut moving, mut bytes) = (Vec::new(), 0);
        while budget > 0 {
            let Some((block, ())) = self.half_dead.pop_first()?.map(|(block, _)| (block.value(), ())) else {
                break;
            };
            let living = self.take(block)?;
            budget = budget.saturating_sub(u32::try_from(living.len()).unwrap_or(u32::MAX));
            bytes += living.len() * self.row_bytes;
            moving.extend(living);
            if bytes >= block_bytes(self.row_bytes) {
                self.rehouse(&std::mem::take(&mut moving))?;
                bytes = 0;
            }
        }
        self.rehouse(&moving)
    }

    /// Takes the living rows out of a block.
    fn take(&mut self, block: u64) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let unreadable = || Error::Corrupted("a block cannot be read".to_owned());
        let mut living = Vec::new();
        {
            let value = self.blocks.get(block)?.ok_or_else(unreadable)?;
            let found = Block {
                bytes: value.value(),
                row_bytes: self.row_bytes,
            };
            for (row, id) in (0..).zip(found.ids().ok_or_else(unreadable)?) {
                let place = self.places.get(id)?.map(|place| place.value());
                let Some((_, _, sum)) = place.filter(|&(place, at, _)| (place, at) == (block, row)) else {
                    continue;
                };
                // What is damaged must not get a new checksum.
                let bytes = found.row(row).filter(|bytes| checksum(id, bytes) == sum);
                let bytes = bytes.ok_or_else(damaged)?;
                living.push((id.to_owned(), bytes.to_vec()));
            }
        }
        self.forget(block)?;
        Ok(living)
    }

    fn rehouse(&mut self, moved: &[(String, Vec<u8>)]) -> Result<(), Error> {
        let points: Vec<(&str, &[u8])> = moved.iter().map(|(id, bytes)| (&**id, &**bytes)).collect();
        for (place, (id, _)) in self.put(&points)?.into_iter().zip(points) {
            self.places.insert(id, place)?;
        }
        Ok(())
    }

    fn forget(&mut self, block: u64) -> Result<(), Error> {
        self.blocks.remove(block)?;
        self.living.remove(block)?;
        self.half_dead.remove(block)?;
        Ok(())
    }

    /// Puts rows into new blocks; where they lie now.
    fn put(&mut self, points: &[(&str, &[u8])]) -> Result<Vec<Place>, Error> {
        let most = block_bytes(self.row_bytes);
        let mut places = Vec::with_capacity(points.len());
        let mut left = points;
        while !left.is_empty() {
            let mut bytes = 4;
            let fits = left.iter().take_while(|(id, row)| {
                bytes += row.len() + 2 + id.len();
                bytes <= most
            });
            let (block, rest) = left.split_at(fits.count().max(1));
            self.put_block(block, &mut places)?;
            left = rest;
        }
        Ok(places)
    }

    fn put_block(&mut self, points: &[(&str, &[u8])], places: &mut Vec<Place>) -> Result<(), Error> {
        let count = u32::try_from(points.len()).map_err(|_| Error::ValueTooLarge(points.len()))?;
        let bytes: usize = points.iter().map(|(id, row)| row.len() + 2 + id.len()).sum();
        let mut value = self.blocks.insert_reserve(self.next, bytes + 4)?;
        let mut to = value.as_mut();
        let mut write = |bytes: &[u8]| {
            let (here, after) = std::mem::take(&mut to).split_at_mut(bytes.len());
            here.copy_from_slice(bytes);
            to = after;
        };
        for (row, (id, bytes)) in (0..).zip(points) {
            write(bytes);
            places.push((self.next, row, checksum(id, bytes)));
        }
        for (id, _) in points {
            let length = u16::try_from(id.len()).map_err(|_| Error::ValueTooLarge(id.len()))?;
            write(&length.to_le_bytes());
            write(id.as_bytes());
        }
        write(&count.to_le_bytes());
        drop(value);
        self.living.insert(self.next, (count, count))?;
        self.next += 1;
        Ok(())
    }
}

/// Reads vectors, within one transaction.
pub(super) struct Reader {
    places: ReadOnlyTable<&'static str, Place>,
    blocks: ReadOnlyTable<u64, &'static [u8]>,
    row_bytes: usize,
}

impl Reader {
    pub(super) fn new(transaction: &ReadTransaction, row_bytes: usize) -> Result<Self, Error> {
        Ok(Self {
            places: transaction.open_table(PLACES)?,
            blocks: transaction.open_table(BLOCKS)?,
            row_bytes,
        })
    }

    /// Whether there is a vector for `id`.
    pub(super) fn has(&self, id: &str) -> Result<bool, Error> {
        Ok(self.places.get(id)?.is_some())
    }

    /// Appends the row of `id`; false if there is none.
    pub(super) fn read(&self, id: &str, rows: &mut Vec<u8>) -> Result<bool, Error> {
        let Some((block, row, sum)) = self.places.get(id)?.map(|place| place.value()) else {
            return Ok(false);
        };
        let value = self.blocks.get(block)?.ok_or_else(damaged)?;
        rows.extend_from_slice(self.row(value.value(), row, id, sum)?);
        Ok(true)
    }

    /// Every id, in the order in which the rows lie, and the rows.
    pub(super) fn read_all(&self) -> Result<(Vec<String>, Vec<u8>), Error> {
        let mut points = Vec::new();
        for entry in self.places.iter()? {
            let (id, place) = entry?;
            points.push((place.value(), id.value().to_owned()));
        }
        points.sort_unstable_by_key(|&((block, row, _), _)| (block, row));
        let mut rows = Vec::with_capacity(points.len() * self.row_bytes);
        let mut at = 0;
        while let Some(&((block, ..), _)) = points.get(at) {
            let value = self.blocks.get(block)?.ok_or_else(damaged)?;
            let of_block = points[at..].iter().take_while(|((of, ..), _)| *of == block);
            for ((_, row, sum), id) in of_block {
                rows.extend_from_slice(self.row(value.value(), *row, id, *sum)?);
                at += 1;
            }
        }
        Ok((points.into_iter().map(|(_, id)| id).collect(), rows))
    }

    /// Gives `take` every id with its row, block by block: memory is that of one block.
    pub(super) fn each(&self, mut take: impl FnMut(&str, &[u8]) -> Result<(), Stop>) -> Result<(), Stop> {
        let mut left = self.places.len()?;
        for entry in self.blocks.iter()? {
            let (block, value) = entry?;
            let (block, bytes) = (block.value(), value.value());
            let row_bytes = self.row_bytes;
            let ids = Block { bytes, row_bytes }.ids().ok_or_else(damaged)?;
            for (row, id) in (0..).zip(ids) {
                let place = self.places.get(id)?.map(|place| place.value());
                let Some((_, _, sum)) = place.filter(|&(there, at, _)| (there, at) == (block, row)) else {
                    continue;
                };
                left = left.saturating_sub(1);
                take(id, self.row(bytes, row, id, sum)?)?;
            }
        }
        if left > 0 {
            return Err(damaged().into());
        }
        Ok(())
    }

    fn row<'a>(&self, block: &'a [u8], row: u32, id: &str, sum: u32) -> Result<&'a [u8], Error> {
        let block = Block {
            bytes: block,
            row_bytes: self.row_bytes,
        };
        let row = block.row(row).filter(|row| checksum(id, row) == sum);
        row.ok_or_else(damaged)
    }
}
