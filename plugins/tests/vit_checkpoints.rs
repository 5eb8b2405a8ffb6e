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
    hub::{self, FileSource},
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
    let files = hub::fetch(&FileSource::Path(fixtures().join(name)))?;
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
        // timm's files do not state an epsilon; this network uses that of transformers' file.
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
    assert_contains(
        &refusal(&with("blocks.1.mlp.w12.weight")?),
        &["gated MLP (SwiGLU) with gate and values in one matrix"],
    );
    assert_contains(
        &refusal(&with("blocks.1.mlp.weights_in.weight")?),
        &["gated MLP (SwiGLU)", "DINOv2's giant"],
    );
    assert_contains(&refusal(&with("blocks.1.mlp.gate_proj.weight")?), &["gated MLP (SwiGLU)"]);
    assert_contains(
        &refusal(&with("blocks.1.attn.q_bias")?),
        &["separate weights or biases", "BEiT and EVA"],
    );
    assert_contains(
        &refusal(&with("reg_token_of_mine")?),
        &["has `reg_token_of_mine`, which a plain ViT does not have"],
    );
    assert_eq!(refusal(&with("head.weight")?), "");
    // timm names a packed gate like a plain MLP: only its shape differs.
    let packed = changed("timm_vit", |tensors| {
        for block in 0..2 {
            for leaf in ["weight", "bias"] {
                let name = format!("blocks.{block}.mlp.fc1.{leaf}");
                let doubled = Tensor::cat(&[&tensors[&name], &tensors[&name]], 0).unwrap();
                tensors.insert(name, doubled);
            }
        }
    })?;
    assert_contains(
        &refusal(&packed),
        &["`blocks.0.mlp.fc1.weight`", "gated MLP (SwiGLU) with gate and values in one matrix"],
    );
    // DINOv3 in timm's and transformers' names, and a fine-tuned MAE.
    let timm = changed("timm_vit", |tensors| drop(tensors.remove("pos_embed")))?;
    assert_contains(&refusal(&timm), &["no `pos_embed`", "rotary positions", "DINOv3"]);
    let transformers = changed("transformers_dinov2", |tensors| {
        tensors.remove("embeddings.position_embeddings");
        for leaf in ["weight", "bias"] {
            let patches = tensors.remove(&format!("embeddings.patch_embeddings.projection.{leaf}"));
            tensors.insert(format!("embeddings.patch_embeddings.{leaf}"), patches.unwrap());
        }
    })?;
    assert_contains(
        &refusal(&transformers),
        &["no `embeddings.position_embeddings`", "rotary positions", "DINOv3"],
    );
    let pooled = changed("timm_vit", |tensors| {
        for leaf in ["weight", "bias"] {
            let norm = tensors.remove(&format!("norm.{leaf}")).expect("norm");
            tensors.insert(format!("fc_norm.{leaf}"), norm);
        }
    })?;
    assert_contains(
        &refusal(&pooled),
        &["`fc_norm.weight` but no `norm.weight`", "average pooling", "MAE", "fine-tuning"],
    );
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
    assert_contains(&refusal(&bytes), &["two networks, `student.` and `teacher.`", "`weights_prefix`"]);
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
    // Magic number of files before version 1.6, pickled with protocols 3 and 4 instead of the usual 2.
    let magic = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.";
    for start in [b"\x80\x03".as_slice(), b"\x80\x04\x95\x0d\0\0\0\0\0\0\0"] {
        assert_contains(&refusal(&[start, magic].concat()), &["PyTorch before 1.6"]);
    }
    assert_contains(&refusal(b"\x80\x04}."), &["a Python pickle that `torch.save` did not write"]);
    assert_contains(
        &refusal(&zip_of(&[("embedding/kernel.npy", b"\x93NUMPY")])),
        &["NumPy (.npz)", "timm/vit_*_augreg_*"],
    );
    assert_contains(&refusal(&zip_of(&[("a.txt", b"")])), &["a zip archive without `data.pkl`"]);
}

/// Returns a zip archive with these entries.
fn zip_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in entries {
        zip.start_file(*name, options).expect("entry");
        std::io::Write::write_all(&mut zip, bytes).expect("entry");
    }
    zip.finish().expect("archive").into_inner()
}

