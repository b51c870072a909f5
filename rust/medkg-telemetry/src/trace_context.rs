//! W3C Trace Context: where a call stands in a trace, as `traceparent` and `tracestate`.
//!
//! Parsed by the recommendation: lower-case hex only, ids of zeros refused, version `ff` refused, later versions read
//! as far as version 00 goes. Broken headers are ignored as a whole, as it demands: the call then starts a new trace.
//! What it does not do: sample, time or send spans.

use std::fmt;
use std::str::FromStr;

use crate::carrier::{Carrier, CarrierMut};
use crate::names::{TRACEPARENT, TRACESTATE};
use crate::random;

/// Set in [`TraceContext::flags`] when the caller records its span.
pub const FLAG_SAMPLED: u8 = 0x01;
/// Flags that version 00 defines: sampled, and "the trace id is random".
const KNOWN_FLAGS: u8 = 0x03;
/// `00-<32 hex>-<16 hex>-<2 hex>`
const LENGTH: usize = 55;
/// Most members of a `tracestate` list.
const TRACESTATE_MEMBERS: usize = 32;
/// Most bytes of a `tracestate` that we carry; the recommendation asks for at least 512.
const TRACESTATE_BYTES: usize = 4096;

/// A position in a trace. Its ids are never zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    flags: u8,
    tracestate: Option<String>,
}

/// Why a text is no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TraceContextError {
    /// It has the wrong length or its dashes are elsewhere.
    #[error("`traceparent` must look like 00-<32 hex digits>-<16 hex digits>-<2 hex digits>")]
    Shape,
    /// One of its parts is no lower-case hex.
    #[error("`traceparent` has a {part} that is not lower-case hex")]
    Hex {
        /// Which part.
        part: &'static str,
    },
    /// Its version is `ff`.
    #[error("`traceparent` has the forbidden version ff; send version 00")]
    Version,
    /// One of its ids is zero.
    #[error("`traceparent` has a {part} of zeros only, which means \"none\"; leave the header out instead")]
    Zero {
        /// Which part.
        part: &'static str,
    },
    /// The trace state breaks its rule.
    #[error(
        "`tracestate` must be at most {TRACESTATE_MEMBERS} comma-separated key=value pairs of printable ASCII, \
         {TRACESTATE_BYTES} bytes in all"
    )]
    State,
}

impl TraceContext {
    /// From ids. `flags` keeps only the bits that version 00 defines.
    pub fn try_new(
        trace_id: [u8; 16],
        span_id: [u8; 8],
        flags: u8,
        tracestate: Option<&str>,
    ) -> Result<Self, TraceContextError> {
        if trace_id == [0; 16] {
            return Err(TraceContextError::Zero { part: "trace id" });
        }
        if span_id == [0; 8] {
            return Err(TraceContextError::Zero { part: "span id" });
        }
        let tracestate = tracestate.map(check_tracestate).transpose()?.flatten();
        Ok(Self {
            trace_id,
            span_id,
            flags: flags & KNOWN_FLAGS,
            tracestate,
        })
    }

    /// From the texts of the two headers.
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Result<Self, TraceContextError> {
        let bytes = traceparent.trim_matches([' ', '\t']).as_bytes();
        if bytes.len() < LENGTH || bytes[2] != b'-' || bytes[35] != b'-' || bytes[52] != b'-' {
            return Err(TraceContextError::Shape);
        }
        let [version] = unhex::<1>(&bytes[..2], "version")?;
        // A later version may append fields, behind a dash.
        let tail_is_legal = match bytes.get(LENGTH) {
            None => true,
            Some(next) => version != 0 && *next == b'-',
        };
        if version == 0xff {
            return Err(TraceContextError::Version);
        }
        if !tail_is_legal {
            return Err(TraceContextError::Shape);
        }
        let trace_id = unhex(&bytes[3..35], "trace id")?;
        let span_id = unhex(&bytes[36..52], "span id")?;
        let [flags] = unhex::<1>(&bytes[53..55], "flags field")?;
        Self::try_new(trace_id, span_id, flags, tracestate)
    }

