//! The configuration that clients share, and what is made of it in each process. It can be exchanged while they live.
//!
//! A call takes the client that is there when it begins and keeps it until it ends, so an exchange loses no call. The new
//! client is made before the old one is let go: what both use of the process' endpoints goes on as it is, with
//! connections, breakers and all. Nothing is exchanged unless all of it can be used.
//!
//! A file that is followed is looked at by whoever makes a call, once a second at most. There is no thread and no lock, so
//! a forked child goes on with it; see `process`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use medkg_client::config::{Followed, Loaded};
use medkg_client::{Client, ClientConfig, ConfigError};
use pyo3::prelude::*;

use crate::process::{Process, Tag};
use crate::{config, errors, logging};

#[derive(Debug)]
struct Made {
    tag: Tag,
    client: Client,
}

/// A configuration, and the client made from it: one per process.
#[derive(Debug)]
struct Configured {
    config: ClientConfig,
    /// The same as a `medkg.ClientConfig`.
    shown: Py<PyAny>,
    made: ArcSwapOption<Made>,
}

impl Configured {
    fn new(config: ClientConfig, shown: Py<PyAny>) -> Self {
        Self {
            config,
            shown,
            made: ArcSwapOption::empty(),
        }
    }

    /// The client of a process, made now if there is none.
    fn client(&self, process: &Process) -> Result<Client, ConfigError> {
        if let Some(made) = self.made.load_full().filter(|made| made.tag == process.tag()) {
            return Ok(made.client.clone());
        }
        let client = {
            let _inside = process.handle().enter();
            Client::new(self.config.clone(), process.endpoints())?
        };
        let made = Made {
            tag: process.tag(),
            client: client.clone(),
        };
        self.replace(Some(Arc::new(made)));
        Ok(client)
    }

    /// What a forked child inherited is forgotten, never dropped.
    fn replace(&self, made: Option<Arc<Made>>) {
        if let Some(old) = self.made.swap(made)
            && old.tag != Tag::now()
        {
            std::mem::forget(old);
        }
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        self.replace(None);
    }
}

/// The configuration of one or more client objects.
#[derive(Debug)]
pub(crate) struct Live {
    current: ArcSwap<Configured>,
    followed: ArcSwapOption<Followed>,
    /// Client objects that are not closed.
    open: AtomicUsize,
}

impl Live {
    fn new(config: ClientConfig, shown: Py<PyAny>) -> Self {
        Self {
            current: ArcSwap::from_pointee(Configured::new(config, shown)),
            followed: ArcSwapOption::empty(),
            open: AtomicUsize::new(0),
        }
    }

    /// Of a `medkg.ClientConfig`; or that of a [`Configuration`].
    pub(crate) fn of(config: &Bound<'_, PyAny>) -> PyResult<Arc<Self>> {
        let live = match config.cast::<Configuration>() {
            Ok(shared) => Arc::clone(&shared.get().0),
            Err(_) => Configuration::new(config)?.0,
        };
        live.open.fetch_add(1, Ordering::AcqRel);
        Ok(live)
    }

