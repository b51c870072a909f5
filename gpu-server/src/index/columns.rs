//! What the payloads have in the fields that filters asked for, in the order of a view's rows.
//!
//! A column is read out of the file when a filter first names its field, and follows every write from then on. Columns
//! are a cache: those that were not asked for longest go first when there are too many or they take too much.

use std::collections::BTreeMap;

use serde_json::Value;

use super::filter::{Cell, Field, Filter};
use crate::error::Error;

/// Columns kept for one collection.
const MAX_COLUMNS: usize = 64;
/// Bytes that the columns of one collection take on the host: a column of numbers or short texts takes 24 to 50 per point.
pub const MAX_BYTES: usize = 1024 * 1024 * 1024;

/// What some payloads have in some fields: for each field, one cell per payload.
pub type Read = Vec<(Field, Vec<Cell>)>;

/// What `payloads` have in `fields`; "" is no payload.
pub fn read<'a>(fields: &[Field], payloads: impl Iterator<Item = &'a str>) -> Read {
    let mut read: Read = fields.iter().map(|field| (field.clone(), Vec::new())).collect();
    for payload in payloads {
        add(&mut read, payload);
    }
    read
}

/// Adds what one more payload has; the bytes that this takes beside the cells themselves.
pub fn add(read: &mut Read, payload: &str) -> usize {
    // What is no JSON was never let in; a payload without the field is what it would be taken for.
    let payload = serde_json::from_str(payload).unwrap_or(Value::Null);
    let mut bytes = 0;
    for (field, cells) in read {
        let cell = Cell::read(&payload, field);
        bytes += cell.heap_bytes();
        cells.push(cell);
    }
    bytes
}

fn bytes_of(cell: &Cell) -> usize {
    size_of::<Cell>() + cell.heap_bytes()
}

/// The columns of one view.
#[derive(Debug, Default)]
pub struct Columns {
    by_field: BTreeMap<Field, Column>,
    clock: u64,
}

#[derive(Debug, Default)]
struct Column {
    cells: Vec<Cell>,
    /// Cells that are not absent.
    present: usize,
    bytes: usize,
    /// When a filter last asked for it.
    used: u64,
}

impl Column {
    fn put(&mut self, place: usize, cell: Cell) {
        self.bytes += bytes_of(&cell);
        self.present += usize::from(cell != Cell::Absent);
        if place == self.cells.len() {
            self.cells.push(cell);
        } else {
            let old = std::mem::replace(&mut self.cells[place], cell);
            self.forget(&old);
        }
    }

    fn swap_remove(&mut self, place: usize) {
        let old = self.cells.swap_remove(place);
        self.forget(&old);
    }

    fn forget(&mut self, old: &Cell) {
        self.bytes -= bytes_of(old);
        self.present -= usize::from(*old != Cell::Absent);
    }
}

impl Columns {
    /// The fields that have a column.
    pub fn fields(&self) -> Vec<Field> {
        self.by_field.keys().cloned().collect()
    }

    /// Takes a column in, one cell per row; others may have to go.
    pub fn insert(&mut self, field: Field, cells: Vec<Cell>) {
        self.clock += 1;
        let mut column = Column {
            used: self.clock,
            ..Column::default()
        };
        for cell in cells {
            column.put(column.cells.len(), cell);
        }
        self.by_field.insert(field, column);
        self.trim();
    }

    /// Follows a write: `places[i]` has now what `read` has at i. Places that are new follow each other at the end.
    pub fn write(&mut self, places: &[usize], read: Read) {
        let mut read: BTreeMap<Field, Vec<Cell>> = read.into_iter().collect();
        self.by_field.retain(|field, column| {
            // A column that the write does not know would be wrong from here on; it can be read again.
            let Some(cells) = read.remove(field) else {
                return false;
            };
            for (&place, cell) in places.iter().zip(cells) {
                column.put(place, cell);
            }
            true
        });
        self.trim();
    }

    /// Follows a removal: the last row takes the place of the removed one.
    pub fn swap_remove(&mut self, place: usize) {
        for column in self.by_field.values_mut() {
            column.swap_remove(place);
        }
    }

    /// For each of `count` points, whether `filter` means it; None if a column has to be read first.
    ///
    /// # Errors
    /// [`Error::InvalidField`] naming a field that no payload has.
    pub fn decide(&mut self, filter: &Filter, count: usize) -> Result<Option<Vec<bool>>, Error> {
        if count == 0 {
            return Ok(Some(Vec::new()));
        }
        self.clock += 1;
        let fields = filter.fields();
        for (field, _) in &fields {
            let Some(column) = self.by_field.get_mut(*field) else {
                return Ok(None);
            };
            column.used = self.clock;
        }
        for (field, path) in fields {
            if self.by_field[field].present == 0 {
                let problem = format!("is an unknown filter field: no payload of the collection has {field:?}");
                return Err(Error::invalid(path, problem));
            }
        }
        Ok(Some(filter.decide(count, &|field| &self.by_field[field].cells)))
    }

    fn trim(&mut self) {
        let mut bytes: usize = self.by_field.values().map(|column| column.bytes).sum();
        while self.by_field.len() > MAX_COLUMNS || bytes > MAX_BYTES {
            let oldest = self.by_field.iter().min_by_key(|(_, column)| column.used);
            let Some(field) = oldest.map(|(field, _)| field.clone()) else {
                return;
            };
            bytes -= self.by_field.remove(&field).map_or(0, |column| column.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(index: usize) -> Field {
        vec![format!("f{index}")]
    }

    #[test]
    fn the_column_asked_for_longest_ago_goes_first() {
        let mut columns = Columns::default();
        let one = |text: &str| read(&[field(0)], [text].into_iter()).remove(0).1;
        for index in 0..MAX_COLUMNS {
            columns.insert(field(index), one(r#"{"f0": 1}"#));
        }
        let filter = Filter::Test {
            field: field(0),
            test: super::super::filter::Test::Exists,
            path: "filter.exists.field".to_owned(),
        };
        assert_eq!(columns.decide(&filter, 1).unwrap(), Some(vec![true]));
        columns.insert(field(MAX_COLUMNS), one("{}"));
        let kept = columns.fields();
        assert!(kept.contains(&field(0)) && kept.contains(&field(MAX_COLUMNS)) && !kept.contains(&field(1)));
        assert_eq!(kept.len(), MAX_COLUMNS);
    }

    #[test]
    fn a_cell_takes_what_the_guide_says() {
        assert_eq!(size_of::<Cell>(), 24);
    }

    #[test]
    fn bytes_and_presence_follow_replacement_and_removal() {
        let mut columns = Columns::default();
        let of = |payloads: &[&str]| read(&[field(0)], payloads.iter().copied());
        columns.insert(field(0), of(&[r#"{"f0": "abc"}"#, ""]).remove(0).1);
        columns.write(&[1, 2], of(&[r#"{"f0": ["x", 1]}"#, r#"{"f0": null}"#]));
        let column = &columns.by_field[&field(0)];
        assert_eq!((column.present, column.cells.len()), (3, 3));
        columns.write(&[0, 1], of(&["", "{}"]));
        columns.swap_remove(0);
        let column = &columns.by_field[&field(0)];
        assert_eq!(column.cells, [Cell::Null, Cell::Absent]);
        assert_eq!((column.present, column.bytes), (1, 2 * size_of::<Cell>()));
    }
}
