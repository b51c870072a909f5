//! Files of before there were blocks: a value per vector and per payload, without checksums of their own.

use redb::{
    Database, Error, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableHandle as _, WriteTransaction,
};

use super::blocks::Writer;
use super::payloads;

const VECTORS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("vectors");
const PAYLOADS: TableDefinition<'_, &str, &str> = TableDefinition::new("payloads");

/// Bytes of rows that are moved at once.
const STEP: usize = 8 * 1024 * 1024;

/// Moves what such a file has into blocks: all of it or, if the process ends, nothing. Other files are left alone.
pub(super) fn convert(database: &Database, row_bytes: usize) -> Result<(), Error> {
    let tables: Vec<String> = database
        .begin_read()?
        .list_tables()?
        .map(|table| table.name().to_owned())
        .collect();
    if !tables.iter().any(|name| name == VECTORS.name()) {
        return Ok(());
    }
    tracing::info!("a collection of an older version: its file is rewritten");
    let transaction = super::file::begin_write(database)?;
    vectors(&transaction, row_bytes)?;
    texts(&transaction)?;
    transaction.delete_table(VECTORS)?;
    transaction.delete_table(PAYLOADS)?;
    Ok(transaction.commit()?)
}

fn vectors(transaction: &WriteTransaction, row_bytes: usize) -> Result<(), Error> {
    let mut writer = Writer::new(transaction, row_bytes)?;
    let vectors = transaction.open_table(VECTORS)?;
    let (mut ids, mut rows) = (Vec::new(), Vec::new());
    for entry in vectors.iter()? {
        let (id, row) = entry?;
        if row.value().len() != row_bytes {
            return Err(Error::Corrupted(format!(
                "a vector has {} bytes; {row_bytes} were written",
                row.value().len()
            )));
        }
        ids.push(id.value().to_owned());
        rows.extend_from_slice(row.value());
        if rows.len() >= STEP {
            writer.upsert(&ids, &rows, |_, _| Ok(()))?;
            (ids, rows) = (Vec::new(), Vec::new());
        }
    }
    writer.upsert(&ids, &rows, |_, _| Ok(()))?;
    writer.finish()
}

fn texts(transaction: &WriteTransaction) -> Result<(), Error> {
    let mut writer = payloads::Writer::new(transaction)?;
    for entry in transaction.open_table(PAYLOADS)?.iter()? {
        let (id, payload) = entry?;
        writer.insert(id.value(), payload.value())?;
    }
    Ok(())
}