    /// A new trace, sampled.
    pub fn random() -> Self {
        Self {
            trace_id: nonzero(),
            span_id: nonzero(),
            flags: FLAG_SAMPLED,
            tracestate: None,
        }
    }

    /// The same trace, one span further down: a new span id under this one.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            span_id: nonzero(),
            ..self.clone()
        }
    }

    /// Reads the headers of a call. `None` when there is no `traceparent`, more than one, or a broken one; a broken
    /// `tracestate` is dropped alone.
    pub fn extract(carrier: &impl Carrier) -> Option<Self> {
        let [traceparent] = carrier.all(TRACEPARENT)[..] else {
            return None;
        };
        let mut context = Self::parse(traceparent, None).ok()?;
        let state = carrier.all(TRACESTATE).join(",");
        context.tracestate = check_tracestate(&state).ok().flatten();
        Some(context)
    }

    /// Writes it into the headers of a call.
    pub fn inject(&self, carrier: &mut impl CarrierMut) {
        carrier.set(TRACEPARENT, &self.traceparent());
        if let Some(state) = &self.tracestate {
            carrier.set(TRACESTATE, state);
        }
    }

    /// The `traceparent` header, version 00.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-{:02x}", self.trace_id_hex(), self.span_id_hex(), self.flags)
    }

    /// The `tracestate` header.
    pub fn tracestate(&self) -> Option<&str> {
        self.tracestate.as_deref()
    }

    /// The trace, 16 bytes.
    pub const fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// The span, 8 bytes.
    pub const fn span_id(&self) -> [u8; 8] {
        self.span_id
    }

    /// The trace as 32 lower-case hex digits.
    pub fn trace_id_hex(&self) -> String {
        random::hex(&self.trace_id)
    }

    /// The span as 16 lower-case hex digits.
    pub fn span_id_hex(&self) -> String {
        random::hex(&self.span_id)
    }

    /// The flags of version 00.
    pub const fn flags(&self) -> u8 {
        self.flags
    }

    /// True if the caller records its span.
    pub const fn is_sampled(&self) -> bool {
        self.flags & FLAG_SAMPLED != 0
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.traceparent())
    }
}

impl FromStr for TraceContext {
    type Err = TraceContextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text, None)
    }
}

/// Trimmed, or `None` if nothing is in it.
fn check_tracestate(text: &str) -> Result<Option<String>, TraceContextError> {
    let members: Vec<&str> = text
        .split(',')
        .map(|member| member.trim_matches([' ', '\t']))
        .filter(|member| !member.is_empty())
        .collect();
    let legal = |member: &&str| {
        member
            .split_once('=')
            .is_some_and(|(key, value)| !key.is_empty() && !value.is_empty())
            && member.bytes().all(|b| matches!(b, 0x20..=0x7e))
    };
    if members.len() > TRACESTATE_MEMBERS || !members.iter().all(legal) {
        return Err(TraceContextError::State);
    }
    let joined = members.join(",");
    if joined.len() > TRACESTATE_BYTES {
        return Err(TraceContextError::State);
    }
    Ok(Some(joined).filter(|state| !state.is_empty()))
}

fn unhex<const N: usize>(text: &[u8], part: &'static str) -> Result<[u8; N], TraceContextError> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Ok(b - b'0'),
        b'a'..=b'f' => Ok(b - b'a' + 10),
        _ => Err(TraceContextError::Hex { part }),
    };
    let mut out = [0_u8; N];
    for (target, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *target = (digit(pair[0])? << 4) | digit(pair[1])?;
    }
    Ok(out)
}

fn nonzero<const N: usize>() -> [u8; N] {
    loop {
        let bytes = random::bytes();
        if bytes != [0; N] {
            return bytes;
        }
    }
}

#[cfg(test)]
mod tests;
