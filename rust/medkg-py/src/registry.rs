//! The Rust half of `ServiceRegistry`.

use std::sync::Arc;
use std::time::Duration;

use medkg_client::config::{ConfigError, Problem};
use medkg_client::survey::{Registered, RegisteredServer, RegistryError};
use medkg_client::{ClientError, Service};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::process::{InProcess, PerProcess, Process};
use crate::running::{Mode, block, run};
use crate::{endpoints, errors, results};

/// Which servers there are.
#[pyclass(frozen, module = "medkg._core")]
pub(crate) struct Registry {
    clients: PerProcess,
}

/// A server that was registered here.
#[pyclass(frozen, module = "medkg._core")]
pub(crate) struct Registration {
    keeper: InProcess<medkg_client::survey::Registration>,
}

fn problem(py: Python<'_>, field: &str, description: String) -> PyErr {
    let problems = vec![Problem {
        field: field.to_owned(),
        description,
    }];
    errors::config(py, &ConfigError::new(problems))
}

fn service(py: Python<'_>, noun: &str) -> PyResult<Service> {
    let found = Service::ALL.into_iter().find(|service| service.noun() == noun);
    found.ok_or_else(|| {
        let known = Service::ALL.map(Service::noun).join(", ");
        problem(py, "service", format!("is {noun:?}; give one of {known}"))
    })
}

fn seconds(py: Python<'_>, field: &str, seconds: f64) -> PyResult<Duration> {
    let duration = Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| !duration.is_zero());
    duration.ok_or_else(|| problem(py, field, format!("is {seconds}; give seconds, more than 0")))
}

#[pymethods]
impl Registry {
    #[new]
    fn new(config: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self {
            clients: PerProcess::new(config)?,
        })
    }

    /// See `ServiceRegistry.servers`.
    fn servers(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let (process, registered) = self.registered(py)?;
        let listed = wait(py, &process, async move { registered.servers().await })?;
        let class = results::class(py, "RegisteredServer")?;
        let list = PyList::empty(py);
        for server in listed {
            list.append(class.call1((server.address, server.services))?)?;
        }
        Ok(list.into_any().unbind())
    }

    /// See `ServiceRegistry.endpoints`.
    fn endpoints(&self, py: Python<'_>, noun: &str, timeout: f64) -> PyResult<Py<PyAny>> {
        let (service, patience) = (service(py, noun)?, seconds(py, "timeout", timeout)?);
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move { client.survey(service, patience).await };
        run(py, &process, Mode::Blocking, None, start, endpoints::infos)
    }

    /// See `ServiceRegistry.register`.
    fn register(
        &self,
        py: Python<'_>,
        address: String,
        services: Vec<String>,
        lease: Option<f64>,
    ) -> PyResult<Registration> {
        for noun in &services {
            service(py, noun)?;
        }
        let lease = lease.map(|lease| seconds(py, "lease", lease)).transpose()?;
        let (process, registered) = self.registered(py)?;
        let server = RegisteredServer { address, services };
        let keeper = wait(py, &process, async move { registered.register(server, lease).await })?;
        Ok(Registration {
            keeper: InProcess::new(process, keeper),
        })
    }

    /// See `ServiceRegistry.deregister`.
    fn deregister(&self, py: Python<'_>, address: String) -> PyResult<bool> {
        let (process, registered) = self.registered(py)?;
        wait(py, &process, async move { registered.deregister(&address).await })
    }

    /// Lets the connections go.
    fn close(&self) {
        self.clients.close();
    }
}

impl Registry {
    fn registered(&self, py: Python<'_>) -> PyResult<(Arc<Process>, Registered)> {
        let (process, client) = self.clients.client(py)?;
        match Registered::of(&client, process.endpoints()) {
            Some(Ok(registered)) => Ok((process, registered)),
            Some(Err(why)) => Err(problem(py, "registry.redis", why)),
            None => {
                let why = "is missing; give medkg.RegistryConfig(redis=\"redis://HOST:PORT\")";
                Err(problem(py, "registry", why.to_owned()))
            }
        }
    }
}

/// Waits for an exchange with the registry, as for a call.
fn wait<T: Send + 'static>(
    py: Python<'_>,
    process: &Arc<Process>,
    exchange: impl Future<Output = Result<T, RegistryError>> + Send + 'static,
) -> PyResult<T> {
    let outcome = block(
        py,
        process,
        None,
        |_| async move { Ok::<_, ClientError>(exchange.await) },
    )?;
    outcome.map_err(|error| errors::registry(py, &error))
}

#[pymethods]
impl Registration {
    /// See `Registration.leave`.
    fn leave(&self, py: Python<'_>) -> PyResult<()> {
        let Some(keeper) = self.keeper.take() else {
            return Ok(());
        };
        let start = |_| async move {
            keeper.leave().await;
            Ok::<_, ClientError>(())
        };
        block(py, self.keeper.process(), None, start)
    }
}
