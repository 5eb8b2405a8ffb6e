//! Configuration files of a checkpoint: `config.json` of timm or transformers, and `preprocessor_config.json` of
//! transformers.

use serde::Deserialize;

use crate::{system::files::without_byte_order_mark, traits::Normalization};

/// Settings of a checkpoint that the network uses.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct CheckpointConfig {
    /// Name of the network in timm.
    pub(super) architecture: Option<String>,
    pub(super) heads: Option<usize>,
    /// Epsilon of the layer norms.
    pub(super) eps: Option<f64>,
    pub(super) normalization: Option<Normalization>,
}

/// `config.json` of timm or transformers.
#[derive(Deserialize)]
struct ConfigFile {
    architecture: Option<String>,
    num_heads: Option<usize>,
    num_attention_heads: Option<usize>,
    layer_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    model_args: Option<ModelArguments>,
    pretrained_cfg: Option<PretrainedConfig>,
    /// Older files of timm have these keys at the top level instead of under `pretrained_cfg`.
    #[serde(flatten)]
    bare: PretrainedConfig,
}

#[derive(Deserialize)]
struct ModelArguments {
    num_heads: Option<usize>,
}

#[derive(Deserialize)]
struct PretrainedConfig {
    mean: Option<Channels<f32>>,
    std: Option<Channels<f32>>,
}

/// Values of the three colour channels. A single number applies to all channels.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged, expecting = "expected a number or a list of three numbers")]
enum Channels<T> {
    All(T),
    Each([T; 3]),
}

impl<T: Copy> Channels<T> {
    fn each(self) -> [T; 3] {
        match self {
            Self::All(value) => [value; 3],
            Self::Each(values) => values,
        }
    }
}

/// `preprocessor_config.json` of transformers' image processor.
#[derive(Deserialize)]
struct PreprocessorFile {
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    do_normalize: Option<bool>,
    image_mean: Option<Channels<f64>>,
    image_std: Option<Channels<f64>>,
}

impl CheckpointConfig {
    /// Reads `config.json`. An error message does not contain the file's name, which the caller adds.
    pub(super) fn read(json: &[u8]) -> Result<Self, String> {
        let file: ConfigFile = serde_json::from_slice(without_byte_order_mark(json))
            .map_err(|e| format!("its config.json cannot be read: {e}"))?;
        if let Some(act) = file.hidden_act.filter(|act| act != "gelu") {
            return Err(format!("`hidden_act = {act}` in its config.json; expected `gelu` (exact, by erf)"));
        }
        if let Some(eps) = file.layer_norm_eps.filter(|eps| !(*eps > 0.0 && *eps < 1.0)) {
            let expected = "expected a number between 0 and 1";
            return Err(format!("`layer_norm_eps = {eps}` in its config.json; {expected}"));
        }
        let PretrainedConfig { mean, std } = file.pretrained_cfg.unwrap_or(file.bare);
        let normalization =
            mean.zip(std).map(|(mean, std)| Normalization { mean: mean.each(), std: std.each() });
        Ok(Self {
            architecture: file.architecture,
            heads: file.num_heads.or(file.num_attention_heads).or(file.model_args.and_then(|a| a.num_heads)),
            eps: file.layer_norm_eps,
            normalization: normalization.map(|n| usable(n, "config.json")).transpose()?,
        })
    }
}

/// Reads the normalisation from `preprocessor_config.json`, converted to pixels in `[0, 1]`.
pub(super) fn preprocessor(json: &[u8]) -> Result<Option<Normalization>, String> {
    const NAME: &str = "preprocessor_config.json";
    let file: PreprocessorFile = serde_json::from_slice(without_byte_order_mark(json))
        .map_err(|e| format!("its {NAME} cannot be read: {e}"))?;
    // The image processor normalises pixels in [0, 255] multiplied by `rescale_factor`.
    let scale = match file.do_rescale {
        Some(false) => 255.0,
        _ => 255.0 * file.rescale_factor.unwrap_or(1.0 / 255.0),
    };
    let (mean, std) = match (file.do_normalize, file.image_mean, file.image_std) {
        (Some(false), ..) => ([0.0; 3], [1.0; 3]),
        (_, Some(mean), Some(std)) => (mean.each(), std.each()),
        _ => return Ok(None),
    };
    let of_unit_pixels = |v: [f64; 3]| v.map(|v| (v / scale) as f32);
    usable(Normalization { mean: of_unit_pixels(mean), std: of_unit_pixels(std) }, NAME).map(Some)
}

