//! Conversion of the tensor names of published ViT checkpoints to timm's names.
//!
//! | naming scheme | written by |
//! | --- | --- |
//! | timm's | timm, and the original files of DeiT, DINO, DINOv2 and MAE |
//! | transformers' ViT | `ViTModel`, `DeiTModel` and the encoder of `ViTMAEForPreTraining` |
//! | transformers' DINOv2 | `Dinov2Model`, `Dinov2WithRegistersModel` |
//!
//! The schemes of transformers exist in two spellings: that of the files on the hub, and that of `state_dict()` since
//! transformers 5. Names may have a prefix (`vit.`, `module.`, ...). Tensors without the prefix belong to another
//! network and are ignored. Every name with the prefix must be known; otherwise a part of the network would silently be
//! dropped.

use std::collections::{BTreeMap, HashMap};

use candle_core::Tensor;

use super::stored::{Contents, Stored, list};
use crate::traits::not_finite;

/// Naming scheme of a family of checkpoints: pairs of its names and timm's names. A module has a weight and a bias.
pub(super) struct Naming {
    name: &'static str,
    /// Epsilon of the layer norms if there is no `config.json`.
    pub(super) eps: f64,
    modules: &'static [(&'static str, &'static str)],
    /// Single tensors. The first two, CLS token and position embeddings, are in every file; the others are register
    /// tokens.
    tensors: &'static [(&'static str, &'static str)],
    /// Text before the number of a block.
    blocks: &'static str,
    /// Layer norms of a block, before attention and before the MLP.
    norms: [&'static str; 2],
    attention: &'static [(&'static str, &'static str)],
    /// Layers of a block's MLP.
    mlp: [&'static str; 2],
    /// Tensors of LayerScale. Either all blocks have them, or none.
    block_tensors: &'static [(&'static str, &'static str)],
    /// Prefixes of tensors that the features do not depend on: heads, decoders, mask tokens.
    unused: &'static [&'static str],
}

pub(super) const TIMM: Naming = Naming {
    name: "timm's names",
    eps: 1e-6,
    modules: &[("patch_embed.proj", "patch_embed.proj"), ("norm", "norm")],
    // DeiT's distillation token has its own position and its output is not used, so it is treated as a register token.
    tensors: &[
        ("cls_token", "cls_token"),
        ("pos_embed", "pos_embed"),
        ("reg_token", "reg_token"),
        ("register_tokens", "reg_token"),
        ("dist_token", "reg_token"),
    ],
    blocks: "blocks.",
    norms: ["norm1", "norm2"],
    attention: &[("attn.qkv", "attn.qkv"), ("attn.proj", "attn.proj")],
    mlp: ["mlp.fc1", "mlp.fc2"],
    block_tensors: &[("ls1.gamma", "ls1.gamma"), ("ls2.gamma", "ls2.gamma")],
    // `fc.` is MSN's projection head, `masked_embed` the mask token of iBOT.
    unused: &[
        "head.",
        "head_dist.",
        "fc.",
        "fc_norm.",
        "pre_logits.",
        "mask_token",
        "masked_embed",
        "decoder",
    ],
};

/// Spelling of the files on the hub.
const TRANSFORMERS_VIT: Naming = Naming {
    name: "the names of transformers' ViT",
    eps: 1e-12,
    modules: &[("embeddings.patch_embeddings.projection", "patch_embed.proj"), ("layernorm", "norm")],
    tensors: &[
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.register_tokens", "reg_token"),
        ("embeddings.distillation_token", "reg_token"),
    ],
    blocks: "encoder.layer.",
    norms: ["layernorm_before", "layernorm_after"],
    attention: &[
        ("attention.attention.query", "attn.q"),
        ("attention.attention.key", "attn.k"),
        ("attention.attention.value", "attn.v"),
        ("attention.output.dense", "attn.proj"),
    ],
    mlp: ["intermediate.dense", "output.dense"],
    block_tensors: &[],
    unused: &[
        "pooler.",
        "classifier.",
        "cls_classifier.",
        "distillation_classifier.",
        "embeddings.mask_token",
        "decoder.",
    ],
};

/// Spelling of `state_dict()` since version 5.
const TRANSFORMERS_5_VIT: Naming = Naming {
    blocks: "layers.",
    attention: &[
        ("attention.q_proj", "attn.q"),
        ("attention.k_proj", "attn.k"),
        ("attention.v_proj", "attn.v"),
        ("attention.o_proj", "attn.proj"),
    ],
    mlp: TIMM.mlp,
    ..TRANSFORMERS_VIT
};

/// Spelling of the files on the hub.
const TRANSFORMERS_DINOV2: Naming = Naming {
    name: "the names of transformers' DINOv2",
    eps: 1e-6,
    norms: TIMM.norms,
    mlp: TIMM.mlp,
    block_tensors: &[("layer_scale1.lambda1", "ls1.gamma"), ("layer_scale2.lambda1", "ls2.gamma")],
    ..TRANSFORMERS_VIT
};

/// Spelling of `state_dict()` since version 5.
const TRANSFORMERS_5_DINOV2: Naming =
    Naming { attention: TRANSFORMERS_5_VIT.attention, ..TRANSFORMERS_DINOV2 };

static NAMINGS: [Naming; 5] =
    [TIMM, TRANSFORMERS_VIT, TRANSFORMERS_5_VIT, TRANSFORMERS_DINOV2, TRANSFORMERS_5_DINOV2];

/// Part of a network that a plain ViT does not have, recognised by the end of a tensor's name.
struct Foreign {
    /// End of the name.
    end: &'static str,
    /// End of the name of a second tensor. The part is present only if the file does not have this tensor.
    without: Option<&'static str>,
    what: &'static str,
}

const fn has(end: &'static str, what: &'static str) -> Foreign {
    Foreign { end, without: None, what }
}

const fn lacks(end: &'static str, without: &'static str, what: &'static str) -> Foreign {
    Foreign { end, without: Some(without), what }
}

const NORM_BEFORE: &str = "a layer norm before the first block, as CLIP's vision towers have";
const POOL: &str = "attention pooling instead of a CLS token, as SigLIP has";
const ROTARY: &str = "rotary positions in place of position embeddings, as DINOv3 has";
const GATED: &str = "a gated MLP (SwiGLU)";
const PACKED: &str = "a gated MLP (SwiGLU) with gate and values in one matrix, as DINOv2's giant has";
const SEPARATE: &str =
    "queries, keys and values with separate weights or biases, as timm's BEiT and EVA have";

/// Unsupported parts. Only the first match is reported, so parts that identify a family of networks come first.
const FOREIGN: [Foreign; 20] = [
    has("pre_layrnorm.weight", NORM_BEFORE),
    has("norm_pre.weight", NORM_BEFORE),
    has("ln_pre.weight", NORM_BEFORE),
    has("head.probe", POOL),
    has("attn_pool.latent", POOL),
    has("relative_position_bias_table", "relative positions, as BEiT has"),
    has("rope_embed.periods", ROTARY),
    lacks("patch_embed.proj.weight", "pos_embed", ROTARY),
    lacks("embeddings.patch_embeddings.weight", "embeddings.position_embeddings", ROTARY),
    has("attn.q_norm.weight", "norms of queries and keys"),
    has("mlp.weights_in.weight", PACKED),
    has("mlp.w12.weight", PACKED),
    has("mlp.fc1_g.weight", GATED),
    has("mlp.gate_proj.weight", GATED),
    has("attn.q_bias", SEPARATE),
    has("attn.q_proj.weight", SEPARATE),
    has("gamma_1", "LayerScale under the names of timm's BEiT and EVA"),
    lacks(
        "fc_norm.weight",
        "norm.weight",
        "average pooling over the patches and `fc_norm` in place of a norm for the CLS token, as MAE has after \
         fine-tuning",
    ),
    lacks("patch_embed.proj.weight", "cls_token", "no CLS token"),
    lacks("embeddings.patch_embeddings.projection.weight", "embeddings.cls_token", "no CLS token"),
];

/// Maximum number of blocks, above that of any known ViT.
const MAX_BLOCKS: usize = 1000;

/// Tensor of a checkpoint.
pub(super) struct Named {
    pub(super) tensor: Tensor,
    /// Name in the file.
    pub(super) called: String,
}

/// Recognises the naming scheme. Returns the tensors under timm's names, and the default epsilon of the layer norms. An
/// error message does not contain the file's name, which the caller adds.
pub(super) fn to_timm(contents: Contents) -> Result<(HashMap<String, Named>, f64), String> {
    let tensors = &contents.tensors;
    for Foreign { end, without, what } in FOREIGN {
        let found = tensors.keys().filter_map(|name| Some((name, before(name, end)?)));
        for (name, prefix) in found {
            match without.map(|without| format!("{prefix}{without}")) {
                None => return Err(format!("`{name}` belongs to {what}, which a plain ViT does not have")),
                Some(without) if !tensors.contains_key(&without) => {
                    return Err(format!(
                        "has `{name}` but no `{without}`: a network with {what}, which is not supported"
                    ));
                }
                Some(_) => {}
            }
        }
    }
    let (naming, prefix) =
        recognise(tensors.keys().map(String::as_str)).map_err(|reason| reason + &contents.hint())?;
    let mut renamed: HashMap<String, Named> = HashMap::new();
    let mut surplus = Vec::new();
    for (full, stored) in contents.tensors {
        let Some(name) = full.strip_prefix(prefix.as_str()) else { continue };
        match naming.timm(name) {
            Some(("", timm)) => {
                if let Some(Named { called: first, .. }) = renamed.get(&timm) {
                    return Err(format!("`{first}` and `{full}` are two names of one tensor"));
                }
                let tensor = match stored {
                    Stored::Values(tensor) => tensor,
                    Stored::Unusable(reason) => return Err(format!("`{full}` {reason}")),
                };
                if let Some(value) = not_finite(&tensor) {
                    return Err(format!(
                        "`{full}` contains {value}, which is not a finite float32 number; the training that wrote the \
                         file diverged, or its conversion overflowed"
                    ));
                }
                renamed.insert(timm, Named { tensor, called: full });
            }
            _ if naming.unused.iter().any(|unused| name.starts_with(unused)) => {}
            _ => surplus.push(full),
        }
    }
    surplus.sort();
    let missing: Vec<String> = naming.missing(&renamed).into_iter().map(|n| format!("{prefix}{n}")).collect();
    if let Some(complaint) = complaint(&missing, &surplus) {
        return Err(format!("{complaint} (read with {})", naming.name));
    }
    fuse(&mut renamed)?;
    // A gated MLP multiplies two halves of the hidden layer, so that the second layer has half as many inputs.
    let [fc1, fc2] = ["fc1", "fc2"].map(|layer| renamed.get(&format!("blocks.0.mlp.{layer}.weight")));
    if let (Some(fc1), Some(fc2)) = (fc1, fc2)
        && let (&[outputs, _], &[_, inputs]) = (fc1.tensor.dims(), fc2.tensor.dims())
        && outputs > 0
        && outputs == 2 * inputs
    {
        return Err(format!("`{}` belongs to {PACKED}, which a plain ViT does not have", fc1.called));
    }
    Ok((renamed, naming.eps))
}

impl Naming {
    /// Returns the modules of a block in order, as pairs of this scheme's names and timm's names.
    fn block_modules(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let ([norm1, norm2], [fc1, fc2]) = (self.norms, self.mlp);
        let attention = [(norm1, "norm1")].into_iter().chain(self.attention.iter().copied());
        attention.chain([(norm2, "norm2"), (fc1, "mlp.fc1"), (fc2, "mlp.fc2")])
    }

