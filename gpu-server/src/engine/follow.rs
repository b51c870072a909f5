//! Follows the models file while the server runs.
//!
//! The content is read once a second and compared: that sees every way in which a file changes (written in place, renamed
//! over, a Kubernetes `ConfigMap` whose links are exchanged), on every file system, and the file is small. A version with a
//! mistake changes nothing and is told in the log once.

use std::sync::Arc;
use std::time::Duration;

use super::models::Registry;
use crate::config::models_file::{Change, Listed, ModelsFile};

const PERIOD: Duration = Duration::from_secs(1);

/// Applies every new version of the file, until the task is dropped. `listed` is what the registry was started with.
pub async fn follow(models: Arc<Registry>, file: ModelsFile, mut listed: Listed) {
    let mut seen = None;
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let path = file.path.clone();
        let Ok(read) = tokio::task::spawn_blocking(move || std::fs::read(path)).await else {
            return;
        };
        let read = read.map_err(|error| error.to_string());
        if seen.as_ref() == Some(&read) {
            continue;
        }
        let parsed = match &read {
            Ok(text) => file.parse(text),
            Err(error) => Err(vec![error.clone()]),
        };
        seen = Some(read);
        match parsed {
            Ok(new) if new == listed => {}
            Ok(new) => {
                let change = Change::between(&listed, new);
                listed = change.listed.clone();
                apply(&models, change).await;
            }
            Err(problems) => {
                for problem in problems {
                    tracing::error!(file = %file.path.display(), %problem, "models file not applied");
                }
            }
        }
    }
}

/// Loads what is new first and takes away what is gone then, so that a name can be replaced by another without a gap.
async fn apply(models: &Registry, change: Change) {
    let (loaded, removed) = (change.load.len(), change.remove.len());
    for flight in models.begin(&change) {
        // The loader's log says how each ended.
        flight.ended().await;
    }
    models.conclude(change);
    tracing::info!(loaded, removed, "models file applied");
}
