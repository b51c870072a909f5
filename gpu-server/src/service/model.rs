//! `ModelService`: models come and go at an operator's word, on an address of its own. Each change leaves one line in the
//! log that says who asked for what and how it ended.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use medkg_proto::v1;
use medkg_proto::v1::model_service_server::ModelService;
use medkg_telemetry::tenant::TenantId;
use tonic::{Request, Response, Status};

use super::{call, describe, describe_all, device_id};
use crate::config::Role;
use crate::config::models::{ModelSpec, check_revision, check_sha256};
use crate::engine::Engine;
use crate::engine::models::Purpose;
use crate::engine::registry::Ended;
use crate::error::Error;

/// The models of this process.
#[derive(Debug)]
pub struct Models {
    engine: Arc<Engine>,
    /// The purposes that are served.
    purposes: Vec<Purpose>,
    /// Where checkpoints may be loaded from, without links in its path.
    root: Option<PathBuf>,
}

impl Models {
    /// The models of `engine`, in `roles`; checkpoints come from below `root`.
    pub fn new(engine: Arc<Engine>, roles: impl IntoIterator<Item = Role>, root: Option<PathBuf>) -> Self {
        let purpose = |role| match role {
            Role::Embedding => Some(Purpose::Embedding),
            Role::Reranking => Some(Purpose::Reranking),
            Role::Gpu | Role::Vector => None,
        };
        Self {
            engine,
            purposes: roles.into_iter().filter_map(purpose).collect(),
            root,
        }
    }

    fn purpose(&self, role: i32) -> Result<Purpose, Error> {
        let purpose = match v1::ModelRole::try_from(role) {
            Ok(v1::ModelRole::Embedding) => Purpose::Embedding,
            Ok(v1::ModelRole::Reranking) => Purpose::Reranking,
            Ok(v1::ModelRole::Unspecified) | Err(_) => {
                return Err(Error::invalid(
                    "role",
                    "must be MODEL_ROLE_EMBEDDING or MODEL_ROLE_RERANKING",
                ));
            }
        };
        if self.purposes.contains(&purpose) {
            Ok(purpose)
        } else {
            Err(Error::invalid("role", "is not served by this process; see --services"))
        }
    }

    async fn load(&self, request: &v1::LoadModelRequest) -> Result<v1::Model, Error> {
        self.engine.check()?;
        let spec = self.spec(request)?;
        let (purpose, name) = (spec.purpose, spec.name.clone());
        let flight = self.engine.models.load(spec);
        match self.engine.unless_lost(async { Ok(flight.ended().await) }).await? {
            Ended::Done(outcome) => outcome?,
            Ended::Superseded => {
                return Err(Error::ModelNotReady {
                    name,
                    problem: "got another order before this one was carried out".to_owned(),
                    retry_after: std::time::Duration::from_secs(1),
                });
            }
        }
        self.described(purpose, &name)
    }

    /// What is asked for. A folder makes it a new version of the model, with nothing left of the digest, the revision and
    /// the golden values of the one before; without a folder it is the one before, and what the request says replaces.
    fn spec(&self, request: &v1::LoadModelRequest) -> Result<ModelSpec, Error> {
        let purpose = self.purpose(request.role)?;
        let sha256 = match request.sha256.as_str() {
            "" => None,
            text => Some(check_sha256(text).map_err(|problem| Error::invalid("sha256", problem))?),
        };
        check_revision(&request.revision).map_err(|problem| Error::invalid("revision", problem))?;
        if request.name.is_empty() {
            return Err(Error::invalid("name", "is empty"));
        }
        let known = self.engine.models.report(purpose, &request.name);
        let known = known.map(|report| (*report.spec).clone());
        if request.directory.is_empty() {
            let mut spec = known?;
            if let Some(below) = &spec.below_root {
                spec.directory = self.below_root(below)?;
            }
            spec.sha256 = sha256.or(spec.sha256);
            if !request.revision.is_empty() {
                spec.revision.clone_from(&request.revision);
            }
            return Ok(spec);
        }
        let directory = self.below_root(&request.directory)?;
        let spec = if let Ok(known) = known {
            known
        } else {
            // A tenant's rule is the strictest one that the wire has; a name that is known already may be another one.
            let fine = TenantId::try_new(&request.name).is_ok();
            let problem = "must have 1 to 63 characters of [A-Za-z0-9._-], the first one a letter or a digit";
            if !fine {
                return Err(Error::invalid("name", problem));
            }
            ModelSpec::new(purpose, request.name.clone(), PathBuf::new())
        };
        Ok(ModelSpec {
            directory,
            below_root: Some(request.directory.clone()),
            revision: request.revision.clone(),
            sha256,
            golden: None,
            ..spec
        })
    }

    fn below_root(&self, directory: &str) -> Result<PathBuf, Error> {
        let Some(root) = &self.root else {
            let problem = "cannot be loaded: this server was started without --model-root";
            return Err(Error::invalid("directory", problem));
        };
        below(root, directory).map_err(|problem| Error::invalid("directory", problem))
    }