    /// Splits a name into a prefix and a name of this scheme, which is returned as timm's name.
    fn timm<'n>(&self, name: &'n str) -> Option<(&'n str, String)> {
        let in_block = name.match_indices(self.blocks).find_map(|(at, marker)| {
            let prefix = whole(&name[..at])?;
            let (number, part) = name[at + marker.len()..].split_once('.')?;
            // Other spellings of a number (`07`, `+7`) would be second names of one tensor.
            let number =
                number.parse().ok().filter(|n: &usize| *n < MAX_BLOCKS && n.to_string() == number)?;
            let (rest, part) = renamed(part, self.block_modules(), self.block_tensors)?;
            rest.is_empty().then(|| (prefix, format!("blocks.{number}.{part}")))
        });
        in_block.or_else(|| renamed(name, self.modules.iter().copied(), self.tensors))
    }

    /// Returns the names, in this scheme, of the tensors missing from a file with the tensors `found` (timm's names).
    fn missing(&self, found: &HashMap<String, Named>) -> Vec<String> {
        let depth = found.keys().filter_map(|name| block_number(name)).max().map_or(1, |last| last + 1);
        let scaled = self.block_tensors.iter().any(|(_, timm)| found.keys().any(|name| name.ends_with(timm)));
        let mut needed: Vec<(String, String)> = Vec::new();
        let mut module = |theirs: String, timm: String| {
            needed.extend([".weight", ".bias"].map(|leaf| (theirs.clone() + leaf, timm.clone() + leaf)));
        };
        self.modules.iter().for_each(|(theirs, timm)| module(theirs.to_string(), timm.to_string()));
        let place = |block: usize, (theirs, timm): (&str, &str)| {
            (format!("{}{block}.{theirs}", self.blocks), format!("blocks.{block}.{timm}"))
        };
        for block in 0..depth {
            self.block_modules()
                .map(|names| place(block, names))
                .for_each(|(theirs, timm)| module(theirs, timm));
        }
        for block in (0..depth).filter(|_| scaled) {
            needed.extend(self.block_tensors.iter().map(|&names| place(block, names)));
        }
        needed
            .extend(self.tensors.iter().take(2).map(|(theirs, timm)| (theirs.to_string(), timm.to_string())));
        needed.into_iter().filter(|(_, timm)| !found.contains_key(timm)).map(|(theirs, _)| theirs).collect()
    }
}

