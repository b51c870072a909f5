//! A file mapped into memory, so that hashing it and making tensors of it reads it from disk once.
//!
//! The one unsafe call here is the mapping itself. Its contract: nobody shortens or rewrites the file while it is mapped;
//! a page that is gone ends the process (SIGBUS). The mapping lives only while a model is loaded; tensors are copies. A
//! checkpoint is replaced by renaming, as every download tool does, which leaves the mapped file as it was.
#![allow(unsafe_code)] // memmap2 marks the call unsafe for the reason above

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::{Advice, Mmap};

/// The bytes of `path`, read when they are touched.
///
/// # Errors
/// What the file system says.
pub fn map(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    // SAFETY: the mapping is read-only and private to this process; see above for what the file's owner must not do.
    let bytes = unsafe { Mmap::map(&file) }?;
    // A hint: the whole file will be read, from front to back. A system that does not take it reads just as well.
    let _ = bytes.advise(Advice::Sequential);
    Ok(bytes)
}