    fn described(&self, purpose: Purpose, name: &str) -> Result<v1::Model, Error> {
        let report = self.engine.models.report(purpose, name)?;
        Ok(describe(report, device_id(&self.engine)))
    }

    fn unload(&self, request: &v1::UnloadModelRequest) -> Result<v1::Model, Error> {
        let purpose = self.purpose(request.role)?;
        if request.name.is_empty() {
            return Err(Error::invalid("name", "is empty"));
        }
        self.engine.models.unload(purpose, &request.name)?;
        self.described(purpose, &request.name)
    }
}

/// The folder that `directory` names below `root`, its links followed. What does not exist and what lies elsewhere are
/// refused with the same words, so that nobody can look around outside.
fn below(root: &Path, directory: &str) -> Result<PathBuf, String> {
    let path = Path::new(directory);
    if directory.contains('\0') || path.components().any(|part| part == Component::ParentDir) {
        return Err("must be a path without `..`".to_owned());
    }
    let found = root.join(path).canonicalize().ok();
    found
        .filter(|found| found.starts_with(root) && found.is_dir())
        .ok_or_else(|| "must be a folder below --model-root".to_owned())
}

/// One line per change: who, what, and how it ended. Tenant and request id stand in it because the call's span is open.
fn audit(action: &str, role: i32, name: &str, directory: &str, outcome: Result<&v1::Model, &Error>) {
    let role = v1::ModelRole::try_from(role).unwrap_or_default().as_str_name();
    match outcome {
        Ok(model) => {
            let digest = &model.digest;
            tracing::info!(
                target: "audit",
                audit = true,
                action,
                role,
                model = name,
                directory,
                digest,
                outcome = "done",
                "models changed"
            );
        }
        Err(error) => {
            tracing::warn!(target: "audit", audit = true, action, role, model = name, directory, outcome = "refused", %error, "models not changed");
        }
    }
}

#[tonic::async_trait]
impl ModelService for Models {
    async fn list_models(
        &self,
        request: Request<v1::ModelServiceListModelsRequest>,
    ) -> Result<Response<v1::ModelServiceListModelsResponse>, Status> {
        call::unary(request.metadata(), "ModelService/ListModels", |_| async {
            self.engine.check()?;
            let of = |(purpose, role): (Purpose, v1::ModelRole)| {
                let models = describe_all(&self.engine, purpose).into_iter();
                models.map(move |model| v1::RoleModel {
                    role: role.into(),
                    model: Some(model),
                })
            };
            let roles = [
                (Purpose::Embedding, v1::ModelRole::Embedding),
                (Purpose::Reranking, v1::ModelRole::Reranking),
            ];
            Ok(v1::ModelServiceListModelsResponse {
                models: roles.into_iter().flat_map(of).collect(),
            })
        })
        .await
    }

    async fn load_model(
        &self,
        request: Request<v1::LoadModelRequest>,
    ) -> Result<Response<v1::LoadModelResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        call::unary(&metadata, "ModelService/LoadModel", |_| async {
            let outcome = self.load(&request).await;
            audit(
                "LoadModel",
                request.role,
                &request.name,
                &request.directory,
                outcome.as_ref(),
            );
            outcome.map(|model| v1::LoadModelResponse { model: Some(model) })
        })
        .await
    }

    async fn unload_model(
        &self,
        request: Request<v1::UnloadModelRequest>,
    ) -> Result<Response<v1::UnloadModelResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        call::unary(&metadata, "ModelService/UnloadModel", |_| async {
            let outcome = self.unload(&request);
            audit("UnloadModel", request.role, &request.name, "", outcome.as_ref());
            outcome.map(|model| v1::UnloadModelResponse { model: Some(model) })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_folders_below_the_root_are_found_whatever_links_say() {
        let outer = tempfile::tempdir().unwrap();
        let outer = outer.path().canonicalize().unwrap();
        let root = outer.join("models");
        std::fs::create_dir_all(root.join("a/v1")).unwrap();
        std::fs::create_dir_all(outer.join("secret")).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        symlink(root.join("a/v1"), root.join("current")).unwrap();
        symlink(outer.join("secret"), root.join("out")).unwrap();
        assert_eq!(below(&root, "a/v1"), Ok(root.join("a/v1")));
        assert_eq!(below(&root, "current"), Ok(root.join("a/v1")));
        assert_eq!(below(&root, root.join("a").to_str().unwrap()), Ok(root.join("a")));
        for outside in [
            "out",
            "../secret",
            "a/../../secret",
            "file",
            "nowhere",
            "/",
            "/etc",
            "a\0",
        ] {
            assert!(below(&root, outside).is_err(), "{outside:?}");
        }
        assert!(below(&root, outer.join("models-of-others").to_str().unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn no_path_leads_out(path in "[./a-z]{0,12}") {
            let outer = tempfile::tempdir().unwrap();
            let outer = outer.path().canonicalize().unwrap();
            let root = outer.join("models");
            std::fs::create_dir_all(root.join("a/b")).unwrap();
            if let Ok(found) = below(&root, &path) {
                prop_assert!(found.starts_with(&root), "{path:?} leads to {found:?}");
            }
        }
    }
}
