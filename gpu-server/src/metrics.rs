//! What Prometheus reads: `GET /metrics` on an address of its own, in the text format of `OpenMetrics`.
//!
//! Values are read when they are asked for, out of what the server keeps anyway: nothing is counted twice, and a scrape can
//! neither wait for the device nor for the driver. No tenant is a label: their number has no bound, and who reads metrics
//! need not know who the tenants are. Specification: <https://prometheus.io/docs/specs/om/open_metrics_spec/>.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::routing::get;
use http::header::CONTENT_TYPE;
use medkg_tls::ServerTlsConfig;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric as _, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::OnceCell;
use tonic::service::Routes;

use crate::config::{MemoryThresholds, ServerConfig};
use crate::device::pressure::Pressure;
use crate::engine::Engine;
use crate::engine::models::Purpose;
use crate::error::Error;
use crate::index::Collections;
use crate::index::usage::Latencies;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of the buckets of searches, in milliseconds.
const BOUNDS: [u64; 13] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000];

/// Where the values are.
#[derive(Debug)]
struct Sources {
    engine: Arc<Engine>,
    collections: Arc<OnceCell<Result<Collections, Error>>>,
    requested: String,
    thresholds: MemoryThresholds,
    started: Duration,
    tls: Option<ServerTlsConfig>,
}

/// `GET /metrics`.
pub fn routes(
    config: &ServerConfig,
    engine: &Arc<Engine>,
    collections: &Arc<OnceCell<Result<Collections, Error>>>,
    tls: Option<ServerTlsConfig>,
) -> Routes {
    let mut registry = Registry::with_prefix("medkg");
    registry.register_collector(Box::new(Sources {
        engine: Arc::clone(engine),
        collections: Arc::clone(collections),
        requested: config.device.to_string(),
        thresholds: config.memory_thresholds,
        // 0 on a machine whose clock is before 1970.
        started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        tls,
    }));
    let registry = Arc::new(registry);
    let scrape = move || {
        let mut text = String::new();
        let encoded = encode(&mut text, &registry).map(|()| ([(CONTENT_TYPE, OPEN_METRICS)], text));
        std::future::ready(encoded.map_err(|_| http::StatusCode::INTERNAL_SERVER_ERROR))
    };
    Router::new().route("/metrics", get(scrape)).into()
}

impl Collector for Sources {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauges = Gauges(encoder);
        self.process(&mut gauges)?;
        self.device(&mut gauges)?;
        self.collections(&mut gauges)
    }
}

impl Sources {
    fn process(&self, gauges: &mut Gauges<'_>) -> fmt::Result {
        let version = env!("CARGO_PKG_VERSION");
        gauges.family(
            "build_info",
            "The server's version",
            None,
            &[(&[("version", version)], 1_u64)],
        )?;
        gauges.one(
            "start_time",
            "When the process started, since 1970",
            Some(&Unit::Seconds),
            self.started.as_secs_f64(),
        )?;
        let Some(tls) = &self.tls else { return Ok(()) };
        gauges.one(
            "certificate_expiry",
            "When the first certificate of the server's chain expires, since 1970",
            Some(&Unit::Seconds),
            tls.expires().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        )
    }

