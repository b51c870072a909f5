//! Embedding only what no cache has.
//!
//! A cache is asked by the model's digest, so that must be known first: it is asked for with the models' prompts, and believed
//! for half a minute. An answer of another digest than that ends the belief; what was found under the old one is not mixed with
//! it. Where nobody can be asked and the caller allows it, an older belief will do, for texts that are all in the cache.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use medkg_proto::v1;
use tokio::time::Instant;

use super::vectors::{self, Vectors};
use super::{EmbedRequest, EmbeddingClient, Embeddings, How, ModelInfo, Truncation, broken, list_models};
use crate::batching;
use crate::cache::entry::Entry;
use crate::cache::key::{Key, Keys};
use crate::cache::{Cache, CacheStats, flights};
use crate::call::{Call, CallOptions};
use crate::error::ClientError;

/// How long it is believed which models there are.
const BELIEVED: Duration = Duration::from_secs(30);

/// A cache, and what is needed to ask it.
#[derive(Debug)]
pub(super) struct Kept {
    cache: Arc<Cache>,
    models: Mutex<Option<Belief>>,
}

/// Which models there are, as it was told.
#[derive(Debug, Clone)]
struct Belief {
    since: Instant,
    models: Arc<Vec<ModelInfo>>,
    /// Why it was not the server that was asked who told it.
    degraded: Option<String>,
}

impl Belief {
    /// What a fallback server told holds for the call that asked it: the one that was meant may be back for the next.
    fn is_fresh(&self) -> bool {
        self.degraded.is_none() && self.since.elapsed() < BELIEVED
    }

    /// None if there is no such model, or it has no digest because it was never loaded.
    fn find(&self, how: &How) -> Option<ModelInfo> {
        let found = match how.model.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => self.models.iter().find(|model| model.name == name),
            None => self.models.iter().find(|model| model.is_default),
        };
        found.filter(|model| !model.digest.is_empty()).cloned()
    }
}

/// The model that a call means.
struct Meant {
    model: ModelInfo,
    /// Why that may be wrong.
    degraded: Option<String>,
    /// Why nobody could be asked, and so nobody can embed.
    down: Option<ClientError>,
}

impl Kept {
    pub(super) fn new(cache: Arc<Cache>) -> Self {
        Self {
            cache,
            models: Mutex::default(),
        }
    }

    fn believed(&self) -> Option<Belief> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn believe(&self, belief: Option<Belief>) {
        *self.models.lock().unwrap_or_else(PoisonError::into_inner) = belief;
    }
}

/// A call's texts without doubles.
struct Distinct {
    texts: Vec<String>,
    keys: Vec<Key>,
    /// Of each distinct text, where it is first.
    first: Vec<usize>,
    /// Of each text of the call, which distinct one it is.
    which: Vec<usize>,
}

impl Distinct {
    fn new(texts: Vec<String>, keys: &Keys) -> Self {
        let mut known: HashMap<Key, usize> = HashMap::with_capacity(texts.len());
        let mut distinct = Self {
            texts: Vec::new(),
            keys: Vec::new(),
            first: Vec::new(),
            which: Vec::with_capacity(texts.len()),
        };
        for (at, text) in texts.into_iter().enumerate() {
            let key = keys.of(&text);
            let place = *known.entry(key).or_insert_with_key(|key| {
                distinct.keys.push(key.clone());
                distinct.texts.push(text);
                distinct.first.push(at);
                distinct.keys.len() - 1
            });
            distinct.which.push(place);
        }
        distinct
    }
}

impl EmbeddingClient {
    /// [`Self::embed`] with a cache.
    pub(super) async fn embed_through(
        &self,
        kept: &Kept,
        call: &Call,
        request: EmbedRequest,
    ) -> Result<Embeddings, ClientError> {
        let Some(meant) = self.model_of(kept, call, &request.how).await? else {
            // The server knows why there is no such model.
            return self.embed_all(call, request).await;
        };
        let Meant { model, degraded, down } = meant;
        let keys = keys(call, &model, &request.how);
        let total = request.texts.len();
        let EmbedRequest { texts, how, progress } = request;
        let distinct = Distinct::new(texts, &keys);
        let mut rows = kept.cache.get(&distinct.keys).await;
        let mut spent = Spent {
            degraded,
            ..Spent::default()
        };
        if let Some(error) = down.filter(|_| rows.iter().any(Option::is_none)) {
            return Err(error);
        }

        let missing: Vec<usize> = (0..rows.len()).filter(|&at| rows[at].is_none()).collect();
        let wanted: Vec<Key> = missing.iter().map(|&at| distinct.keys[at].clone()).collect();
        let (flight, landings) = kept.cache.flights.begin(&wanted);
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for (at, landing) in missing.into_iter().zip(landings) {
            match landing {
                None => own.push(at),
                Some(landing) => others.push((at, landing)),
            }
        }
        let job = Job {
            kept,
            call,
            how: &how,
            distinct: &distinct,
            digest: &model.digest,
            total,
            progress: progress.as_deref(),
        };
        let mut agreed = self.embed_some(&job, &own, &mut rows, &mut spent).await?;
        drop(flight);
        let landings: Vec<flights::Landing> = others.iter().map(|(_, landing)| landing.clone()).collect();
        flights::landed(landings).await;
        let mut failed = Vec::new();
        for (at, _) in others {
            rows[at] = kept.cache.shared(&distinct.keys[at]);
            if rows[at].is_none() {
                failed.push(at);
            }
        }
        // What another call could not embed is this call's own now.
        agreed = agreed && self.embed_some(&job, &failed, &mut rows, &mut spent).await?;
        if !agreed {
            // The model was replaced in the meantime: all of it is embedded by the new one.
            kept.believe(None);
            let texts = distinct.which.iter().map(|&at| distinct.texts[at].clone()).collect();
            return self.embed_all(call, EmbedRequest { texts, how, progress }).await;
        }
        spent.finish(call, &how, &model, &distinct, rows)
    }

