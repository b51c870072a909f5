//! The command line as a whole.

use clap::Parser as _;

use super::*;

fn parse(line: &str) -> Result<ServerConfig, Vec<String>> {
    let arguments = Arguments::try_parse_from(line.split_whitespace()).map_err(|e| vec![e.to_string()])?;
    ServerConfig::try_new(arguments)
}

#[test]
fn every_problem_is_listed_at_once() {
    let problems = parse("gpu-server --listen 0.0.0.0:1").unwrap_err();
    for flag in ["--embedding-model", "--reranking-model", "--data-dir", "--listen"] {
        assert!(
            problems.iter().any(|p| p.starts_with(flag)),
            "{flag} is not named in {problems:?}"
        );
    }
}

#[test]
fn cuda_is_the_default_and_cpu_must_be_typed() {
    assert_eq!(
        parse("gpu-server --services gpu").unwrap().device,
        DeviceChoice::Cuda(0)
    );
    assert_eq!(
        parse("gpu-server --services gpu --device cpu").unwrap().device,
        DeviceChoice::Cpu
    );
    assert!(parse("gpu-server --services gpu --device mps").is_err());
}

#[test]
fn a_gpu_cannot_be_required_of_the_cpu() {
    let line = "gpu-server --services gpu --require-gpu-at-start";
    assert!(parse(line).unwrap().require_gpu);
    let problems = parse(&format!("{line} --device cpu")).unwrap_err();
    assert!(problems[0].starts_with("--require-gpu-at-start"), "{problems:?}");
    for nonsense in ["-1", "NaN", "inf", "3601"] {
        let problems = parse(&format!("gpu-server --services gpu --gpu-lost-grace={nonsense}")).unwrap_err();
        assert!(problems[0].starts_with("--gpu-lost-grace"), "{problems:?}");
    }
}

#[test]
fn the_thresholds_of_memory_are_checked() {
    let line = "gpu-server --services gpu";
    let usual = MemoryThresholds::try_new(0.85, 0.95).unwrap();
    assert_eq!(parse(line).unwrap().memory_thresholds, usual);
    let problems = parse(&format!("{line} --gpu-memory-warn 0.96")).unwrap_err();
    assert!(problems[0].starts_with("--gpu-memory-warn 0.96"), "{problems:?}");
    assert!(parse(&format!("{line} --gpu-memory-warn 0.96 --gpu-memory-critical 1")).is_ok());
}

#[test]
fn a_role_that_is_not_served_needs_nothing() {
    let config = parse("gpu-server --services embedding --embedding-model m=/models/m --data-dir /d").unwrap();
    assert!(config.data_dir.is_none() && config.models.len() == 1);
}

#[test]
fn connections_live_for_a_bounded_time_unless_that_is_turned_off() {
    let line = "gpu-server --services gpu";
    assert_eq!(parse(line).unwrap().connection_age, Some(Duration::from_secs(3600)));
    assert_eq!(
        parse(&format!("{line} --connection-age 0")).unwrap().connection_age,
        None
    );
    for nonsense in ["-1", "NaN", "inf", "1e9"] {
        let problems = parse(&format!("{line} --connection-age={nonsense}")).unwrap_err();
        assert!(problems[0].starts_with("--connection-age"), "{problems:?}");
    }
}

#[test]
fn the_same_name_twice_is_refused() {
    let problems = parse("gpu-server --services embedding --embedding-model m=/a,m=/b").unwrap_err();
    assert!(problems[0].contains("given twice"));
}

#[test]
fn a_models_file_is_read_whole_at_the_start_and_its_mistakes_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("models.json");
    let line = format!("gpu-server --services embedding --models-file {}", path.display());
    assert!(parse(&line).unwrap_err()[0].starts_with("--models-file"));
    std::fs::write(&path, r#"{"models": [{"role": "embedding", "name": "m"}]}"#).unwrap();
    assert!(parse(&line).unwrap_err()[0].contains("models[0].directory"));
    std::fs::write(
        &path,
        r#"{"models": [{"role": "embedding", "name": "m", "directory": "d"}]}"#,
    )
    .unwrap();
    let (_, listed) = parse(&line).unwrap().models_file.unwrap();
    assert_eq!(listed.models[0].directory, folder.path().join("d"));
}

#[test]
fn the_admin_address_is_loopback_unless_it_is_asked_for() {
    let line = "gpu-server --services gpu --admin-listen";
    assert!(parse(&format!("{line} 0.0.0.0:1")).unwrap_err()[0].starts_with("--admin-listen"));
    assert!(parse(&format!("{line} 0.0.0.0:1 --allow-plaintext")).is_ok());
    assert!(parse(&format!("{line} 127.0.0.1:1 --model-root /nowhere")).unwrap_err()[0].starts_with("--model-root"));
    assert!(
        parse("gpu-server --services gpu --model-root /").is_err(),
        "nobody could ask for it"
    );
}
