//! Faults on demand, for medkg's own tests. Never a dependency of anything that ships.
//!
//! - [`ScriptedServer`]: a gRPC server on a free port of 127.0.0.1 that answers each method as its script says: a reply, a
//!   status with details, a delay, a reset connection, or nothing at all. It remembers every call it got.
//! - [`Toxic`]: a TCP proxy in front of a real server that refuses, swallows, delays or cuts connections.
//!
//! Both run on a thread of their own, so that they work under any runtime, or none; dropping them closes their sockets.
//! They know no medkg service: methods are paths, messages are encoded by prost where a script is written. What they do
//! not do: imitate the behaviour of gpu-server. Where the real one can be had, tests use that.
//!
//! ```
//! use medkg_testkit::{Behaviour, ScriptedServer};
//! use tonic::Code;
//!
//! const EMBED: &str = "/medkg.v1.EmbeddingService/GenerateEmbeddings";
//! let server = ScriptedServer::start();
//! // The first call finds a full queue, the second one a dead connection, every later one an answer.
//! server.next(EMBED, Behaviour::fail(Code::ResourceExhausted, "QUEUE_FULL", "queue is full"));
//! server.next(EMBED, Behaviour::reset());
//! server.always(EMBED, Behaviour::reply(|_request: String| "answer".to_owned()));
//! assert!(server.uri().starts_with("http://127.0.0.1:"));
//! assert!(server.calls().is_empty());
//! ```

#![forbid(unsafe_code)]
// Test code: it fails by panicking.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

mod behaviour;
mod scripted;
mod thread;
mod toxic;

pub use behaviour::Behaviour;
pub use scripted::{Call, ScriptedServer};
pub use toxic::{Fault, Toxic};
