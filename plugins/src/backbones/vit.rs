//! Frozen vision transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv 2010.11929).
//! Its weights come from the Hugging Face Hub or from a file, or are embedded in the program.

use std::{str::FromStr, sync::Arc};

use cdl_core::{
    error::{HubError, nearest},
    hub,
    prelude::*,
    vit::{Vit, VitOptions, VitSizes, VitWeights},
};

/// Settings of `vit`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct VitConfig {
    /// Source of the weights: `hf:owner/name` or `hf:owner/name@revision` on the Hugging Face Hub, a safetensors file
    /// or PyTorch state dict (`.pth`, `.bin`), a folder with `model.safetensors` or `pytorch_model.bin`, `preset:NAME`
    /// (vit_tiny_augreg, vit_small_augreg, vit_base_augreg, vit_base_augreg2, vit_large_augreg, vit_small_dinov2,
    /// vit_small_dinov2_registers, vit_base_dinov2, deit_small, vit_base_mae), `embedded:micro_teacher`,
    /// `embedded:micro_student`, or, for benchmarks, random weights for 224 px: `random:tiny`, `random:small`,
    /// `random:base`, `random:large`. Tensor names may be those of timm or of transformers' ViT, DeiT, ViTMAE and
    /// DINOv2. DeiT's distillation token passes through the network as in training, but only the CLS token is used.
    pub weights: String,
    /// Part of the file to read, if it contains more than one network: the tensors whose names begin with this prefix,
    /// such as `module.base_encoder`. The names of tensors in nested dictionaries begin with the keys of the
    /// dictionaries, such as `teacher` or `target_encoder`. Default: the top level of the file, or else the dictionary
    /// `state_dict`, `model` or `model_state_dict`.
    pub weights_prefix: Option<String>,
    /// Number of blocks to keep, counted from the first; the final norm is always kept. Default: all blocks.
    pub depth: Option<usize>,
    /// Number of attention heads. Default: the number in the checkpoint's `config.json`; without one, heads of
    /// width 64 for networks up to width 1024, and the published number for wider networks, with a warning if published
    /// networks of this width differ.
    pub heads: Option<usize>,
    /// Normalisation of pixels. `none`: values stay in [0, 1]. `checkpoint`: mean and standard deviation from the
    /// checkpoint's `config.json` (timm) or `preprocessor_config.json` (transformers). `half`: mean 0.5, standard
    /// deviation 0.5. Default: `none` in mode `published`, `checkpoint` in mode `corrected`.
    pub normalize: Option<Normalize>,
    /// Activation (gradient) checkpointing: recompute the activations of each block in the backward pass instead of
    /// storing them. Needs less memory and a third more time; for networks whose activations do not fit into memory.
    pub checkpoint_blocks: bool,
}

/// Normalisation of pixels before the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// No normalisation: pixels stay in [0, 1].
    None,
    /// Normalisation with which the checkpoint was trained, read from the file beside it.
    Checkpoint,
    /// Normalisation `(x - 0.5) / 0.5`, with which AugReg checkpoints were trained.
    Half,
}

cdl_core::register!(Backbone {
    name: "vit",
    about: "Frozen vision transformer of timm or transformers, from the Hugging Face Hub or a file",
    citation: "Dosovitskiy et al., ICLR 2021, arXiv:2010.11929",
    config: VitConfig,
    build: build,
});

