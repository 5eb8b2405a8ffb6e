//! Tests of checkpoints of transformers and timm, as safetensors and `torch.save` files: features equal those of the
//! library that wrote the file, and other files give clear errors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use cdl_core::{
    candle_core::{DType, Device, Tensor, safetensors},
    error::Result,
    hub::{self, WeightSource},
    traits::{Injection, Normalization},
    vit::VitWeights,
};
use common::networks::{self, difference};

/// Tolerance far above float32 rounding errors, and below the effect of a tanh GELU or of another epsilon.
const TOLERANCE: f64 = 5e-5;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vit")
}

/// Reads the fixture `name` with its configuration files.
fn weights(name: &str) -> Result<VitWeights> {
    let files = hub::fetch(&WeightSource::Path(fixtures().join(name)))?;
    let weights = VitWeights::read(&files.weights, files.config.as_deref())?;
    match &files.preprocessor {
        Some(file) => weights.with_preprocessor(file),
        None => Ok(weights),
    }
}

/// Computes all tokens after the final norm for the images of `expected`.
fn tokens(
    weights: &VitWeights,
    heads: Option<usize>,
    normalization: Normalization,
    expected: &HashMap<String, Tensor>,
) -> Result<Tensor> {
    let images = &expected["images"];
    let vit = networks::vit(weights, heads, images.dim(2)?, normalization)?;
    networks::tokens(&vit, &networks::pixels(images)?, &Injection::none())
}

fn expected(name: &str) -> Result<HashMap<String, Tensor>> {
    Ok(safetensors::load(fixtures().join(name).join("expected.safetensors"), &Device::Cpu)?)
}

/// Compares with the tokens that the library computes. Heads and epsilon come from `config.json`.
fn compare(name: &str) -> Result<()> {
    let expected = expected(name)?;
    let tokens = tokens(&weights(name)?, None, Normalization::NONE, &expected)?;
    let error = difference(&tokens, &expected["tokens"])?;
    println!("vit {name} {error:.1e}");
    assert!(error < TOLERANCE, "{name}: {error:e}");
    Ok(())
}

#[test]
fn networks_of_transformers_give_the_tokens_of_transformers() -> Result<()> {
    compare("transformers_vit")?;
    compare("transformers_dinov2")?;
    compare("transformers_dinov2_registers")?;
    compare("transformers_deit")?;
    compare("transformers_mae")
}

#[test]
fn a_pytorch_file_with_state_dict_names_gives_the_tokens_of_transformers() -> Result<()> {
    compare("torch_vit")
}

#[test]
fn pixels_are_normalised_by_the_preprocessor_config() -> Result<()> {
    let expected = expected("transformers_vit")?;
    let weights = weights("transformers_vit")?;
    let normalization = weights.normalization().expect("preprocessor_config.json");
    assert_eq!(normalization.mean, [0.485, 0.456, 0.406]);
    assert_eq!(normalization.std, [0.229, 0.224, 0.225]);
    let tokens = tokens(&weights, None, normalization, &expected)?;
    let error = difference(&tokens, &expected["tokens_normalized"])?;
    assert!(error < TOLERANCE, "{error:e}");
    Ok(())
}

#[test]
fn eps_is_read_from_the_file_or_is_the_default_of_the_library() -> Result<()> {
    assert_eq!(weights("transformers_vit")?.eps(), 1e-3);
    assert_eq!(weights("torch_vit")?.eps(), 1e-12);
    let without_config =
        |name: &str| VitWeights::read(&fixtures().join(name).join("model.safetensors"), None);
    assert_eq!(without_config("transformers_vit")?.eps(), 1e-12);
    assert_eq!(without_config("transformers_mae")?.eps(), 1e-12);
    assert_eq!(without_config("transformers_dinov2")?.eps(), 1e-6);
    assert_eq!(without_config("timm_vit")?.eps(), 1e-6);
    // The epsilon has an effect: the default of the library gives other tokens than the value of the file.
    for (name, heads) in [("transformers_vit", 4), ("transformers_dinov2", 2)] {
        let expected = expected(name)?;
        let tokens = tokens(&without_config(name)?, Some(heads), Normalization::NONE, &expected)?;
        assert!(difference(&tokens, &expected["tokens"])? > 10.0 * TOLERANCE, "{name}");
    }
    Ok(())
}

