//! Conformance of every registered learner and distiller, with settings that reach all branches.

use cdl_core::{
    error::Result,
    registry::{self, Kind},
    testing,
};

/// Returns the settings to check. Pools of prompts are small, and lengths differ from the published ones.
fn settings(kind: Kind, name: &str) -> Vec<&'static str> {
    match (kind, name) {
        (Kind::Learner, "coda_prompt") => vec!["pool = 8", "pool = 5\nlength = 2\northo_penalty = 0.1"],
        (Kind::Learner, "l2p") => vec!["pool = 8", "pool = 5\nlength = 4\ntop_k = 2\ndeep = true"],
        (Kind::Learner, "dual_prompt") => {
            vec!["pool = 3\ne_length = 4\ng_length = 2", "pool = 5\ncandidates = \"seen\""]
        }
        (Kind::Learner, "apt") => vec!["", "ema = 0.3\nteacher_prompts = \"merged\""],
        (Kind::Distiller, "kd_prompts") => vec!["", "layers = 1", "layers = 3\nlength = 2\nalpha = 0.2"],
        (Kind::Distiller, "kd" | "dkd" | "fitnets" | "review_kd") => {
            vec!["", "alpha = 0.8\ntemperature = 1.5"]
        }
        _ => vec![""],
    }
}

#[test]
fn every_learner_passes_the_conformance_kit() -> Result<()> {
    cdl_plugins::link();
    for entry in registry::entries(Kind::Learner)? {
        for settings in settings(Kind::Learner, entry.name) {
            testing::check_learner(entry.name, settings)?;
        }
    }
    Ok(())
}

#[test]
fn every_distiller_passes_the_conformance_kit() -> Result<()> {
    cdl_plugins::link();
    for entry in registry::entries(Kind::Distiller)? {
        for settings in settings(Kind::Distiller, entry.name) {
            testing::check_distiller(entry.name, settings)?;
        }
    }
    Ok(())
}

#[test]
fn the_vit_passes_the_conformance_kit() -> Result<()> {
    cdl_plugins::link();
    testing::check_backbone("vit", "weights = \"random:tiny\"\ndepth = 3")
}

#[test]
fn streams_without_files_pass_the_conformance_kit() -> Result<()> {
    cdl_plugins::link();
    testing::check_stream("noise", "tasks = 5\ntransform = { image_size = 16 }")?;
    let shuffled = "tasks = 2\nclass_order = \"shuffled\"\nmemory = 6\ntransform = { image_size = 16 }";
    testing::check_stream("noise", shuffled)?;
    let few = "tasks = 5\ntrain_per_class = 7\ntest_per_class = 2\ntransform = { image_size = 28 }";
    testing::check_stream("embedded", few)
}