/// Short names of published weights. timm's `vit_base_patch16_224` once named the AugReg weights and now names augreg2.
const PRESETS: [(&str, &str); 10] = [
    ("vit_tiny_augreg", "hf:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
    ("vit_small_augreg", "hf:timm/vit_small_patch16_224.augreg_in21k_ft_in1k"),
    ("vit_base_augreg", "hf:timm/vit_base_patch16_224.augreg_in21k_ft_in1k"),
    ("vit_base_augreg2", "hf:timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"),
    ("vit_large_augreg", "hf:timm/vit_large_patch16_224.augreg_in21k_ft_in1k"),
    ("vit_small_dinov2", "hf:timm/vit_small_patch14_dinov2.lvd142m"),
    ("vit_small_dinov2_registers", "hf:timm/vit_small_patch14_reg4_dinov2.lvd142m"),
    ("vit_base_dinov2", "hf:timm/vit_base_patch14_dinov2.lvd142m"),
    ("deit_small", "hf:timm/deit_small_patch16_224.fb_in1k"),
    ("vit_base_mae", "hf:timm/vit_base_patch16_224.mae"),
];

/// Width and depth of the published network sizes with patches of 16 x 16 pixels.
const SIZES: [(&str, (usize, usize)); 4] =
    [("tiny", (192, 12)), ("small", (384, 12)), ("base", (768, 12)), ("large", (1024, 24))];

const TEACHER: &[u8] = include_bytes!("../../assets/micro_vit/teacher.safetensors");
const TEACHER_CONFIG: &[u8] = include_bytes!("../../assets/micro_vit/teacher.json");
const STUDENT: &[u8] = include_bytes!("../../assets/micro_vit/student.safetensors");
const STUDENT_CONFIG: &[u8] = include_bytes!("../../assets/micro_vit/student.json");

/// Weights embedded in the program, each with its `config.json`.
const EMBEDDED: [(&str, [&[u8]; 2]); 2] =
    [("micro_teacher", [TEACHER, TEACHER_CONFIG]), ("micro_student", [STUDENT, STUDENT_CONFIG])];

fn build(config: VitConfig, context: &BackboneContext<'_>) -> Result<Arc<dyn Backbone>> {
    if let Some(folder) = context.folder {
        let vit = Vit::from_folder("vit", folder, context.image_size, context.precision, context.device)?;
        return Ok(Arc::new(vit));
    }
    let (weights, provenance) = read(&config)?;
    let default = match context.mode {
        Mode::Published => Normalize::None,
        Mode::Corrected => Normalize::Checkpoint,
    };
    let normalization = match config.normalize.unwrap_or(default) {
        Normalize::None => Normalization::NONE,
        Normalize::Half => Normalization { mean: [0.5; 3], std: [0.5; 3] },
        Normalize::Checkpoint => weights.normalization().ok_or_else(|| {
            let expected = format!(
                "{} has no mean and standard deviation; use `none` or `half`, or a folder that contains the weights as \
                 `{}` together with timm's config.json or transformers' preprocessor_config.json",
                provenance.source,
                if provenance.file.ends_with(".safetensors") { "model.safetensors" } else { "pytorch_model.bin" },
            );
            Error::setting("normalize", "checkpoint", expected)
        })?,
    };
    let options = VitOptions {
        heads: config.heads,
        depth: config.depth,
        image_size: context.image_size,
        normalization,
        checkpoint_blocks: config.checkpoint_blocks,
        precision: context.precision,
    };
    let vit = Vit::new("vit", &weights, &options, provenance, context.device)?;
    if let BackboneSpec { heads, heads_from: HeadsFrom::GuessedFromWidth, width, .. } = vit.spec() {
        let (role, source) = (context.role.as_str(), &config.weights);
        tracing::warn!(
            "{role}.weights: {source} does not state the number of attention heads; using {heads} (width {width} / {}). Set \
             `{role}.heads` if the network was trained with another number",
            width / heads,
        );
    }
    Ok(Arc::new(vit))
}

/// Reads the weights that the settings name.
fn read(config: &VitConfig) -> Result<(VitWeights, Provenance)> {
    let (source, prefix) = (config.weights.as_str(), config.weights_prefix.as_deref());
    if source.is_empty() {
        let expected = "expected a source of weights: hf:owner/name, a path, preset:NAME or embedded:NAME";
        return Err(Error::setting("weights", "", expected));
    }
    if let Some(prefix) =
        prefix.filter(|_| ["embedded:", "random:"].iter().any(|kind| source.starts_with(kind)))
    {
        let expected = format!("`{source}` is a single network; remove the key");
        return Err(Error::setting("weights_prefix", prefix, expected));
    }
    if let Some(name) = source.strip_prefix("embedded:") {
        let [bytes, config] = look_up(source, name, &EMBEDDED)?;
        let weights = VitWeights::from_bytes(source.into(), bytes, Some(config))?;
        return Ok((weights, Provenance::of_bytes(source, bytes)));
    }
    if let Some(name) = source.strip_prefix("random:") {
        let (width, depth) = look_up(source, name, &SIZES)?;
        let sizes = VitSizes { width, depth, patch_size: 16, image_size: 224 };
        let provenance = Provenance::of_bytes(source, source.as_bytes());
        return Ok((VitWeights::random(source, sizes)?, provenance));
    }
    let source = match source.strip_prefix("preset:") {
        None => source,
        Some(name) => look_up(source, name, &PRESETS)?,
    };
    let files = hub::fetch(&hub::FileSource::from_str(source)?).map_err(|error| match error {
        missing @ HubError::NoPath { .. } => Error::setting("weights", source, missing.to_string()),
        error => error.into(),
    })?;
    let mut weights = VitWeights::read_part(&files.weights, files.config.as_deref(), prefix)?;
    if let Some(file) = &files.preprocessor {
        weights = weights.with_preprocessor(file)?;
    }
    Ok((weights, files.provenance))
}

/// Returns the value of `name` in `table`. `source` is the whole value of the setting, for the error message.
fn look_up<T: Copy>(source: &str, name: &str, table: &[(&str, T)]) -> Result<T> {
    let found = table.iter().find(|(known, _)| *known == name);
    found.map(|&(_, value)| value).ok_or_else(|| {
        let known: Vec<&str> = table.iter().map(|&(known, _)| known).collect();
        let near = nearest(name, known.iter().copied()).map(|near| format!(" (did you mean `{near}`?)"));
        let expected = format!("expected one of {}{}", known.join(", "), near.unwrap_or_default());
        Error::setting("weights", source, expected)
    })
}
