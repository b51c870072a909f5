//! What waits, what runs, and who is idle, under one lock that is held for microseconds: callers hand jobs over, lanes fetch
//! batches and bring outcomes back.
//!
//! Lanes fetch. A batch that were handed to a lane ahead would be out of the policy's reach while it waits there: it could
//! expire, its caller could leave, and another tenant's input would have to wait for two batches instead of one. Choosing a
//! batch takes microseconds, so there is nothing to prepare ahead.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Task;
use super::admission::Admission;
use super::attempt::Outcome;
use super::job::{Caller, Computed, Job, Running};
use super::models::ReadyModel;
use super::queue::{Item, Policy, Queue};
use super::spans::{Picked, Waiting};
use crate::error::Error;
use crate::model::tokenizer::Encoded;

/// Searches and writes that may wait.
const TASKS: usize = 256;
/// How much a tenant may be ahead, in full batches of all lanes.
const CREDIT: u64 = 32;
/// How much of a line is looked at for a batch, in full batches.
const WINDOW: usize = 4;
const AGE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(5);

/// How much is computed at once.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Threads that compute a batch each.
    pub lanes: usize,
    /// Whether there is one more, for small batches of tenants that used less than their share lately. A forward pass cannot be
    /// interrupted, but the operating system can let another thread go first: so a short text need not wait until
    /// a flood's batch has ended.
    pub express: bool,
    /// Most tokens of a batch.
    pub largest: usize,
    /// Tokens below which a batch costs more than its tokens do.
    pub smallest: usize,
}

impl Shape {
    /// Lanes, the express lane too.
    pub fn threads(self) -> usize {
        self.lanes + usize::from(self.express)
    }
}

/// What a lane does next.
pub enum Next {
    /// A forward pass.
    Batch(Batch),
    /// A search or a write in a collection.
    Task(Task),
    /// The server ends.
    Stop,
}

/// Inputs of one model, to be computed together.
#[derive(Debug)]
pub struct Batch {
    /// What computes them.
    pub model: Arc<ReadyModel>,
    /// What they are, and the inputs of the jobs that they belong to.
    pub items: Vec<(Item, Arc<[Encoded]>)>,
    /// Nothing else runs or waits: all threads may work on it.
    pub alone: bool,
    /// Its jobs, for their traces.
    pub picked: Vec<Picked>,
    tenant: Arc<str>,
}

impl Batch {
    /// The inputs, in order.
    pub fn inputs(&self) -> Vec<&Encoded> {
        self.items.iter().map(|(item, inputs)| &inputs[item.index]).collect()
    }

    /// Tokens of all inputs.
    pub fn tokens(&self) -> usize {
        self.items.iter().map(|(item, _)| item.tokens).sum()
    }
}

/// A job's place in the queue, given up on drop: what nobody waits for is not computed.
#[derive(Debug)]
pub struct Ticket {
    scheduler: Arc<Scheduler>,
    job: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.scheduler.lock().forget(self.job, None);
    }
}

struct State {
    queue: Queue,
    jobs: HashMap<u64, Running>,
    admission: Admission,
    tasks: VecDeque<Task>,
    /// The last turn of the lane that runs tasks was one.
    task_ran: bool,
    idle: Vec<usize>,
    busy: usize,
    /// Batches that run, by the tenant whose turn it was.
    served: HashMap<Arc<str>, usize>,
    /// Most tokens of a batch of a model, by its key, where memory allows less than the shape does.
    most: HashMap<usize, usize>,
    stopping: bool,
}