/// Returns a file in the format of `torch.save` with the given pickle and one storage of 64 zeros.
fn archive(pickle: &[u8]) -> Vec<u8> {
    zip_of(&[("a/data.pkl", pickle), ("a/data/0", &[0; 256])])
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
        (tensor_pickle("0", b"K\x3d", four, one), "exceeds its storage of 256 bytes"),
        (tensor_pickle("0", b"K\x00", four, huge), "exceeds its storage of 256 bytes"),
        (tensor_pickle("0", huge, four, one), "exceeds its storage of 256 bytes"),
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
        (b"\x80\x04\x95.".to_vec(), "truncated"),
        (b"\x80\x06}.".to_vec(), "pickle protocol 6; expected 2 to 5"),
        (b"\x80\x04cos\nsystem\n\x94\x8c\x04true\x85R.".to_vec(), "Python object"),
        (b"\x80\x04\x8f.".to_vec(), "opcode 0x8f, which a state dict does not need"),
    ] {
        assert_contains(&refusal(&archive(&pickle)), &[words]);
    }
}

#[test]
fn a_number_of_heads_that_cannot_be_guessed_is_requested() -> Result<()> {
    let expected = expected("transformers_vit")?;
    let error = tokens(&weights("timm_vit")?, None, Normalization::NONE, &expected).unwrap_err();
    let said = error.to_string();
    assert!(said.contains("`heads = none`") && said.contains("none is usual for the width 16"), "{said}");
    Ok(())
}

#[test]
fn values_that_are_not_finite_are_refused() -> Result<()> {
    let name = "blocks.1.mlp.fc1.weight";
    for (value, dtype, word) in [
        (f64::NAN, DType::F16, "NaN"),
        (f64::NAN, DType::F32, "NaN"),
        (f64::INFINITY, DType::BF16, "inf"),
        (f64::NEG_INFINITY, DType::F32, "-inf"),
        (1e300, DType::F64, "1000000000"),
    ] {
        let odd = |tensor: &Tensor| {
            let mut values = tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
            values[7] = value;
            Tensor::from_vec(values, tensor.shape(), &Device::Cpu)?.to_dtype(dtype)
        };
        let change = |tensors: &mut HashMap<String, Tensor>| {
            let tensor = odd(&tensors[name]).unwrap();
            tensors.insert(name.into(), tensor);
        };
        assert_contains(
            &refusal(&changed("timm_vit", change)?),
            &[&format!("`{name}` contains {word}"), "not a finite"],
        );
    }
    // A NaN in a tensor that the network does not use is accepted.
    let unused = |tensors: &mut HashMap<String, Tensor>| {
        tensors.insert("head.bias".into(), Tensor::new(&[f32::NAN], &Device::Cpu).unwrap());
    };
    assert_eq!(refusal(&changed("timm_vit", unused)?), "");
    Ok(())
}

/// Returns the file of a fixture in safetensors format with one tensor of another type or shape, whose values are zeros.
fn with_odd_tensor(fixture: &str, odd: &str, dtype: &str, shape: &[usize], size: usize) -> Vec<u8> {
    let file = fs::read(fixtures().join(fixture).join("model.safetensors")).expect("file");
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let end = file.len() - 8 - length;
    let size = size * shape.iter().product::<usize>();
    let replaced = header.as_object_mut().unwrap().remove(odd).expect("a tensor");
    // A safetensors file may not have gaps, so the values of the replaced tensor get another name.
    header["head.weight"] = replaced;
    header[odd] = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]});
    let text = header.to_string();
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &file[8 + length..], &vec![0; size]].concat()
}

