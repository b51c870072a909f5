//! The table of sparse vectors. A file has it if its collection has a sparse dimension; a point without terms has no entry.

use redb::{ReadOnlyTable, ReadTransaction, TableDefinition, WriteTransaction};

use super::Properties;
use super::blocks::checksum;
use crate::index::sparse::Rows;

/// Of each id the indices (u32), then the values (f32), then a checksum over the id and both (u32), little-endian.
const SPARSE: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("sparse");

/// Makes the table where the collection has one.
pub fn make(transaction: &WriteTransaction, properties: Properties) -> Result<(), redb::Error> {
    if properties.sparse_dimension > 0 {
        transaction.open_table(SPARSE)?;
    }
    Ok(())
}

/// Writes one row per id, or removes them all where there are no rows.
pub fn write(
    transaction: &WriteTransaction,
    properties: Properties,
    ids: &[String],
    rows: &Rows,
) -> Result<(), redb::Error> {
    if properties.sparse_dimension == 0 {
        return Ok(());
    }
    let mut table = transaction.open_table(SPARSE)?;
    for (row, id) in ids.iter().enumerate() {
        let mut bytes = rows.to_bytes(row);
        if bytes.is_empty() {
            table.remove(id.as_str())?;
        } else {
            bytes.extend(checksum(id, &bytes).to_le_bytes());
            table.insert(id.as_str(), bytes.as_slice())?;
        }
    }
    Ok(())
}

/// One row for each of `ids`.
pub fn of_some(transaction: &ReadTransaction, properties: Properties, ids: &[String]) -> Result<Rows, redb::Error> {
    let (table, mut rows) = (Table::open(transaction, properties)?, Rows::default());
    for id in ids {
        table.add(id, &mut rows)?;
    }
    Ok(rows)
}

/// The table as it was at one moment; none where the collection has none.
pub struct Table(Option<ReadOnlyTable<&'static str, &'static [u8]>>);

impl Table {
    /// Opens it.
    pub fn open(transaction: &ReadTransaction, properties: Properties) -> Result<Self, redb::Error> {
        if properties.sparse_dimension == 0 {
            return Ok(Self(None));
        }
        Ok(Self(Some(transaction.open_table(SPARSE)?)))
    }

    /// Adds the row of a point to `rows`; its bytes. Without a table it adds none.
    pub fn add(&self, id: &str, rows: &mut Rows) -> Result<usize, redb::Error> {
        let Some(table) = &self.0 else {
            return Ok(0);
        };
        let found = table.get(id)?;
        let Some(entry) = &found else {
            rows.push_bytes(&[]);
            return Ok(0);
        };
        let whole = entry.value().split_last_chunk::<4>();
        let whole = whole.filter(|(bytes, sum)| checksum(id, bytes) == u32::from_le_bytes(**sum));
        let (bytes, _) =
            whole.ok_or_else(|| redb::Error::Corrupted("a sparse vector is not what was written".to_owned()))?;
        rows.push_bytes(bytes);
        Ok(bytes.len())
    }
}