/// Returns the block number in a name: 7 for `blocks.7.attn.qkv.weight`.
pub(super) fn block_number(name: &str) -> Option<usize> {
    name.strip_prefix("blocks.")?.split('.').next()?.parse().ok()
}

/// Returns the naming scheme and the prefix that match the most names.
fn recognise<'n>(names: impl Iterator<Item = &'n str>) -> Result<(&'static Naming, String), String> {
    let mut votes: BTreeMap<(&str, usize), usize> = BTreeMap::new();
    let mut example: Option<&str> = None;
    for name in names {
        example = Some(example.map_or(name, |other| other.min(name)));
        for (index, naming) in NAMINGS.iter().enumerate() {
            if let Some((prefix, _)) = naming.timm(name) {
                *votes.entry((prefix, index)).or_default() += 1;
            }
        }
    }
    let most = votes.values().copied().max().unwrap_or(0);
    let mut best = votes.into_iter().filter(|&(_, count)| count == most).map(|(place, _)| place);
    let Some((prefix, index)) = best.next() else {
        let example = example.map(|name| format!(", but for instance `{name}`")).unwrap_or_default();
        return Err(format!(
            "contains no tensor of a ViT{example}; expected {} (`blocks.0.attn.qkv.weight`) or transformers' \
             (`encoder.layer.0.attention.attention.query.weight`)",
            TIMM.name,
        ));
    };
    if let Some((other, _)) = best.find(|&(other, _)| other != prefix) {
        return Err(format!(
            "contains two networks, `{prefix}` and `{other}`; set `weights_prefix` to one of them, or save it in its own \
             file"
        ));
    }
    Ok((&NAMINGS[index], prefix.to_string()))
}

