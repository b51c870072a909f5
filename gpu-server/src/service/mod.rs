//! The wire's side of the server: generated types in, validated domain types on, domain errors out. One file per gRPC
//! service; the only place of gpu-server that knows protobuf.

pub mod admittance;
pub mod backup;
pub mod call;
pub mod embedding;
pub mod gpu;
pub mod health;
pub mod model;
pub mod operator;
pub mod reranking;
pub mod routes;
pub mod status;
pub mod validate;
pub mod vector;

use medkg_proto::v1;

use crate::engine::Engine;
use crate::engine::job::Computed;
use crate::engine::models::{Purpose, ReadyModel};
use crate::engine::registry::{Report, Stage};
use crate::model::checkpoint::Task;
use crate::model::pooling::PoolingKind;

/// A model as `ListModels` tells it, whatever its state.
fn describe(report: Report<ReadyModel>, device: &str) -> v1::Model {
    let (state, known) = match report.stage {
        Stage::Loading => (v1::ModelState::Loading, v1::Model::default()),
        Stage::Ready(model) => (v1::ModelState::Ready, describe_ready(&model, device)),
        Stage::Failed => (v1::ModelState::Failed, v1::Model::default()),
        Stage::Unloaded => (v1::ModelState::Unloaded, v1::Model::default()),
    };
    let revision = if state == v1::ModelState::Ready {
        known.revision.clone()
    } else {
        report.spec.revision.clone()
    };
    v1::Model {
        name: report.spec.name.clone(),
        is_default: report.is_default,
        state: state.into(),
        detail: status::short(&report.detail),
        revision,
        ..known
    }
}

/// What only a model that answers tells.
fn describe_ready(model: &ReadyModel, device: &str) -> v1::Model {
    let pooling = match model.pooling {
        None if matches!(model.task, Task::Sparse(_)) => v1::Pooling::Splade,
        None => v1::Pooling::Unspecified,
        Some(PoolingKind::Mean) => v1::Pooling::Mean,
        Some(PoolingKind::Cls) => v1::Pooling::Cls,
        Some(PoolingKind::LastToken) => v1::Pooling::LastToken,
        Some(PoolingKind::WeightedMean) => v1::Pooling::WeightedMean,
        Some(PoolingKind::Max) => v1::Pooling::Max,
        Some(PoolingKind::MeanSqrtLength) => v1::Pooling::MeanSqrtLength,
    };
    let kind = match model.task {
        Task::Embed { .. } => v1::ModelKind::Dense,
        Task::Sparse(_) => v1::ModelKind::Sparse,
        Task::Score(_) => v1::ModelKind::Reranker,
    };
    let prompts = &model.encoder.prompts;
    let prompt = |(name, text): (&str, &str)| v1::Prompt {
        name: name.to_owned(),
        text: text.to_owned(),
    };
    let compute = if model.bf16 {
        v1::DataType::Bf16
    } else {
        v1::DataType::F32
    };
    v1::Model {
        digest: model.digest.clone(),
        architecture: model.architecture.clone(),
        dimension: u32::try_from(model.dimension).unwrap_or(u32::MAX),
        max_tokens: u32::try_from(model.encoder.max_tokens).unwrap_or(u32::MAX),
        pooling: pooling.into(),
        normalized: model.normalized,
        compute_dtype: compute.into(),
        device: device.to_owned(),
        kind: kind.into(),
        memory_bytes: model.model.memory_bytes,
        revision: model.revision.clone(),
        prompts: prompts.iter().map(prompt).collect(),
        default_prompt: prompts.default.clone().unwrap_or_default(),
        ..v1::Model::default()
    }
}

/// The models of one purpose, by name.
fn describe_all(engine: &Engine, purpose: Purpose) -> Vec<v1::Model> {
    let device = device_id(engine);
    let reports = engine.models.list(purpose);
    reports.into_iter().map(|report| describe(report, device)).collect()
}

fn device_id(engine: &Engine) -> &str {
    engine.device.as_ref().map_or("", |device| device.id.as_str())
}

fn usage(engine: &Engine, tokens: usize, computed: &Computed) -> v1::Usage {
    v1::Usage {
        tokens: tokens as u64,
        batches: computed.batches,
        queue_time: prost_types::Duration::try_from(computed.queue_time).ok(),
        compute_time: prost_types::Duration::try_from(computed.compute_time).ok(),
        device: device_id(engine).to_owned(),
    }
}