    /// Embeds some of the distinct texts into their rows; false if another model answered.
    async fn embed_some(
        &self,
        job: &Job<'_>,
        some: &[usize],
        rows: &mut [Option<Bytes>],
        spent: &mut Spent,
    ) -> Result<bool, ClientError> {
        if some.is_empty() {
            return Ok(true);
        }
        let part = EmbedRequest {
            texts: some.iter().map(|&at| job.distinct.texts[at].clone()).collect(),
            how: job.how.clone(),
            progress: None,
        };
        let answer = self.embed_all(job.call, part).await;
        let place = |index: usize| some.get(index).map(|&at| job.distinct.first[at]);
        let answer = answer.map_err(|error| batching::renumber(error, "texts", &place))?;
        if answer.model_digest != job.digest {
            return Ok(false);
        }
        let entries = entries(&answer);
        for (&at, entry) in some.iter().zip(&entries) {
            rows[at] = Some(entry.clone());
        }
        let keys = some.iter().map(|&at| job.distinct.keys[at].clone());
        job.kept.cache.put(keys.zip(entries).collect());
        spent.take(&answer, some.len());
        if let Some(progress) = job.progress {
            progress(
                job.total - job.distinct.which.iter().filter(|&&at| rows[at].is_none()).count(),
                job.total,
            );
        }
        Ok(true)
    }

    /// The model that a call means; None if there is none of that name.
    async fn model_of(&self, kept: &Kept, call: &Call, how: &How) -> Result<Option<Meant>, ClientError> {
        let last = kept.believed();
        if let Some(belief) = last.as_ref().filter(|belief| belief.is_fresh()) {
            return Ok(belief.find(how).map(|model| Meant {
                model,
                degraded: None,
                down: None,
            }));
        }
        let request = || v1::EmbeddingServiceListModelsRequest {};
        match self.caller.request_anywhere(call, request, list_models).await {
            Ok(answer) => {
                let belief = Belief {
                    since: Instant::now(),
                    models: Arc::new(answer.message.models.into_iter().map(Into::into).collect()),
                    degraded: answer.degraded,
                };
                kept.believe(Some(belief.clone()));
                let degraded = belief.degraded.clone();
                Ok(belief.find(how).map(|model| Meant {
                    model,
                    degraded,
                    down: None,
                }))
            }
            Err(error) => {
                let allowed = self.caller.config.fallback.stale_cache && error.is_of_the_network();
                let Some(belief) = last.filter(|_| allowed) else {
                    return Err(error);
                };
                let Some(model) = belief.find(how) else {
                    return Err(error);
                };
                let age = belief.since.elapsed().as_secs();
                Ok(Some(Meant {
                    model,
                    degraded: Some(format!(
                        "from the cache alone, by the model that the server had {age} s ago: {}",
                        error.message
                    )),
                    down: Some(error),
                }))
            }
        }
    }

    /// What the cache did; None without one.
    pub fn cache_stats(&self) -> Option<CacheStats> {
        self.kept.as_ref().map(|kept| kept.cache.stats())
    }

    /// Forgets what the call's tenant has in the cache, of a model (by digest) or of all; how many entries Redis had. 0
    /// without a cache.
    ///
    /// # Errors
    /// Redis cannot be asked; this process has forgotten them then.
    pub async fn forget(&self, digest: Option<&str>, options: &CallOptions) -> Result<u64, ClientError> {
        let call = self.caller.begin(super::FORGET, options)?;
        let Some(kept) = &self.kept else { return Ok(0) };
        let forgotten = kept.cache.forget(call.tenant.as_str(), digest).await;
        forgotten.map_err(|problem| call.sign(broken(super::FORGET, format!("the cache's Redis fails: {problem}"))))
    }
}