    /// One of its client objects is closed. With the last one, the connections are let go.
    pub(crate) fn leave(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.followed.store(None);
            self.current.load().replace(None);
        }
    }

    /// This process and its client.
    pub(crate) fn client(&self, py: Python<'_>) -> PyResult<(Arc<Process>, Client)> {
        self.follow(py);
        logging::hand_on(py);
        let process = Process::current(py)?;
        let client = self.current.load().client(&process);
        Ok((process, client.map_err(|error| errors::config(py, &error))?))
    }

    fn shown(&self, py: Python<'_>) -> Py<PyAny> {
        self.current.load().shown.clone_ref(py)
    }

    /// Looks at the file if it is time to, and goes over to what it says. A call never fails for that.
    fn follow(&self, py: Python<'_>) {
        let now = Instant::now();
        let Some(followed) = self.followed.load_full().filter(|followed| followed.is_due(now)) else {
            return;
        };
        // The file may lie on a disk that is slow today.
        let Some(candidate) = py.detach(|| followed.look(now)) else {
            return;
        };
        let tried = match &candidate.loaded {
            Ok(loaded) => self.exchange(py, loaded, Some(&followed)),
            Err(error) => Ok(Err(error.clone())),
        };
        let told = tried.and_then(|outcome| {
            if !followed.settle(&candidate, outcome.as_ref().map(|_| ())) {
                return Ok(());
            }
            let path = followed.path();
            let module = py.import("medkg.reloading")?;
            match outcome {
                Ok(old) => module.call_method1("changed", (path, old, self.shown(py)))?,
                Err(error) => module.call_method1("refused", (path, errors::config(py, &error)))?,
            };
            Ok(())
        });
        if let Err(error) = told {
            error.write_unraisable(py, None);
        }
    }

    /// Goes over to what was loaded; gives what was there before, as it is shown.
    fn exchange(
        &self,
        py: Python<'_>,
        loaded: &Loaded,
        by: Option<&Arc<Followed>>,
    ) -> PyResult<Result<Py<PyAny>, ConfigError>> {
        let shown = config::show(py, &loaded.options)?;
        let next = Configured::new(loaded.config.clone(), shown);
        if let Err(error) = next.client(&*Process::current(py)?) {
            return Ok(Err(error));
        }
        // Another configuration may have been set while the file was read.
        let followed = self.followed.load();
        if let Some(by) = by
            && !followed.as_ref().is_some_and(|followed| Arc::ptr_eq(followed, by))
        {
            return Ok(Ok(self.shown(py)));
        }
        let old = self.current.swap(Arc::new(next));
        Ok(Ok(old.shown.clone_ref(py)))
    }
}

/// A configuration that client objects share.
#[pyclass(frozen, module = "medkg._core")]
pub(crate) struct Configuration(pub(crate) Arc<Live>);

#[pymethods]
impl Configuration {
    #[new]
    fn new(config: &Bound<'_, PyAny>) -> PyResult<Self> {
        let (_, checked) = config::read(config)?;
        Ok(Self(Arc::new(Live::new(checked, config.clone().unbind()))))
    }

    /// The `medkg.ClientConfig` that calls made now would use.
    #[getter]
    fn config(&self, py: Python<'_>) -> Py<PyAny> {
        if self.0.open.load(Ordering::Acquire) > 0 {
            self.0.follow(py);
        }
        self.0.shown(py)
    }

    /// Goes over to another configuration; a file is followed no longer.
    fn reload(&self, config: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = config.py();
        self.refuse_closed(py)?;
        let (_, checked) = config::read(config)?;
        let next = Configured::new(checked, config.clone().unbind());
        let made = next.client(&*Process::current(py)?);
        made.map_err(|error| errors::config(py, &error))?;
        self.0.followed.store(None);
        self.0.current.store(Arc::new(next));
        Ok(())
    }

    /// Goes over to what a file says, now and whenever it changes. Environment and arguments stay as they are.
    fn watch(
        &self,
        py: Python<'_>,
        path: Option<PathBuf>,
        environment: HashMap<OsString, OsString>,
        arguments: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.refuse_closed(py)?;
        let sources = config::sources(path, environment, arguments)?;
        let followed = py.detach(|| Followed::new(sources));
        let (followed, loaded) = followed.map_err(|error| errors::config(py, &error))?;
        let exchanged = self.0.exchange(py, &loaded, None)?;
        exchanged.map_err(|error| errors::config(py, &error))?;
        self.0.followed.store(Some(Arc::new(followed)));
        Ok(())
    }
}

impl Configuration {
    fn refuse_closed(&self, py: Python<'_>) -> PyResult<()> {
        match self.0.open.load(Ordering::Acquire) {
            0 => Err(errors::closed(py)),
            _ => Ok(()),
        }
    }
}
