//! The Python extension `medkg._core`: converts arguments, releases the GIL, calls `medkg-client`, converts the answer.
//!
//! No default, timeout or retry lives here; those are the client's. Every method exists once and serves the blocking and
//! the awaitable class alike (`running`). The tokio runtime and the connections belong to one process and are made when
//! the first call needs them (`process`), so a forked child starts afresh and importing the module starts nothing.
//!
//! Only `medkg/client/native.py` imports this module. Its classes are the Rust half of the classes there.
//!
//! `unsafe` appears only in what PyO3's macros expand to.

mod arguments;
mod arrays;
mod awaiting;
mod certificates;
mod config;
mod embedding;
mod endpoints;
mod errors;
mod export;
mod filters;
mod gpu;
mod live;
mod logging;
mod process;
mod registry;
mod reranking;
mod results;
mod running;
mod sparse;
mod statistics;
mod streaming;
mod vector;
mod watching;

/// The Rust half of medkg's clients.
#[pyo3::pymodule]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::certificates::{
        certs_init, certs_inspect, certs_issue_client, certs_issue_server, certs_roll, certs_rotate,
    };
    #[pymodule_export]
    use crate::config::load_config;
    #[pymodule_export]
    use crate::embedding::{AsyncEmbedding, Embedding};
    #[pymodule_export]
    use crate::export::{AsyncVectorExport, VectorExport};
    #[pymodule_export]
    use crate::gpu::{AsyncGpu, Gpu};
    #[pymodule_export]
    use crate::live::Configuration;
    #[pymodule_export]
    use crate::registry::{Registration, Registry};
    #[pymodule_export]
    use crate::reranking::{AsyncReranking, Reranking};
    #[pymodule_export]
    use crate::streaming::{AsyncEmbeddingStream, EmbeddingStream};
    #[pymodule_export]
    use crate::vector::{AsyncVector, Vector};
    #[pymodule_export]
    use crate::watching::{AsyncStatusWatch, StatusWatch};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::process::hook(module)?;
        module.add("CA_DAYS", medkg_tls::authority::CA_DAYS)?;
        module.add("LEAF_DAYS", medkg_tls::authority::LEAF_DAYS)?;
        module.add("WITHIN_DAYS", medkg_tls::authority::WITHIN_DAYS)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