/// What the parts of a call through the cache have in common.
struct Job<'a> {
    kept: &'a Kept,
    call: &'a Call,
    how: &'a How,
    distinct: &'a Distinct,
    digest: &'a str,
    total: usize,
    progress: Option<&'a super::Progress>,
}

/// All that an embedding depends on beside tenant, model and text.
fn keys(call: &Call, model: &ModelInfo, how: &How) -> Keys {
    // A prompt by its text: its name may come to mean another one.
    let name = how.prompt_name.as_deref().or(model.default_prompt.as_deref());
    let named = model.prompts.iter().find(|prompt| Some(prompt.name.as_str()) == name);
    let prompt = match &how.instruction {
        Some(instruction) => instruction.as_str(),
        None => named.map_or("", |prompt| prompt.text.as_str()),
    };
    let truncation: &[u8] = match how.truncation {
        None | Some(Truncation::Right) => b"right",
        Some(Truncation::Left) => b"left",
        Some(Truncation::Refuse) => b"refuse",
    };
    let dtype = how.dtype.unwrap_or_default().as_str();
    let dimensions = how.dimensions.unwrap_or(0).to_le_bytes();
    let parts = [prompt.as_bytes(), truncation, dtype.as_bytes(), &dimensions[..]];
    Keys::new(call.tenant.as_str(), &model.digest, &parts)
}

fn entries(answer: &Embeddings) -> Vec<Bytes> {
    let mut truncated = vec![false; answer.rows];
    for &row in &answer.truncated {
        truncated[row as usize] = true;
    }
    let entry = |row: usize| {
        let (elements, scale) = answer.vectors.row(row, answer.dimension);
        Entry {
            dimension: u32::try_from(answer.dimension).unwrap_or(u32::MAX),
            tokens: answer.token_counts[row],
            truncated: truncated[row],
            scale,
            elements: elements.into(),
        }
        .write()
    };
    (0..answer.rows).map(entry).collect()
}

/// What was computed for a call.
#[derive(Default)]
struct Spent {
    usage: crate::service::Usage,
    texts: usize,
    /// Why a part is not what was asked for.
    degraded: Option<String>,
}

impl Spent {
    fn take(&mut self, answer: &Embeddings, texts: usize) {
        self.texts += texts;
        self.usage.merge(&answer.usage);
        self.degraded = self.degraded.take().or_else(|| answer.degraded.clone());
    }

    /// The answer, out of an entry for each distinct text.
    fn finish(
        self,
        call: &Call,
        how: &How,
        model: &ModelInfo,
        distinct: &Distinct,
        rows: Vec<Option<Bytes>>,
    ) -> Result<Embeddings, ClientError> {
        let wrong = |what: String| call.sign(broken(call.method, what));
        let read = |row: Option<Bytes>| row.and_then(Entry::read);
        let entries: Option<Vec<Entry>> = rows.into_iter().map(read).collect();
        let entries = entries.ok_or_else(|| wrong("an embedding is missing".to_owned()))?;
        let dtype = how.dtype.unwrap_or_default();
        let dimension = entries.first().map_or(0, |entry| entry.dimension);
        let mut tensor = v1::Tensor {
            shape: vec![u32::try_from(distinct.which.len()).unwrap_or(u32::MAX), dimension],
            dtype: dtype.wire().into(),
            ..v1::Tensor::default()
        };
        let mut data =
            Vec::with_capacity(distinct.which.len() * entries.first().map_or(0, |entry| entry.elements.len()));
        let (mut token_counts, mut truncated) = (Vec::with_capacity(distinct.which.len()), Vec::new());
        for (at, &which) in distinct.which.iter().enumerate() {
            let entry = &entries[which];
            data.extend_from_slice(&entry.elements);
            if dtype == super::Dtype::Int8 {
                tensor.scales.push(entry.scale);
            }
            token_counts.push(entry.tokens);
            if entry.truncated {
                truncated.push(u32::try_from(at).unwrap_or(u32::MAX));
            }
        }
        tensor.data = data.into();
        // Entries are checked as an answer of the server is: one of another shape does not fit.
        let rows = distinct.which.len();
        let dimension = vectors::check(&tensor, rows, dtype).map_err(wrong)?;
        let mut elements = Vectors::zeros(dtype, rows, dimension);
        elements.write(0..rows, dimension, &tensor);
        let mut usage = self.usage;
        usage.cache_hits = (rows - self.texts.min(rows)) as u64;
        Ok(Embeddings {
            vectors: elements,
            rows,
            dimension,
            token_counts,
            truncated,
            model: model.name.clone(),
            model_digest: model.digest.clone(),
            usage,
            request_id: call.request_id.to_string(),
            trace_id: call.trace.trace_id_hex(),
            degraded: self.degraded,
        })
    }
}
