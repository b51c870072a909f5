//! How payloads lie in the file: JSON text by id, with a checksum behind it, as [`super::blocks`] says why.

use redb::{
    Error, ReadOnlyTable, ReadTransaction, ReadableTable as _, ReadableTableMetadata as _, Table, TableDefinition,
    WriteTransaction,
};

use super::blocks::checksum;

/// Text, then its checksum.
const TEXTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("texts");

/// Writes payloads, within one transaction.
pub(super) struct Writer<'t> {
    texts: Table<'t, &'static str, &'static [u8]>,
    /// There may be something to remove.
    any: bool,
    buffer: Vec<u8>,
}

impl<'t> Writer<'t> {
    /// Makes the table where it is not there yet.
    pub(super) fn new(transaction: &'t WriteTransaction) -> Result<Self, Error> {
        let texts = transaction.open_table(TEXTS)?;
        Ok(Self {
            any: !texts.is_empty()?,
            texts,
            buffer: Vec::new(),
        })
    }

    pub(super) fn insert(&mut self, id: &str, text: &str) -> Result<(), Error> {
        self.buffer.clear();
        self.buffer.extend_from_slice(text.as_bytes());
        self.buffer
            .extend_from_slice(&checksum(id, text.as_bytes()).to_le_bytes());
        self.texts.insert(id, self.buffer.as_slice())?;
        self.any = true;
        Ok(())
    }

    pub(super) fn remove(&mut self, id: &str) -> Result<(), Error> {
        if self.any {
            self.texts.remove(id)?;
        }
        Ok(())
    }
}

/// Reads payloads, within one transaction.
pub(super) struct Reader(ReadOnlyTable<&'static str, &'static [u8]>);

impl Reader {
    pub(super) fn new(transaction: &ReadTransaction) -> Result<Self, Error> {
        Ok(Self(transaction.open_table(TEXTS)?))
    }

    /// The payload of `id`, "" if it has none.
    pub(super) fn read(&self, id: &str) -> Result<String, Error> {
        match self.0.get(id)? {
            None => Ok(String::new()),
            Some(value) => text(id, value.value()).map(str::to_owned),
        }
    }

    /// Gives `take` every id that has a payload, with it, until it says to stop.
    pub(super) fn each(&self, mut take: impl FnMut(&str, &str) -> std::ops::ControlFlow<()>) -> Result<(), Error> {
        for entry in self.0.iter()? {
            let (id, value) = entry?;
            let id = id.value();
            if take(id, text(id, value.value())?).is_break() {
                break;
            }
        }
        Ok(())
    }
}

fn text<'a>(id: &str, value: &'a [u8]) -> Result<&'a str, Error> {
    let (text, sum) = value
        .split_last_chunk::<4>()
        .map_or((value, 0), |(text, sum)| (text, u32::from_le_bytes(*sum)));
    let whole = checksum(id, text) == sum;
    let text = std::str::from_utf8(text).ok().filter(|_| whole);
    text.ok_or_else(|| Error::Corrupted("a payload is not what was written".to_owned()))
}