#[test]
fn types_and_dimensions_that_no_weight_has_are_refused_by_name() -> Result<()> {
    for (dtype, size) in [("F8_E4M3", 1), ("F8_E5M2", 1), ("I8", 1), ("I64", 8), ("BOOL", 1), ("C64", 8)] {
        let file = with_odd_tensor("timm_vit", "norm.weight", dtype, &[16], size);
        assert_contains(
            &refusal(&file),
            &[&format!("`norm.weight` has values of type {dtype}; expected float16")],
        );
    }
    let deep = with_odd_tensor("timm_vit", "norm.weight", "F32", &[1; 50_000], 4);
    assert_contains(&refusal(&deep), &["`norm.weight` has 50000 dimensions; expected at most 16"]);
    // Tensors that the network does not use can have any type.
    let unused = changed("timm_vit", |tensors| {
        let index = Tensor::zeros(4, DType::I64, &Device::Cpu).unwrap();
        tensors.insert("head.index".into(), index);
    })?;
    assert_eq!(refusal(&unused), "");
    let plain = tensor_pickle("0", b"K\x00", b"K\x04", b"K\x01");
    let replaced = |from: &[u8], to: &[u8]| {
        let at = plain.windows(from.len()).position(|window| window == from).expect("part of the pickle");
        archive(&[&plain[..at], to, &plain[at + from.len()..]].concat())
    };
    for (class, dtype) in [
        ("CharStorage", "int8"),
        ("LongStorage", "int64"),
        ("ComplexFloatStorage", "complex64"),
        ("QInt8Storage", "qint8"),
    ] {
        let file = replaced(b"FloatStorage", class.as_bytes());
        assert_contains(
            &refusal(&file),
            &[&format!("`norm.weight` has values of type {dtype}; expected float16")],
        );
    }
    let quantised = replaced(b"_rebuild_tensor_v2", b"_rebuild_qtensor");
    assert_contains(&refusal(&quantised), &["`norm.weight` has values of type float"]);
    let float8 = replaced(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3");
    let end = b"t\x89}ctorch\nfloat8_e4m3fn\n}tRu.";
    let short = archive_contents(&float8);
    let float8 = archive(&[&short[..short.len() - 7], end].concat());
    assert_contains(&refusal(&float8), &["`norm.weight` has values of type float8_e4m3fn"]);
    let ones = b"K\x01".repeat(50_000);
    let deep = archive(&tensor_pickle("0", b"K\x00", &ones, &ones));
    assert_contains(&refusal(&deep), &["`norm.weight` has 50000 dimensions; expected at most 16"]);
    Ok(())
}

/// Returns the pickle in a file of [`archive`].
fn archive_contents(file: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(file)).expect("archive");
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut zip.by_name("a/data.pkl").expect("entry"), &mut bytes).expect("pickle");
    bytes
}

/// Object of a `torch.save` file.
enum Tree {
    Dict(Vec<(String, Tree)>),
    Tensor(Tensor),
}

impl Tree {
    /// Returns the tensors of the fixture `timm_vit`, changed, with a prefix before each name.
    fn of_vit(prefix: &str, change: impl Fn(&Tensor) -> Tensor) -> Self {
        let file = fixtures().join("timm_vit/model.safetensors");
        let tensors = safetensors::load(file, &Device::Cpu).expect("file");
        let entry =
            |(name, tensor): (&String, &Tensor)| (format!("{prefix}{name}"), Self::Tensor(change(tensor)));
        Self::Dict(tensors.iter().map(entry).collect())
    }

    fn dict<const N: usize>(entries: [(&str, Self); N]) -> Self {
        Self::Dict(entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect())
    }

    fn small() -> Self {
        Self::Tensor(Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap())
    }
}

/// Writer of `torch.save` files in a protocol of Python's pickle.
struct Saver {
    protocol: u8,
    pickle: Vec<u8>,
    storages: Vec<Vec<u8>>,
}

impl Saver {
    fn new(protocol: u8) -> Self {
        Self { protocol, pickle: Vec::new(), storages: Vec::new() }
    }

    fn save(protocol: u8, tree: &Tree) -> Vec<u8> {
        let mut saver = Self::new(protocol);
        saver.object(tree);
        saver.finish()
    }