/// The lock and who waits at it.
pub struct Scheduler {
    shape: Shape,
    state: Mutex<State>,
    /// One per lane.
    bells: Vec<Condvar>,
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler")
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

impl Scheduler {
    /// At most `queue_tokens` wait or run.
    pub fn new(shape: Shape, queue_tokens: usize) -> Self {
        let policy = Policy {
            window: WINDOW * shape.largest,
            age: AGE,
            patience: PATIENCE,
            credit: CREDIT * (shape.lanes * shape.largest) as u64,
            smallest: shape.smallest,
        };
        let state = State {
            queue: Queue::new(policy),
            jobs: HashMap::new(),
            admission: Admission::new(queue_tokens, shape.lanes),
            tasks: VecDeque::new(),
            task_ran: false,
            idle: Vec::new(),
            busy: 0,
            served: HashMap::new(),
            most: HashMap::new(),
            stopping: false,
        };
        Self {
            shape,
            state: Mutex::new(state),
            bells: (0..shape.threads()).map(|_| Condvar::new()).collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether inputs of at least so many tokens would be let in.
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub fn check(&self, caller: &Caller, tokens: usize) -> Result<(), Error> {
        self.lock().admission.check(&caller.tenant, tokens)
    }

    /// Lets inputs wait for their turn; the answer comes through the channel.
    ///
    /// # Errors
    /// [`Error::QueueFull`], or [`Error::ShuttingDown`].
    pub fn submit(
        self: &Arc<Self>,
        model: &Arc<ReadyModel>,
        inputs: Vec<Encoded>,
        caller: Caller,
    ) -> Result<(Ticket, oneshot::Receiver<Result<Computed, Error>>), Error> {
        let lengths: Vec<usize> = inputs.iter().map(|input| input.ids.len()).collect();
        let tokens = lengths.iter().sum();
        let (reply, answer) = oneshot::channel();
        let now = Instant::now();
        let spans = Waiting::begin(inputs.len(), tokens);
        let mut state = self.lock();
        if state.stopping {
            return Err(Error::ShuttingDown);
        }
        state.admission.admit(&caller.tenant, tokens)?;
        match model.most_tokens {
            Some(most) => state.most.insert(key(model), most),
            // Another model may have had the same key.
            None => state.most.remove(&key(model)),
        };
        let number = state
            .queue
            .push(&caller.tenant, key(model), lengths, caller.deadline, now);
        let job = Job {
            model: Arc::clone(model),
            inputs: inputs.into(),
            caller,
            reply,
            enqueued: now,
            spans,
        };
        state.jobs.insert(number, Running::new(job, tokens));
        self.wake(&mut state, tokens.div_ceil(self.shape.smallest));
        drop(state);
        let ticket = Ticket {
            scheduler: Arc::clone(self),
            job: number,
        };
        Ok((ticket, answer))
    }

    /// Whether one more task may wait.
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub fn check_tasks(&self) -> Result<(), Error> {
        let state = self.lock();
        if state.tasks.len() < TASKS {
            return Ok(());
        }
        Err(Error::QueueFull {
            waiting: format!("{} searches and writes", state.tasks.len()),
            // A task waits for the batch that runs, and takes turns with those that follow.
            retry_after: state.admission.time_for(self.shape.largest * self.shape.lanes),
        })
    }

    /// Lets a task wait for its turn, whatever else waits; false once the server ends.
    pub fn post(&self, task: Task) -> bool {
        let mut state = self.lock();
        if state.stopping {
            return false;
        }
        state.tasks.push_back(task);
        // Tasks are the first lane's.
        if let Some(at) = state.idle.iter().position(|&lane| lane == 0) {
            state.idle.swap_remove(at);
            self.bells[0].notify_one();
        }
        true
    }

    /// What `lane` does next; waits until there is something.
    pub fn next(&self, lane: usize) -> Next {
        let mut state = self.lock();
        loop {
            if state.stopping {
                return Next::Stop;
            }
            // Tasks and batches take turns, so that neither starves the other.
            if lane == 0
                && (!state.task_ran || state.queue.tokens() == 0)
                && let Some(task) = state.tasks.pop_front()
            {
                (state.task_ran, state.busy) = (true, state.busy + 1);
                return Next::Task(task);
            }
            if let Some(batch) = state.pick(self.shape, lane == self.shape.lanes) {
                if lane == 0 {
                    state.task_ran = false;
                }
                if state.queue.tokens() > 0 {
                    self.wake(&mut state, 1);
                }
                return Next::Batch(batch);
            }
            if lane == 0 && !state.tasks.is_empty() {
                // What waited had expired.
                state.task_ran = false;
                continue;
            }
            state.idle.push(lane);
            state = self.bells[lane].wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle.retain(|&idle| idle != lane);
        }
    }

    /// A task has ended.
    pub fn task_done(&self) {
        self.lock().busy -= 1;
    }

    /// A batch has ended: one outcome per item.
    pub fn finish(&self, batch: &Batch, outcomes: Vec<Outcome>, started: Instant, elapsed: Duration) {
        let mut state = self.lock();
        state.busy -= 1;
        if let Some(count) = state.served.get_mut(&batch.tenant) {
            *count -= 1;
            if *count == 0 {
                state.served.remove(&batch.tenant);
            }
        }
        if outcomes.iter().any(Result::is_ok) {
            state.admission.observe(batch.tokens(), elapsed);
        }
        let jobs: HashSet<u64> = batch.items.iter().map(|(item, _)| item.job).collect();
        for job in jobs {
            if let Some(running) = state.jobs.get_mut(&job) {
                running.passed(started, elapsed);
            }
        }
        for ((item, _), outcome) in batch.items.iter().zip(outcomes) {
            // A job whose caller left, or that failed already, is not there any more.
            let Some(running) = state.jobs.get_mut(&item.job) else {
                continue;
            };
            match outcome {
                Ok(row) => {
                    if running.keep(item.index, &row) {
                        state.forget(item.job, None);
                    }
                }
                Err(error) => state.forget(item.job, Some(error.of_input(item.index))),
            }
        }
    }

    /// Nothing is computed any more, for this reason.
    pub fn fail_all(&self, error: &Error) {
        let mut state = self.lock();
        let jobs: Vec<u64> = state.jobs.keys().copied().collect();
        for job in jobs {
            state.forget(job, Some(error.clone()));
        }
    }

    /// Ends the lanes after what they compute right now; what waits is dropped.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        state.jobs.clear();
        state.tasks.clear();
        for bell in &self.bells {
            bell.notify_one();
        }
    }

    /// Wakes so many idle lanes; the express lane only where no other is idle.
    fn wake(&self, state: &mut State, count: usize) {
        state.idle.sort_unstable_by(|a, b| b.cmp(a));
        for _ in 0..count {
            let Some(lane) = state.idle.pop() else { return };
            self.bells[lane].notify_one();
        }
    }
}

impl State {
    fn pick(&mut self, shape: Shape, is_express: bool) -> Option<Batch> {
        // What waits is spread over the lanes, in ever smaller batches towards the end, so that they end together.
        let spread = self.queue.tokens().div_ceil(shape.lanes).max(shape.smallest);
        let wanted = if is_express { shape.smallest } else { spread };
        let most = &self.most;
        let budget = |model| {
            wanted
                .min(most.get(&model).copied().unwrap_or(usize::MAX))
                .min(shape.largest)
        };
        let (now, mut expired) = (Instant::now(), Vec::new());
        let picked = if is_express {
            let served = &self.served;
            self.queue
                .pick_light(now, budget, |tenant| served.contains_key(tenant), &mut expired)
        } else {
            self.queue.pick(now, budget, &mut expired)
        };
        for job in expired {
            self.forget(job, Some(Error::DeadlineExpired));
        }
        let picked = picked?;
        let inputs = |item: Item| Some((item, Arc::clone(&self.jobs.get(&item.job)?.job().inputs)));
        let items: Vec<_> = picked.items.into_iter().filter_map(inputs).collect();
        let model = Arc::clone(&self.jobs.get(&items.first()?.0.job)?.job().model);
        let jobs: HashSet<u64> = items.iter().map(|(item, _)| item.job).collect();
        let picked_jobs = jobs
            .iter()
            .filter_map(|job| Some(self.jobs.get_mut(job)?.picked()))
            .collect();
        let alone = self.busy == 0 && self.queue.tokens() == 0 && self.tasks.is_empty();
        self.busy += 1;
        *self.served.entry(Arc::clone(&picked.tenant)).or_default() += 1;
        Some(Batch {
            model,
            items,
            alone,
            picked: picked_jobs,
            tenant: picked.tenant,
        })
    }

    /// Takes a job out and answers it: with what was computed, or with why it was not.
    fn forget(&mut self, number: u64, error: Option<Error>) {
        let Some(running) = self.jobs.remove(&number) else {
            return;
        };
        self.queue.remove(number, Instant::now());
        self.admission.release(&running.job().caller.tenant, running.tokens);
        running.reply(error);
    }
}

/// Equal for equal models while one of their jobs is there.
fn key(model: &Arc<ReadyModel>) -> usize {
    Arc::as_ptr(model) as usize
}