fn usable(normalization: Normalization, file: &str) -> Result<Normalization, String> {
    let Normalization { mean, std } = normalization;
    if mean.iter().all(|m| m.is_finite()) && std.iter().all(|s| s.is_finite() && *s > 0.0) {
        return Ok(normalization);
    }
    let found = format!("its {file} has the mean {mean:?} and the standard deviation {std:?}");
    Err(format!("{found}; expected finite numbers and deviations above 0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: Normalization = Normalization { mean: [0.5; 3], std: [0.25; 3] };

    #[test]
    fn heads_eps_and_normalisation_are_read_from_the_files_of_each_library() -> Result<(), String> {
        let timm = br#"{"architecture": "vit", "num_classes": 0, "model_args": {"num_heads": 3},
            "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "crop_pct": 0.9}}"#;
        let expected = CheckpointConfig {
            architecture: Some("vit".into()),
            heads: Some(3),
            eps: None,
            normalization: Some(HALF),
        };
        assert_eq!(CheckpointConfig::read(timm)?, expected);
        let expected = CheckpointConfig { architecture: None, ..expected };
        let older = br#"{"num_heads": 3, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}"#;
        assert_eq!(CheckpointConfig::read(older)?, expected);
        let single = b"\xef\xbb\xbf{\"num_heads\": 3, \"mean\": 0.5, \"std\": 0.25}";
        assert_eq!(CheckpointConfig::read(single)?, expected);
        let transformers = br#"{"num_attention_heads": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}"#;
        let expected = CheckpointConfig { heads: Some(2), eps: Some(1e-12), ..CheckpointConfig::default() };
        assert_eq!(CheckpointConfig::read(transformers)?, expected);
        assert_eq!(CheckpointConfig::read(b"{}")?, CheckpointConfig::default());
        Ok(())
    }

    #[test]
    fn normalisation_of_a_preprocessor_is_converted_to_pixels_between_0_and_1() -> Result<(), String> {
        let read = |rest: &str| {
            let text = format!(r#"{{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]{rest}}}"#);
            preprocessor(text.as_bytes())
        };
        assert_eq!(read("")?, Some(HALF));
        // One number for all colours, in a file with a byte order mark.
        assert_eq!(preprocessor(b"\xef\xbb\xbf{\"image_mean\": 0.5, \"image_std\": 0.25}")?, Some(HALF));
        assert_eq!(read(r#", "do_rescale": true, "rescale_factor": 0.00392156862745098"#)?, Some(HALF));
        // (2 · x - 0.5) / 0.25, and (255 · x - 0.5) / 0.25.
        let doubled = Normalization { mean: [0.25; 3], std: [0.125; 3] };
        assert_eq!(read(r#", "rescale_factor": 0.00784313725490196"#)?, Some(doubled));
        let unscaled = Normalization { mean: [0.5 / 255.0; 3], std: [0.25 / 255.0; 3] };
        assert_eq!(read(r#", "do_rescale": false"#)?, Some(unscaled));
        assert_eq!(read(r#", "do_normalize": false"#)?, Some(Normalization::NONE));
        assert_eq!(preprocessor(b"{}")?, None);
        Ok(())
    }

    #[test]
    fn unsupported_configurations_are_rejected() {
        for (text, word) in [
            (r#"{"hidden_act": "quick_gelu"}"#, "`hidden_act = quick_gelu`"),
            (r#"{"layer_norm_eps": 0.0}"#, "`layer_norm_eps = 0`"),
            (r#"{"layer_norm_eps": "small"}"#, "config.json cannot be read"),
            (r#"{"pretrained_cfg": {"mean": [0, 0, 0], "std": [1, 0, 1]}}"#, "deviations above 0"),
            ("[", "config.json cannot be read"),
        ] {
            let said = CheckpointConfig::read(text.as_bytes()).err().unwrap_or_default();
            assert!(said.contains(word), "{said}");
        }
        let said = preprocessor(br#"{"image_mean": [1]}"#).err().unwrap_or_default();
        assert!(said.contains("expected a number or a list of three numbers"), "{said}");
        for text in [r#"{"image_mean": [0, 0, 0], "image_std": [0, 1, 1]}"#, "{", r#"{"image_mean": [1]}"#] {
            let said = preprocessor(text.as_bytes()).err().unwrap_or_default();
            assert!(said.contains("preprocessor_config.json"), "{said}");
        }
    }
}
