//! Small calls that are made at the same time, in one request, where that is asked for.
//!
//! The first call of a kind (one tenant, one way of embedding) opens a group, which the next ones join. It is sent when it is
//! full or its time is over, by a task of the runtime: no call depends on another one's caller, and only when all of them
//! are gone is the request cancelled. Each gets its own rows. A wrong argument is one call's alone, so the calls of a
//! request that is refused for one are made again one by one; any other failure is the failure of all.
//!
//! The request is the first call's: its request id and trace are what the server logs. Answers and errors name the call's own.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;
use medkg_telemetry::names::Reason;
use tokio::sync::{Notify, oneshot};
use tonic::Code;

use super::{EmbedRequest, EmbeddingClient, Embeddings, How, broken};
use crate::call::Call;
use crate::config::CoalesceConfig;
use crate::error::ClientError;
use crate::policy::classify::{ErrorKind, Service};

type Answer = Result<Embeddings, ClientError>;

/// The groups that may still be joined.
#[derive(Debug)]
pub(super) struct Gathering {
    config: CoalesceConfig,
    open: Mutex<Vec<Group>>,
}

#[derive(Debug)]
struct Group {
    how: How,
    members: Vec<Member>,
    texts: usize,
    /// Tells whoever sends it that it is time, and tells it from other groups.
    full: Arc<Notify>,
}

/// A call that waits for its part of an answer.
#[derive(Debug)]
struct Member {
    call: Call,
    texts: Vec<String>,
    answer: oneshot::Sender<Answer>,
}

impl Group {
    fn is_for(&self, call: &Call, how: &How) -> bool {
        self.members
            .first()
            .is_some_and(|first| first.call.tenant == call.tenant)
            && self.how == *how
    }
}

impl Gathering {
    pub(super) fn new(config: CoalesceConfig) -> Self {
        Self {
            config,
            open: Mutex::default(),
        }
    }

    /// True for a call that would leave room for others, and that nobody watches the progress of.
    pub(super) fn takes(&self, request: &EmbedRequest) -> bool {
        let texts = request.texts.len();
        request.progress.is_none() && texts > 0 && texts < self.config.max_texts
    }

    /// Puts a call into a group; says which if it is a new one, which is to be sent.
    fn join(&self, how: How, member: Member) -> Option<Arc<Notify>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let texts = member.texts.len();
        if let Some(at) = open.iter().position(|group| group.is_for(&member.call, &how)) {
            let group = &mut open[at];
            if group.texts + texts <= self.config.max_texts {
                group.members.push(member);
                group.texts += texts;
                if group.texts == self.config.max_texts {
                    group.full.notify_one();
                }
                return None;
            }
            // Nobody joins it any more, so it waits for nobody.
            group.full.notify_one();
        }
        let full = Arc::new(Notify::new());
        // In front: the group that is found is the one with room.
        open.insert(
            0,
            Group {
                how,
                members: vec![member],
                texts,
                full: Arc::clone(&full),
            },
        );
        Some(full)
    }

    /// The calls of a group, which nobody joins any more, that are still waited for.
    fn close(&self, full: &Arc<Notify>) -> Vec<Member> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let at = open.iter().position(|group| Arc::ptr_eq(&group.full, full));
        let members = at.map_or_else(Vec::new, |at| open.remove(at).members);
        members
            .into_iter()
            .filter(|member| !member.answer.is_closed())
            .collect()
    }
}

impl EmbeddingClient {
    /// Embeds together with other calls of the same kind.
    pub(super) async fn embed_together(
        &self,
        gathering: &Arc<Gathering>,
        call: &Call,
        request: EmbedRequest,
    ) -> Answer {
        let (answer, told) = oneshot::channel();
        let how = request.how;
        let member = Member {
            call: call.clone(),
            texts: request.texts,
            answer,
        };
        if let Some(full) = gathering.join(how.clone(), member) {
            let (client, gathering) = (self.clone(), Arc::clone(gathering));
            tokio::spawn(async move {
                // Either way it is time.
                let _ = tokio::time::timeout(gathering.config.max_wait, full.notified()).await;
                client.send_together(how, gathering.close(&full)).await;
            });
        }
        let told = match call.time_left() {
            Some(left) => match tokio::time::timeout(left, told).await {
                Ok(told) => told,
                Err(_) => return Err(call.sign(too_late(call))),
            },
            None => told.await,
        };
        let lost = |_| {
            broken(
                call.method,
                "the request that the call was a part of is gone".to_owned(),
            )
        };
        told.map_err(lost)
            .and_then(|answer| answer)
            .map_err(|error| call.sign(error))
    }

