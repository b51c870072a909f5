//! One model of the registry: what is wanted of it, where it is in its life, and who waits for it.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::models::ModelSpec;
use crate::error::Error;

/// Where a model was named first. The order is that of the list of which the first is the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// On the command line.
    Flag,
    /// In the models file.
    File,
    /// Over the admin address.
    Admin,
}

/// Where a model is in its life.
#[derive(Debug)]
pub enum State<M> {
    /// It has never answered, and its first load is under way.
    Coming,
    /// It answers.
    Ready(Arc<M>),
    /// It could not be loaded.
    Failed(Error),
    /// It is out of memory to leave room for others, for this reason; a call brings it back.
    Evicted(String),
    /// An operator took it out of memory.
    Unloaded(String),
}

/// A model that is configured.
#[derive(Debug)]
pub struct Entry<M> {
    /// What answers, or would.
    pub spec: Arc<ModelSpec>,
    /// Where it was named.
    pub origin: Origin,
    /// Its place among those of its origin.
    pub rank: usize,
    /// Where it is in its life.
    pub state: State<M>,
    /// The load that is under way.
    pub flight: Option<Flight>,
    /// When it was asked for last, on the registry's clock.
    pub used: AtomicU64,
    /// How long its last load took.
    pub took: Option<Duration>,
    /// Whether it makes sparse vectors; none before it has been loaded for the first time.
    pub sparse: Option<bool>,
    /// Why what should have replaced it did not.
    pub refused: String,
    /// Whether the role's health depends on it.
    pub counts: bool,
    /// It is no longer in the models file, and goes once what is new there has been loaded.
    pub leaving: bool,
}

impl<M> Entry<M> {
    /// Named, not loaded.
    pub fn new(spec: ModelSpec, origin: Origin, rank: usize, counts: bool) -> Self {
        Self {
            spec: Arc::new(spec),
            origin,
            rank,
            state: State::Coming,
            flight: None,
            used: AtomicU64::new(0),
            took: None,
            sparse: None,
            refused: String::new(),
            counts,
            leaving: false,
        }
    }

    /// Notes that an order failed. False if nothing is left of the entry: it was named by that order alone.
    pub fn fail(&mut self, order: &Order, error: &Error) -> bool {
        // Leases end, and so does what other models and collections hold: the next call may find room.
        let held = matches!(error, Error::GpuMemoryHeld { .. });
        let full = held || matches!(error, Error::ModelMemoryFull { .. });
        let later = held
            || matches!(
                error,
                Error::ModelMemoryFull {
                    retry_after: Some(_),
                    ..
                }
            );
        match &mut self.state {
            State::Ready(_) => {
                self.refused = format!("this one goes on serving, because what should replace it failed: {error}");
                return true;
            }
            State::Coming if self.origin == Origin::Admin => return false,
            State::Unloaded(why) => {
                *why = format!("unloaded by an operator; loading it again failed: {error}");
                return true;
            }
            State::Evicted(why) if full => *why = error.to_string(),
            state @ State::Coming if later => *state = State::Evicted(error.to_string()),
            state @ (State::Coming | State::Failed(_) | State::Evicted(_)) => *state = State::Failed(error.clone()),
        }
        self.spec = Arc::clone(&order.spec);
        true
    }

    /// As `ListModels` tells it.
    pub fn report(&self, is_default: bool) -> Report<M> {
        let loading = self.flight.is_some();
        let (stage, detail) = match &self.state {
            State::Ready(model) => (Stage::Ready(Arc::clone(model)), self.refused.clone()),
            _ if loading => (Stage::Loading, String::new()),
            State::Coming => (Stage::Loading, String::new()),
            State::Failed(error) => (Stage::Failed, error.to_string()),
            State::Evicted(why) | State::Unloaded(why) => (Stage::Unloaded, why.clone()),
        };
        Report {
            spec: Arc::clone(&self.spec),
            is_default,
            stage,
            detail,
        }
    }
}

/// A model as it is now.
#[derive(Debug)]
pub struct Report<M> {
    /// What is wanted.
    pub spec: Arc<ModelSpec>,
    /// True for the one that an empty name means.
    pub is_default: bool,
    /// Where it is in its life.
    pub stage: Stage<M>,
    /// Why it does not answer, or why what should have replaced it does not.
    pub detail: String,
}

/// A model's state, as callers need it.
#[derive(Debug)]
pub enum Stage<M> {
    /// It is being loaded.
    Loading,
    /// It answers.
    Ready(Arc<M>),
    /// It could not be loaded.
    Failed,
    /// It is not in memory.
    Unloaded,
}

/// How an order ended.
#[derive(Debug, Clone)]
pub enum Ended {
    /// With a model that answers, or with the reason why there is none.
    Done(Result<(), Error>),
    /// Another order for the same model, or its removal, came in between.
    Superseded,
}

/// What the loader has to do.
#[derive(Debug)]
pub struct Order {
    id: u64,
    /// The model.
    pub spec: Arc<ModelSpec>,
    /// Whether others may leave memory for it.
    pub evict: bool,
    done: watch::Sender<Option<Ended>>,
}

impl Order {
    /// With what waits for its end.
    pub fn new(id: u64, spec: Arc<ModelSpec>, evict: bool) -> (Self, Flight) {
        let (done, waiting) = watch::channel(None);
        (Self { id, spec, evict, done }, Flight { id, waiting })
    }

    /// Whether it is for this entry.
    pub fn names<M>(&self, entry: &Entry<M>) -> bool {
        entry.flight.as_ref().is_some_and(|flight| flight.is_of(self))
    }

    /// Tells whoever waits.
    pub fn end(&self, ended: Ended) {
        // Nobody may be waiting.
        self.done.send_replace(Some(ended));
    }
}

/// A load that is queued or under way.
#[derive(Debug, Clone)]
pub struct Flight {
    id: u64,
    waiting: watch::Receiver<Option<Ended>>,
}

impl Flight {
    /// Whether it is this order's.
    pub fn is_of(&self, order: &Order) -> bool {
        self.id == order.id
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> Ended {
        match self.waiting.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or(Ended::Superseded),
            // The loader is gone, and with it the order.
            Err(_) => Ended::Done(Err(Error::ShuttingDown)),
        }
    }
}
