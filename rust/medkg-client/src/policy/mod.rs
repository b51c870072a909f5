//! What the client decides, apart from what it does.
//!
//! Everything here is pure: time comes in as an argument, randomness as a generator, the peer's answer as a value. That
//! way each rule is tested exhaustively and without waiting. Nothing here may touch a socket, a runtime or a clock.

pub mod backoff;
pub mod breaker;
pub mod budget;
pub mod classify;
pub mod deadline;
pub mod load;
pub mod outlier;
pub mod retry;