    async fn send_together(&self, how: How, mut members: Vec<Member>) {
        if members.len() < 2 {
            join_all(members.into_iter().map(|member| self.send_alone(&how, member))).await;
            return;
        }
        let call = members[1..].iter().fold(members[0].call.clone(), |call, member| {
            call.lasting_as_long_as(&member.call)
        });
        let request = EmbedRequest {
            texts: members.iter().flat_map(|member| member.texts.iter().cloned()).collect(),
            how: how.clone(),
            progress: None,
        };
        let gone = join_all(members.iter_mut().map(|member| member.answer.closed()));
        let answer = tokio::select! {
            answer = self.embed_apart(&call, request) => answer,
            _ = gone => return,
        };
        match answer {
            Ok(all) => {
                let mut start = 0;
                for Member { call, texts, answer } in members {
                    let part = part(&all, start, texts.len(), &call);
                    start += texts.len();
                    // Nobody waits any more.
                    let _ = answer.send(Ok(part));
                }
            }
            Err(error) if error.kind == ErrorKind::InvalidArgument => {
                join_all(members.into_iter().map(|member| self.send_alone(&how, member))).await;
            }
            Err(error) => {
                for member in members {
                    let _ = member.answer.send(Err(error.clone()));
                }
            }
        }
    }

    async fn send_alone(&self, how: &How, member: Member) {
        let Member {
            call,
            texts,
            mut answer,
        } = member;
        let request = EmbedRequest {
            texts,
            how: how.clone(),
            progress: None,
        };
        let ended = tokio::select! {
            ended = self.embed_apart(&call, request) => ended,
            () = answer.closed() => return,
        };
        let _ = answer.send(ended);
    }
}

fn too_late(call: &Call) -> ClientError {
    let message = "no answer within the deadline; give the call more time".to_owned();
    let (kind, code) = (ErrorKind::Timeout, Code::DeadlineExceeded);
    ClientError::new(kind, code, Service::Embedding, call.method.name, message).with(|failure| {
        Reason::DeadlineExpired.as_str().clone_into(&mut failure.reason);
        failure.attempts = 1;
    })
}

/// The rows of one call. Of what the request cost, the tokens are its own.
fn part(all: &Embeddings, start: usize, rows: usize, call: &Call) -> Embeddings {
    let token_counts = all.token_counts[start..start + rows].to_vec();
    let own = |row: &u32| (*row as usize).checked_sub(start).filter(|row| *row < rows);
    let truncated = all
        .truncated
        .iter()
        .filter_map(own)
        .filter_map(|row| u32::try_from(row).ok());
    let mut usage = all.usage.clone();
    usage.tokens = token_counts.iter().map(|count| u64::from(*count)).sum();
    Embeddings {
        vectors: all.vectors.part(start..start + rows, all.dimension),
        rows,
        dimension: all.dimension,
        truncated: truncated.collect(),
        token_counts,
        model: all.model.clone(),
        model_digest: all.model_digest.clone(),
        usage,
        request_id: call.request_id.to_string(),
        trace_id: call.trace.trace_id_hex(),
        degraded: all.degraded.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn gathering(max_texts: usize) -> Gathering {
        Gathering::new(CoalesceConfig {
            max_wait: Duration::from_millis(1),
            max_texts,
        })
    }

    #[test]
    fn only_small_calls_that_nobody_watches_are_gathered() {
        let request = |texts: usize| EmbedRequest {
            texts: vec![String::new(); texts],
            ..EmbedRequest::default()
        };
        let gathering = gathering(4);
        let taken: Vec<bool> = (0..6).map(|texts| gathering.takes(&request(texts))).collect();
        assert_eq!(taken, [false, true, true, true, false, false]);
        let watched = EmbedRequest {
            progress: Some(Arc::new(|_, _| {})),
            ..request(1)
        };
        assert!(!gathering.takes(&watched));
    }
}
