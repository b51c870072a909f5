//! An embedding as bytes: elements of the vector (u32), tokens of the text (u32), whether it was shortened (u8), the scale of
//! int8 elements (f32, else 0), then the elements, all little-endian.

use bytes::{Buf as _, BufMut as _, Bytes};

const HEAD: usize = 13;

/// What a text's row of an answer says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) dimension: u32,
    pub(crate) tokens: u32,
    pub(crate) truncated: bool,
    pub(crate) scale: f32,
    pub(crate) elements: Bytes,
}

impl Entry {
    pub(crate) fn write(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(HEAD + self.elements.len());
        bytes.put_u32_le(self.dimension);
        bytes.put_u32_le(self.tokens);
        bytes.put_u8(u8::from(self.truncated));
        bytes.put_f32_le(self.scale);
        bytes.put_slice(&self.elements);
        bytes.into()
    }

    /// None for what is no entry.
    pub(crate) fn read(mut bytes: Bytes) -> Option<Self> {
        if bytes.len() <= HEAD {
            return None;
        }
        Some(Self {
            dimension: bytes.get_u32_le(),
            tokens: bytes.get_u32_le(),
            truncated: bytes.get_u8() != 0,
            scale: bytes.get_f32_le(),
            elements: bytes,
        })
    }
}

/// With a checksum over the name it is kept under and the entry, as Redis gets it.
pub(crate) fn seal(name: &str, entry: &Bytes) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(entry.len() + 4);
    sealed.extend_from_slice(entry);
    sealed.extend_from_slice(&checksum(name, entry).to_le_bytes());
    sealed
}

/// The entry that was kept under `name`; none for what is not that.
pub(crate) fn open(name: &str, sealed: Vec<u8>) -> Option<Bytes> {
    let (entry, sum) = sealed.split_last_chunk::<4>()?;
    let (length, sum) = (entry.len(), u32::from_le_bytes(*sum));
    if checksum(name, entry) != sum {
        return None;
    }
    let mut entry = Bytes::from(sealed);
    entry.truncate(length);
    Some(entry)
}

fn checksum(name: &str, entry: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(name.as_bytes());
    hasher.update(entry);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_as_it_was_or_not_at_all() {
        let entry = Entry {
            dimension: 2,
            tokens: 7,
            truncated: true,
            scale: 0.5,
            elements: Bytes::from_static(&[1, 2]),
        };
        let sealed = seal("name", &entry.write());
        assert_eq!(open("name", sealed.clone()).and_then(Entry::read), Some(entry));
        assert_eq!(open("other", sealed.clone()), None);
        for at in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[at] ^= 4;
            assert_eq!(open("name", flipped), None);
        }
        for short in [&[][..], &[1, 2, 3], &sealed[..HEAD]] {
            assert_eq!(open("name", short.to_vec()).and_then(Entry::read), None);
        }
    }
}