/// Splits a name into a prefix and an entry of one of the tables, which is returned as timm's name.
fn renamed<'n>(
    name: &'n str,
    mut modules: impl Iterator<Item = (&'static str, &'static str)>,
    tensors: &[(&str, &str)],
) -> Option<(&'n str, String)> {
    if let Some(found) = tensors.iter().find_map(|(end, timm)| Some((before(name, end)?, timm.to_string()))) {
        return Some(found);
    }
    let (module, leaf) = name.rsplit_once('.').filter(|(_, leaf)| ["weight", "bias"].contains(leaf))?;
    modules.find_map(|(end, timm)| Some((before(module, end)?, format!("{timm}.{leaf}"))))
}

/// Returns the part of a dotted name before `end`, if it is empty or consists of whole components.
fn before<'n>(name: &'n str, end: &str) -> Option<&'n str> {
    name.strip_suffix(end).and_then(whole)
}

fn whole(prefix: &str) -> Option<&str> {
    (prefix.is_empty() || prefix.ends_with('.')).then_some(prefix)
}

/// Stacks separate weights of queries, keys and values into one tensor.
fn fuse(tensors: &mut HashMap<String, Named>) -> Result<(), String> {
    let queries: Vec<String> = tensors.keys().filter(|name| name.contains(".attn.q.")).cloned().collect();
    for query in queries {
        let name = |part: &str| query.replacen(".attn.q.", &format!(".attn.{part}."), 1);
        let parts = ["q", "k", "v"].into_iter().filter_map(|part| tensors.remove(&name(part)));
        let (parts, called): (Vec<Tensor>, Vec<String>) =
            parts.map(|part| (part.tensor, part.called)).unzip();
        let (called, shapes) = (called.join("`, `"), parts.iter().map(Tensor::dims).collect::<Vec<_>>());
        let alike = shapes.windows(2).all(|pair| pair.first() == pair.last());
        let fused = Tensor::cat(&parts, 0).ok().filter(|_| alike);
        let tensor = fused
            .ok_or_else(|| format!("`{called}` have the shapes {shapes:?}, expected three equal shapes"))?;
        tensors.insert(name("qkv"), Named { tensor, called });
    }
    Ok(())
}

/// Describes missing and unexpected tensors, if there are any.
fn complaint(missing: &[String], surplus: &[String]) -> Option<String> {
    let near = |name: &String| crate::error::nearest(name, surplus.iter().map(String::as_str));
    let near = missing.first().and_then(near);
    let near = near.map(|n| format!(" (the nearest name is `{n}`)")).unwrap_or_default();
    let missing = list(missing).map(|missing| format!("no tensor {missing}{near}"));
    let surplus = list(surplus).map(|surplus| format!("has {surplus}, which a plain ViT does not have"));
    let parts: Vec<String> = missing.into_iter().chain(surplus).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}