#[test]
fn timms_and_transformers_files_of_one_network_agree() -> Result<()> {
    for (timm, transformers, heads) in
        [("timm_vit", "transformers_vit", 4), ("timm_deit", "transformers_deit", 2)]
    {
        let expected = expected(transformers)?;
        // timm's file format has no field for the epsilon of transformers' file.
        let eps = weights(transformers)?.eps();
        let config = format!(r#"{{"layer_norm_eps": {eps}}}"#);
        let bytes = fs::read(fixtures().join(timm).join("model.safetensors")).expect("file");
        let ours = VitWeights::from_bytes(timm.into(), &bytes, Some(config.as_bytes()))?;
        let ours = tokens(&ours, Some(heads), Normalization::NONE, &expected)?;
        let theirs = tokens(&weights(transformers)?, None, Normalization::NONE, &expected)?;
        let error = difference(&ours, &theirs)?;
        assert!(error < 1e-6, "{timm}: {error:e}");
    }
    Ok(())
}

#[test]
fn a_nested_state_dict_with_a_prefix_views_and_mixed_types_is_read() -> Result<()> {
    let expected = expected("transformers_vit")?;
    let of_file = |name: &str| tokens(&weights(name)?, Some(4), Normalization::NONE, &expected);
    // The file has the weights of timm_vit.
    assert_eq!(difference(&of_file("state_dict.pth")?, &of_file("timm_vit")?)?, 0.0);
    Ok(())
}

/// Returns the error message for a file with these bytes.
fn refusal(bytes: &[u8]) -> String {
    match VitWeights::from_bytes("some.file".into(), bytes, None) {
        Ok(weights) => weights.geometry().err().map(|e| e.to_string()).unwrap_or_default(),
        Err(error) => error.to_string(),
    }
}

/// Returns the file of a fixture with modified tensors.
fn changed(name: &str, change: impl Fn(&mut HashMap<String, Tensor>)) -> Result<Vec<u8>> {
    let mut tensors = safetensors::load(fixtures().join(name).join("model.safetensors"), &Device::Cpu)?;
    change(&mut tensors);
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("changed");
    safetensors::save(&tensors, &file)?;
    Ok(fs::read(file).expect("file"))
}

/// Checks that a message contains the file's name and all `words`.
#[track_caller]
fn assert_contains(message: &str, words: &[&str]) {
    for word in words.iter().chain(&["some.file"]) {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
}

#[test]
fn missing_and_unexpected_tensors_are_listed() -> Result<()> {
    let bytes = changed("transformers_vit", |tensors| {
        tensors.remove("vit.encoder.layer.1.attention.attention.key.bias");
        let norm = tensors.remove("vit.layernorm.weight").expect("norm");
        tensors.insert("vit.layernorm.gamma".into(), norm);
    })?;
    assert_contains(
        &refusal(&bytes),
        &[
            "no tensor `vit.layernorm.weight`, `vit.encoder.layer.1.attention.attention.key.bias` \
             (the nearest name is `vit.layernorm.gamma`)",
            "has `vit.layernorm.gamma`, which a plain ViT does not have",
            "read with the names of transformers' ViT",
        ],
    );
    // A whole block is missing: more names than the message lists.
    let bytes = changed("timm_vit", |tensors| {
        tensors.retain(|name, _| !name.starts_with("blocks.0."));
        tensors.insert("blocks.1.attn.extra".into(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
    })?;
    assert_contains(
        &refusal(&bytes),
        &[
            "no tensor `blocks.0.norm1.weight`, `blocks.0.norm1.bias`, `blocks.0.attn.qkv.weight`",
            "and 6 more",
            "has `blocks.1.attn.extra`",
            "timm's names",
        ],
    );
    // LayerScale must be in all blocks or in none.
    let bytes = changed("transformers_dinov2", |tensors| {
        tensors.remove("encoder.layer.1.layer_scale2.lambda1");
    })?;
    assert_contains(
        &refusal(&bytes),
        &["no tensor `encoder.layer.1.layer_scale2.lambda1`", "transformers' DINOv2"],
    );
    Ok(())
}

#[test]
fn shape_errors_name_the_tensor_of_the_file() -> Result<()> {
    let narrow = |name: &'static str| {
        changed("transformers_vit", move |tensors| {
            let tensor = tensors[name].narrow(0, 0, 1).unwrap().contiguous().unwrap();
            tensors.insert(name.into(), tensor);
        })
    };
    let key = "vit.encoder.layer.0.attention.attention.key.weight";
    let message = refusal(&narrow(key)?);
    assert_contains(&message, &[key, "[1, 16]"]);
    // A hidden layer of width 0.
    let hollow = changed("timm_vit", |tensors| {
        for (name, axis) in [("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1)] {
            for block in 0..2 {
                let name = format!("blocks.{block}.mlp.{name}");
                let tensor = tensors[&name].narrow(axis, 0, 0).unwrap();
                let tensor = Tensor::zeros(tensor.dims(), DType::F32, &Device::Cpu).unwrap();
                tensors.insert(name, tensor);
            }
        }
    })?;
    assert_contains(&refusal(&hollow), &["`blocks.0.mlp.fc1.weight`", "[0, 16]", "(hidden, D)"]);
    let norm = narrow("vit.layernorm.weight")?;
    let weights = VitWeights::from_bytes("some.file".into(), &norm, None)?;
    let error = tokens(&weights, Some(4), Normalization::NONE, &expected("transformers_vit")?).unwrap_err();
    assert_contains(&error.to_string(), &["`vit.layernorm.weight` has shape [1], expected [16]"]);
    Ok(())
}

#[test]
fn unsupported_architectures_are_refused() -> Result<()> {
    let clip = fs::read(fixtures().join("transformers_clip/model.safetensors")).expect("file");
    assert_contains(
        &refusal(&clip),
        &["`vision_model.pre_layrnorm.weight`", "layer norm before the first block", "CLIP"],
    );
    let with = |name: &'static str| {
        changed("timm_vit", move |tensors| {
            tensors.insert(name.into(), Tensor::zeros(16, DType::F32, &Device::Cpu).unwrap());
        })
    };
    assert_contains(&refusal(&with("norm_pre.weight")?), &["`norm_pre.weight`", "CLIP"]);
    assert_contains(&refusal(&with("blocks.0.attn.q_norm.weight")?), &["norms of queries and keys"]);
    assert_contains(&refusal(&with("blocks.1.mlp.w12.weight")?), &["gated MLP"]);
    assert_contains(
        &refusal(&with("reg_token_of_mine")?),
        &["has `reg_token_of_mine`, which a plain ViT does not have"],
    );
    assert_eq!(refusal(&with("head.weight")?), "");
    // Two names of one tensor, and two networks in one file.
    let bytes = changed("timm_deit", |tensors| {
        tensors.insert("reg_token".into(), tensors["dist_token"].clone());
    })?;
    assert_contains(&refusal(&bytes), &["`dist_token` and `reg_token` are two names of one tensor"]);
    let bytes = changed("timm_vit", |tensors| {
        let both = ["student.", "teacher."].into_iter().flat_map(|prefix| {
            tensors.iter().map(move |(name, tensor)| (format!("{prefix}{name}"), tensor.clone()))
        });
        *tensors = both.collect();
    })?;
    assert_contains(&refusal(&bytes), &["two networks, `student.` and `teacher.`"]);
    let bytes = changed("timm_vit", |tensors| {
        let norm = tensors.remove("norm.bias").expect("norm");
        *tensors = [("fc.bias".to_string(), norm)].into();
    })?;
    assert_contains(
        &refusal(&bytes),
        &["no tensor of a ViT, but for instance `fc.bias`", "timm's names", "transformers'"],
    );
    let config = br#"{"hidden_act": "quick_gelu"}"#;
    let vit = fs::read(fixtures().join("timm_vit/model.safetensors")).expect("file");
    let error = VitWeights::from_bytes("some.file".into(), &vit, Some(config)).err().expect("an error");
    assert_contains(&error.to_string(), &["`hidden_act = quick_gelu`"]);
    Ok(())
}

#[test]
fn files_without_weights_give_different_errors() {
    let legacy = fs::read(fixtures().join("legacy.pth")).expect("file");
    assert_contains(&refusal(&legacy), &["PyTorch before 1.6"]);
    assert_contains(&refusal(b"<!doctype html>"), &["not a complete safetensors file"]);
    assert_contains(&refusal(b""), &["not a complete safetensors file"]);
    assert_contains(&refusal(b"PK\x03\x04 and nothing else"), &["not a complete PyTorch file"]);
}

/// Returns a file in the format of `torch.save` with the given pickle and one storage of 64 zeros.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("a/data.pkl", pickle), ("a/data/0", &[0; 256])] {
        zip.start_file(name, options).expect("entry");
        std::io::Write::write_all(&mut zip, bytes).expect("entry");
    }
    zip.finish().expect("archive").into_inner()
}

/// Returns a pickle of `{"norm.weight": tensor}`. Offset, shape and strides are pickled integers.
fn tensor_pickle(storage: &str, offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let begin =
        [b"\x80\x02}(".to_vec(), text("norm.weight"), b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec()];
    let storage = [
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text(storage),
        text("cpu"),
        b"K\x40tQ".to_vec(),
    ];
    let end = [offset, b"(", shape, b"t(", strides, b"t\x89}tRu."].concat();
    [begin.concat(), storage.concat(), end].concat()
}

#[test]
fn hostile_pickles_are_refused() {
    let (four, one) = (b"K\x04".as_slice(), b"K\x01".as_slice());
    // This pickle is valid but does not contain a ViT.
    assert_contains(
        &refusal(&archive(&tensor_pickle("0", b"K\x3c", four, one))),
        &["no tensor `patch_embed.proj.weight`"],
    );
    let huge = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f".as_slice();
    for (pickle, words) in [
        (tensor_pickle("0", b"K\x3d", four, one), "not within the 256 bytes"),
        (tensor_pickle("0", b"K\x00", four, huge), "not within the 256 bytes"),
        (tensor_pickle("0", huge, four, one), "not within the 256 bytes"),
        (tensor_pickle("0", b"K\x00", huge, b"K\x00"), "larger than the file"),
        (tensor_pickle("0", b"K\x00", b"J\xff\xff\xff\x7f", b"K\x00"), "larger than the file"),
        (tensor_pickle("../0", b"K\x00", four, one), "`data/../0` cannot be read"),
        (tensor_pickle("0", b"J\xff\xff\xff\xff", four, one), "contains no tensors"),
        // os.system("true"), which is never called.
        (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.".to_vec(), "Python object"),
        (b"\x80\x02}X\x05\x00\x00\x00epochK\x03s.".to_vec(), "its keys are: `epoch`"),
        (b"\x80\x02]K\x01a.".to_vec(), "no dictionary of tensors"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.".to_vec(), "Python object"),
        (b"\x80\x02X\xff\xff\xff\xffa.".to_vec(), "truncated"),
        (b"\x80\x04\x95.".to_vec(), "opcode 0x95"),
    ] {
        assert_contains(&refusal(&archive(&pickle)), &[words]);
    }
}

#[test]
fn error_messages_for_hostile_pickles_have_bounded_length() {
    // A dictionary whose key is a long list, and one whose name is long.
    let long = [b"\x80\x02}(](".to_vec(), b"K\x01".repeat(100_000), b"eK\x01u.".to_vec()].concat();
    let name = "x".repeat(1 << 20);
    let length = (name.len() as u32).to_le_bytes();
    let named = [b"\x80\x02}X", &length[..], name.as_bytes(), b"K\x01s."].concat();
    let module = [b"\x80\x02cnumpy\n".to_vec(), b"y".repeat(1 << 20)].concat();
    let odd = [module, b"\n(".to_vec(), b"K\x01".repeat(100_000), b"tK\x01R.".to_vec()].concat();
    for pickle in [long, named, odd] {
        let message = refusal(&archive(&pickle));
        assert!(message.contains("some.file") && message.len() < 3_000, "{} bytes", message.len());
    }
}

#[test]
fn damaged_pytorch_files_give_errors_and_no_panics() {
    for name in ["torch_vit/pytorch_model.bin", "state_dict.pth"] {
        let whole = fs::read(fixtures().join(name)).expect("file");
        for end in (0..whole.len()).step_by(97) {
            assert_ne!(refusal(&whole[..end]), "", "{name} truncated at {end} is accepted");
        }
        // Flip a bit anywhere; the checksums of the archive do not cover all bytes.
        for place in (0..whole.len()).step_by(31) {
            let mut bytes = whole.clone();
            bytes[place] ^= 1 << (place % 8);
            refusal(&bytes);
        }
    }
    // Damage the pickle before the archive computes its checksum: replace each byte in turn.
    let pickle = tensor_pickle("0", b"K\x00", b"K\x04", b"K\x01");
    for place in 0..pickle.len() {
        for value in [0, 0x28, 0x52, 0x62, 0x65, 0x68, 0x74, 0x85, 0x86, 0x8a, 0xff] {
            let mut bytes = pickle.clone();
            bytes[place] = value;
            refusal(&archive(&bytes));
        }
    }
}