    fn device(&self, gauges: &mut Gauges<'_>) -> fmt::Result {
        let active = self
            .engine
            .device
            .as_ref()
            .filter(|_| self.engine.latch.fault().is_none());
        let id = active.map_or("", |device| device.id.as_str());
        gauges.family(
            "device_info",
            "What the operator asked for (--device), and what computes; nothing does where `active` is empty",
            None,
            &[(&[("requested", self.requested.as_str()), ("active", id)], 1_u64)],
        )?;
        gauges.one(
            "device_ready",
            "1 while the device computes, 0 where there is none or it is lost: then every call is refused",
            None,
            u64::from(active.is_some()),
        )?;
        for (level, threshold) in [("warn", self.thresholds.warn), ("critical", self.thresholds.critical)] {
            gauges.one(
                &format!("device_memory_{level}_ratio"),
                &format!("From which fraction of the GPU's memory in use on it is {level} (--gpu-memory-{level})"),
                None,
                threshold,
            )?;
        }
        let held: u64 = [Purpose::Embedding, Purpose::Reranking]
            .into_iter()
            .flat_map(|purpose| self.engine.models.in_memory(purpose))
            .map(|model| model.model.memory_bytes)
            .sum();
        gauges.one(
            "model_memory",
            "Bytes of the weights that are loaded",
            Some(&Unit::Bytes),
            held,
        )?;
        if let Some(neighbours) = &self.engine.neighbours {
            gauges.one(
                "lease_store_up",
                "1 while the Redis of --lease-store answers; while it does not, no memory is leased",
                None,
                u64::from(neighbours.trouble().is_none()),
            )?;
        }
        if let Some((id, holders)) = self.engine.ledger.by_holder() {
            let values = holders.map(|(holder, bytes)| ([("device", id), ("holder", holder)], bytes));
            gauges.family(
                "device_memory_held",
                "Bytes of the GPU's memory that are promised, by who holds them; activations and CUDA's own are in none",
                Some(&Unit::Bytes),
                &values.each_ref().map(|(labels, value)| (labels.as_slice(), *value)),
            )?;
        }
        // On a CPU, and where NVML does not tell it, these are absent: 0 would be a lie.
        let Some((device, memory)) = active.zip(self.engine.memory.now()) else {
            return Ok(());
        };
        let device = [("device", device.id.as_str())];
        gauges.family(
            "device_memory_used",
            "Bytes of the GPU's memory that all processes together use",
            Some(&Unit::Bytes),
            &[(&device, memory.used)],
        )?;
        gauges.family(
            "device_memory_total",
            "Bytes of memory that the GPU has",
            Some(&Unit::Bytes),
            &[(&device, memory.total)],
        )?;
        let level = |name, pressure| ([device[0], ("level", name)], u64::from(memory.pressure == pressure));
        let levels = [
            level("normal", Pressure::Normal),
            level("warn", Pressure::Warn),
            level("critical", Pressure::Critical),
        ];
        gauges.family(
            "device_memory_pressure",
            "1 for the level that the GPU's memory is at",
            None,
            &levels.each_ref().map(|(labels, value)| (labels.as_slice(), *value)),
        )
    }

    fn collections(&self, gauges: &mut Gauges<'_>) -> fmt::Result {
        let Some(Ok(collections)) = self.collections.get() else {
            return Ok(());
        };
        let totals = collections.totals();
        gauges.family(
            "collections",
            "Vector collections by state; a damaged one refuses its callers",
            None,
            &[
                (&[("state", "served")], totals.served),
                (&[("state", "damaged")], totals.damaged),
            ],
        )?;
        gauges.one(
            "collection_points",
            "Points in all collections that are served",
            None,
            totals.points,
        )?;
        gauges.one(
            "collection_memory",
            "Bytes on the device that the collections take, spare capacity included",
            Some(&Unit::Bytes),
            totals.memory.device,
        )?;
        gauges.one(
            "collection_sparse_index",
            "Bytes on the host that the indexes of sparse vectors take, spare capacity included",
            Some(&Unit::Bytes),
            totals.memory.sparse_index,
        )?;
        let usage = collections.usage();
        let counts = usage.counts();
        for (name, help, value) in [
            ("searches", "Calls that searched a collection", counts.searches),
            ("search_queries", "Queries in them", counts.queries),
            ("upserts", "Calls that wrote points", counts.upserts),
            ("upserted_points", "Points that they wrote", counts.upserted_points),
            ("deletes", "Calls that removed points", counts.deletes),
            ("deleted_points", "Points that they removed", counts.deleted_points),
        ] {
            let encoder = gauges.0.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(encoder)?;
        }
        let mut latencies = Latencies::try_new().map_err(|_| fmt::Error)?;
        usage.add_latencies(&mut latencies);
        let told = latencies.buckets(&BOUNDS.map(Duration::from_millis));
        let help = "How long searches took in the server, from the call's arrival at the collection until its answer";
        let mut encoder =
            gauges
                .0
                .encode_descriptor("search_duration", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        encoder.encode_histogram::<NoLabelSet>(told.sum, told.count, &told.up_to, None)
    }
}

/// Writes what is sampled.
struct Gauges<'a>(DescriptorEncoder<'a>);

impl Gauges<'_> {
    fn one<N: EncodeGaugeValue>(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: N) -> fmt::Result {
        let gauge = ConstGauge::new(value);
        let encoder = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        gauge.encode(encoder)
    }

    fn family<N: EncodeGaugeValue + Copy>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        values: &[(&[(&str, &str)], N)],
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in values {
            ConstGauge::new(*value).encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }
}
