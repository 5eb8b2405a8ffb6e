//! The frozen vision transformer: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv 2010.11929,
//! with weights from the Hugging Face Hub, a file, or this program itself.

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
    /// Where the weights are: `hf:owner/name` or `hf:owner/name@revision` on the Hugging Face Hub, a safetensors file
    /// or PyTorch state dict (`.pth`, `.bin`), a folder with `model.safetensors` or `pytorch_model.bin`, `preset:NAME`
    /// (vit_tiny_augreg, vit_small_augreg, vit_base_augreg, vit_base_augreg2, vit_large_augreg, vit_small_dinov2,
    /// vit_small_dinov2_registers, vit_base_dinov2, deit_small, vit_base_mae), `embedded:micro_teacher` /
    /// `embedded:micro_student`, or, to measure with, random ones for 224 px: `random:tiny`, `random:small`,
    /// `random:base`, `random:large`. The tensors have timm's names or those of transformers' ViT, DeiT, ViTMAE and
    /// DINOv2. DeiT's distillation token goes through the network as trained; the features are those of CLS alone.
    pub weights: String,
    /// Keep only the first so many blocks (and the final norm). Default: all.
    pub depth: Option<usize>,
    /// Attention heads. Default: as the checkpoint's `config.json` says, else heads of width 64 up to width 1024, and
    /// the published number for the wider networks.
    pub heads: Option<usize>,
    /// `none`: pixels stay in [0, 1]; `checkpoint`: mean and deviation of the checkpoint's `config.json` (timm) or
    /// `preprocessor_config.json` (transformers); `half`: 0.5 and 0.5. Default: none in mode `published`, checkpoint in mode `corrected`.
    pub normalize: Option<Normalize>,
    /// In training, compute what a block's backward pass needs a second time instead of keeping it: a third more
    /// time, for large networks whose activations do not fit.
    pub checkpoint_blocks: bool,
}

/// What happens to pixels before the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// Nothing.
    None,
    /// As the checkpoint was trained.
    Checkpoint,
    /// `(x - 0.5) / 0.5`, as AugReg checkpoints were trained.
    Half,
}

cdl_core::register!(Backbone {
    name: "vit",
    about: "Frozen vision transformer, timm's or transformers', from the Hugging Face Hub or a file",
    citation: "Dosovitskiy et al., ICLR 2021, arXiv:2010.11929",
    config: VitConfig,
    build: build,
});

/// Short names for published weights. What timm calls `vit_base_patch16_224` was once AugReg's and is augreg2's now.
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

/// Width and depth of the published sizes, patch 16.
const SIZES: [(&str, (usize, usize)); 4] =
    [("tiny", (192, 12)), ("small", (384, 12)), ("base", (768, 12)), ("large", (1024, 24))];

const TEACHER: &[u8] = include_bytes!("../../assets/micro_vit/teacher.safetensors");
const TEACHER_CONFIG: &[u8] = include_bytes!("../../assets/micro_vit/teacher.json");
const STUDENT: &[u8] = include_bytes!("../../assets/micro_vit/student.safetensors");
const STUDENT_CONFIG: &[u8] = include_bytes!("../../assets/micro_vit/student.json");

/// Weights that this program carries, each with its `config.json`.
const EMBEDDED: [(&str, [&[u8]; 2]); 2] =
    [("micro_teacher", [TEACHER, TEACHER_CONFIG]), ("micro_student", [STUDENT, STUDENT_CONFIG])];

fn build(config: VitConfig, context: &BackboneContext<'_>) -> Result<Arc<dyn Backbone>> {
    if let Some(folder) = context.folder {
        let vit = Vit::from_folder("vit", folder, context.image_size, context.precision, context.device)?;
        return Ok(Arc::new(vit));
    }
    let (weights, provenance) = read(&config.weights)?;
    let default = match context.mode {
        Mode::Published => Normalize::None,
        Mode::Corrected => Normalize::Checkpoint,
    };
    let normalization = match config.normalize.unwrap_or(default) {
        Normalize::None => Normalization::NONE,
        Normalize::Half => Normalization { mean: [0.5; 3], std: [0.5; 3] },
        Normalize::Checkpoint => weights.normalization().ok_or_else(|| {
            let expected = format!(
                "no mean and deviation come with {}; use `none` or `half`, or name a folder that holds the weights as \
                 `{}` and beside them timm's config.json or transformers' preprocessor_config.json",
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
    Ok(Arc::new(Vit::new("vit", &weights, &options, provenance, context.device)?))
}

fn read(source: &str) -> Result<(VitWeights, Provenance)> {
    if source.is_empty() {
        let expected = "expected a source of weights: hf:owner/name, a path, preset:NAME or embedded:NAME";
        return Err(Error::setting("weights", "", expected));
    }
    if let Some(name) = source.strip_prefix("embedded:") {
        let [bytes, config] = named(source, name, &EMBEDDED)?;
        let weights = VitWeights::from_bytes(source.into(), bytes, Some(config))?;
        return Ok((weights, Provenance::of_bytes(source, bytes)));
    }
    if let Some(name) = source.strip_prefix("random:") {
        let (width, depth) = named(source, name, &SIZES)?;
        let sizes = VitSizes { width, depth, patch_size: 16, image_size: 224 };
        let provenance = Provenance::of_bytes(source, source.as_bytes());
        return Ok((VitWeights::random(source, sizes)?, provenance));
    }
    let source = match source.strip_prefix("preset:") {
        None => source,
        Some(name) => named(source, name, &PRESETS)?,
    };
    let files = hub::fetch(&hub::WeightSource::from_str(source)?).map_err(|error| match error {
        nowhere @ HubError::NoPath { .. } => Error::setting("weights", source, nowhere.to_string()),
        error => error.into(),
    })?;
    let mut weights = VitWeights::read(&files.weights, files.config.as_deref())?;
    if let Some(file) = &files.preprocessor {
        weights = weights.with_preprocessor(file)?;
    }
    Ok((weights, files.provenance))
}

/// Value of `name` in a table; `source` is the setting that names it.
fn named<T: Copy>(source: &str, name: &str, table: &[(&str, T)]) -> Result<T> {
    let found = table.iter().find(|(known, _)| *known == name);
    found.map(|&(_, value)| value).ok_or_else(|| {
        let known: Vec<&str> = table.iter().map(|&(known, _)| known).collect();
        let near = nearest(name, known.iter().copied()).map(|near| format!(" (did you mean `{near}`?)"));
        let expected = format!("expected one of {}{}", known.join(", "), near.unwrap_or_default());
        Error::setting("weights", source, expected)
    })
}