    fn finish(mut self) -> Vec<u8> {
        self.pickle.push(b'.');
        let frame = match self.protocol {
            4.. => [b"\x95".as_slice(), &(self.pickle.len() as u64).to_le_bytes()].concat(),
            _ => Vec::new(),
        };
        let pickle = [&[0x80, self.protocol][..], &frame, &self.pickle].concat();
        let names: Vec<String> = (0..self.storages.len()).map(|key| format!("a/data/{key}")).collect();
        let storages = names.iter().map(String::as_str).zip(self.storages.iter().map(Vec::as_slice));
        zip_of(&[("a/data.pkl", pickle.as_slice())].into_iter().chain(storages).collect::<Vec<_>>())
    }

    fn add(&mut self, bytes: &[u8]) {
        self.pickle.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        match self.protocol {
            4.. => self.add(&[b"\x8c", &[text.len() as u8][..], text.as_bytes(), b"\x94"].concat()),
            _ => self.add(&[b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()),
        }
    }

    fn global(&mut self, module: &str, name: &str) {
        if self.protocol < 4 {
            return self.add(format!("c{module}\n{name}\n").as_bytes());
        }
        self.text(module);
        self.text(name);
        self.add(b"\x93\x94");
    }

    fn ints(&mut self, numbers: &[usize]) {
        self.add(b"(");
        for &number in numbers {
            self.add(&[b"J", &(number as u32).to_le_bytes()[..]].concat());
        }
        self.add(b"t");
    }

    fn object(&mut self, tree: &Tree) {
        match tree {
            Tree::Dict(entries) => {
                self.add(b"}(");
                for (key, value) in entries {
                    self.text(key);
                    self.object(value);
                }
                self.add(b"u");
            }
            Tree::Tensor(tensor) => {
                let key = self.storages.len().to_string();
                let values =
                    tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
                self.storages.push(values.iter().flat_map(|value| value.to_le_bytes()).collect());
                self.global("torch._utils", "_rebuild_tensor_v2");
                self.add(b"((");
                self.text("storage");
                self.global("torch", "FloatStorage");
                self.text(&key);
                self.text("cpu");
                self.add(b"K\x00tQK\x00");
                self.ints(tensor.dims());
                self.ints(tensor.stride());
                self.add(b"\x89");
                self.global("collections", "OrderedDict");
                self.add(b")RtR");
            }
        }
    }
}

#[test]
fn state_dicts_in_all_pickle_protocols_are_read() -> Result<()> {
    let expected = expected("transformers_vit")?;
    let plain = tokens(&weights("timm_vit")?, Some(4), Normalization::NONE, &expected)?;
    for protocol in 2..=5 {
        let file = Saver::save(protocol, &Tree::of_vit("", Tensor::clone));
        let weights = VitWeights::from_bytes(format!("protocol {protocol}"), &file, None)?;
        let tokens = tokens(&weights, Some(4), Normalization::NONE, &expected)?;
        assert_eq!(difference(&tokens, &plain)?, 0.0, "protocol {protocol}");
    }
    Ok(())
}

#[test]
fn a_prefix_selects_one_network_of_a_file() -> Result<()> {
    let expected = expected("transformers_vit")?;
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("some.file");
    let read = |prefix: Option<&str>| VitWeights::read_part(&file, None, prefix);
    let tokens_of = |prefix: &str| tokens(&read(Some(prefix))?, Some(4), Normalization::NONE, &expected);
    let message = |prefix: Option<&str>| read(prefix).err().expect("an error").to_string();
    let plain = tokens(&weights("timm_vit")?, Some(4), Normalization::NONE, &expected)?;
    let other = |tensor: &Tensor| tensor.affine(0.5, 0.1).unwrap();

    // MSN saves two entries: the encoder with its projection head, and the tensor `prototypes`.
    let Tree::Dict(mut encoder) = Tree::of_vit("module.", Tensor::clone) else { panic!("no dictionary") };
    encoder.push(("module.fc.fc1.weight".into(), Tree::small()));
    let msn = Tree::dict([("target_encoder", Tree::Dict(encoder)), ("prototypes", Tree::small())]);
    fs::write(&file, Saver::save(2, &msn)).expect("file");
    assert_contains(
        &message(None),
        &[
            "no tensor of a ViT, but for instance `prototypes`",
            "under `target_encoder`: set `weights_prefix`",
        ],
    );
    for prefix in ["target_encoder", "target_encoder.", "target_encoder.module"] {
        assert_eq!(difference(&tokens_of(prefix)?, &plain)?, 0.0, "{prefix}");
    }
    let said = message(Some("target_encodr"));
    assert_contains(
        &said,
        &["`weights_prefix = target_encodr`", "`target_encoder`", "did you mean `target_encoder`"],
    );

    // DINO saves one dictionary for each network, which includes the network's head.
    let network = |head: &str, change: &dyn Fn(&Tensor) -> Tensor| {
        let Tree::Dict(mut entries) = Tree::of_vit("backbone.", change) else { panic!("no dictionary") };
        entries.push((format!("{head}.mlp.0.weight"), Tree::small()));
        Tree::Dict(entries)
    };
    let dino =
        Tree::dict([("student", network("head", &other)), ("teacher", network("head", &Tensor::clone))]);
    fs::write(&file, Saver::save(4, &dino)).expect("file");
    assert_contains(&message(None), &["its keys are: `student`, `teacher`", "set `weights_prefix`"]);
    assert_eq!(difference(&tokens_of("teacher")?, &plain)?, 0.0);
    assert!(difference(&tokens_of("student")?, &plain)? > 0.01);

    // MoCo saves both networks in `state_dict`; the beginning of a tensor's name states its network.
    let (Tree::Dict(mut both), Tree::Dict(momentum)) = (
        Tree::of_vit("module.base_encoder.", Tensor::clone),
        Tree::of_vit("module.momentum_encoder.", other),
    ) else {
        panic!("no dictionary")
    };
    both.extend(momentum);
    fs::write(&file, Saver::save(2, &Tree::dict([("state_dict", Tree::Dict(both))]))).expect("file");
    assert_contains(
        &message(None),
        &["`module.base_encoder.` and `module.momentum_encoder.`; set `weights_prefix`"],
    );
    for prefix in ["module.base_encoder", "state_dict.module.base_encoder"] {
        assert_eq!(difference(&tokens_of(prefix)?, &plain)?, 0.0, "{prefix}");
    }
    assert!(difference(&tokens_of("module.momentum_encoder")?, &plain)? > 0.01);
    assert_contains(&message(Some("modul")), &["`weights_prefix = modul`", "`module`"]);

    // One dictionary under two keys.
    let mut saver = Saver::new(2);
    saver.add(b"}(");
    saver.text("ema");
    saver.object(&Tree::of_vit("", Tensor::clone));
    saver.add(b"q\x00");
    saver.text("model");
    saver.add(b"h\x00u");
    fs::write(&file, saver.finish()).expect("file");
    let usual = tokens(&read(None)?, Some(4), Normalization::NONE, &expected)?;
    assert_eq!(difference(&usual, &plain)?, 0.0);
    assert_eq!(difference(&tokens_of("ema")?, &plain)?, 0.0);

    // A safetensors file with two networks.
    let both = changed("timm_vit", |tensors| {
        let both = tensors.iter().flat_map(|(name, tensor)| {
            [(format!("ema.{name}"), tensor.clone()), (format!("online.{name}"), other(tensor))]
        });
        *tensors = both.collect();
    })?;
    fs::write(&file, both).expect("file");
    assert_eq!(difference(&tokens_of("ema")?, &plain)?, 0.0);
    assert_contains(&message(Some("em")), &["`weights_prefix = em`", "`ema`, `online`"]);
    Ok(())
}

#[test]
fn dictionaries_with_many_paths_are_searched_in_bounded_time() {
    // Each dictionary contains the previous one under two keys: 2^60 paths. The last one contains itself.
    let mut pickle = b"\x80\x02}q\x00".to_vec();
    for _ in 0..60 {
        pickle.extend(b"}(X\x01\0\0\0ah\x00X\x01\0\0\0bh\x00uq\x00");
    }
    pickle.extend(b"X\x01\0\0\0ch\x00s.");
    assert_contains(&refusal(&archive(&pickle)), &["contains no tensors", "its keys are: `a`, `b`, `c`"]);
}

#[test]
fn error_messages_for_hostile_pickles_have_bounded_length() {
    // A dictionary whose key is a long list, one with a long key, and an object with a long name and long arguments.
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
