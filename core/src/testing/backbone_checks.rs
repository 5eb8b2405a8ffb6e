//! Checks of backbones.

use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};

use crate::{
    error::{self, Result},
    registry::{self, Kind},
    rng::Rng,
    run::export::write_network,
    system::Precision,
    testing::{promise, read_settings},
    traits::{
        Backbone, BackboneContext, BackboneSpec, BlockInjection, Features, Injection, Kv, Mode, Role, Taps,
    },
};

/// Side of the images, a multiple of the usual patch sizes.
const SIDE: usize = 224;
/// Prompt tokens of each kind.
const LENGTH: usize = 2;

/// Checks the backbone registered as `name`, with `settings` in TOML, on images of 224 px: [`Backbone::spec`] and the
/// shapes of outputs are correct; the images of a batch are independent; injected prompts of every kind change the
/// output and get correct gradients; results are deterministic; weights never change; and an exported network, if the
/// backbone supports export, equals the original.
///
/// # Errors
/// The first violation, as [`Error::ContractViolation`](error::Error::ContractViolation), and errors of the backbone.
pub fn check_backbone(name: &str, settings: &str) -> Result<()> {
    let settings = read_settings(Kind::Backbone, name, settings)?;
    let build = |folder: Option<&Path>| {
        let context = BackboneContext {
            role: Role::Student,
            image_size: SIDE,
            mode: Mode::Published,
            device: &Device::Cpu,
            precision: Precision::Float32,
            folder,
        };
        registry::backbone(name, &settings, &context)
    };
    let backbone = build(None)?;
    let check = Check { plugin: format!("`{name}`"), backbone: backbone.as_ref() };
    check.spec(name)?;
    let before = frozen_values(backbone.as_ref())?;
    let pixels = Rng::new(5).uniform(&[2, 3, SIDE, SIDE], 0.0, 1.0, &Device::Cpu)?;
    let plain = check.shapes(&pixels, &Injection::none(), 0)?;
    check.images_are_independent(&pixels, &plain)?;
    check.is_deterministic(&pixels, &plain, build(None)?.as_ref())?;
    if let Some(portable) = backbone.portable()? {
        let folder = tempfile::tempdir().map_err(error::io(std::env::temp_dir()))?;
        write_network(&portable, folder.path())?;
        let moved = build(Some(folder.path()))?;
        // The exported files state the number of heads.
        let BackboneSpec { provenance, heads_from, .. } = moved.spec().clone();
        let same = BackboneSpec { provenance, heads_from, ..backbone.spec().clone() };
        check.promise(*moved.spec() == same, "a backbone built from exported files has the same sizes")?;
        let equal = frozen_values(moved.as_ref())? == before;
        check.promise(equal, "a backbone built from exported files has the same weights")?;
        check.is_deterministic(&pixels, &plain, moved.as_ref())?;
    }
    check.prompts(&pixels, &plain)?;
    check.promise(frozen_values(backbone.as_ref())? == before, "frozen weights never change")
}

/// Returns name and values of every frozen tensor.
fn frozen_values(backbone: &dyn Backbone) -> Result<Vec<(String, Vec<f32>)>> {
    let values = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    backbone.weights()?.into_iter().map(|(name, tensor)| Ok((name, values(&tensor)?))).collect()
}

fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok((a - b)?.abs()?.flatten_all()?.max(0)?.to_dtype(DType::F64)?.to_scalar()?)
}

struct Check<'a> {
    plugin: String,
    backbone: &'a dyn Backbone,
}

impl Check<'_> {
    fn promise(&self, kept: bool, what: impl Into<String>) -> Result<()> {
        promise(&self.plugin, kept, what)
    }

    fn spec(&self, name: &str) -> Result<()> {
        let BackboneSpec { plugin, image_size, depth, patches, heads, width, .. } = self.backbone.spec();
        let even = *heads > 0 && width.is_multiple_of(*heads);
        self.promise(plugin == name, format!("`spec` contains the registered name, not `{plugin}`"))?;
        self.promise(*image_size == SIDE, "`spec` has the image size of the context")?;
        self.promise(*depth > 0 && *patches > 0, "`spec` has at least one block and one patch")?;
        self.promise(even, "the width in `spec` is a multiple of the number of heads")
    }

    /// Computes the features of `pixels` with all taps and `extra` injected tokens, and checks their shapes.
    fn shapes(&self, pixels: &Tensor, injection: &Injection, extra: usize) -> Result<Features> {
        let spec = self.backbone.spec();
        let taps = Taps { blocks: (0..spec.depth).collect(), norm: true };
        let features = self.backbone.forward(pixels, injection, &taps)?;
        let batch = pixels.dim(0)?;
        self.promise(features.cls.dims() == [batch, spec.width], "the CLS token has the shape (B, D)")?;
        let blocks = features.blocks.keys().copied().eq(0..spec.depth);
        self.promise(blocks, "the output of every tapped block is returned")?;
        let norm = features.norm.as_ref();
        self.promise(norm.is_some(), "tapped tokens after the final norm are returned")?;
        let least = 1 + spec.patches + extra;
        for tokens in features.blocks.values().chain(norm) {
            let found = tokens.dims();
            let fits = matches!(found, [b, n, d] if *b == batch && *n >= least && *d == spec.width);
            self.promise(fits, format!("block outputs have the shape (B, N + K, D), not {found:?}"))?;
        }
        let tokens = features.tokens.as_ref().map_or(0, |tokens| tokens.dim(1).unwrap_or(0));
        self.promise(tokens == extra, "the injected tokens are returned, and no others")?;
        let sum = features.cls.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        self.promise(sum.is_finite(), "features are finite numbers")?;
        Ok(features)
    }

    /// Checks that the features of an image do not depend on the other images of its batch.
    fn images_are_independent(&self, pixels: &Tensor, batch: &Features) -> Result<()> {
        for row in 0..pixels.dim(0)? {
            let image = pixels.narrow(0, row, 1)?;
            let alone = self.backbone.forward(&image, &Injection::none(), &Taps::none())?;
            let near = distance(&alone.cls, &batch.cls.narrow(0, row, 1)?)? < 1e-3;
            self.promise(near, "an image's features do not depend on the other images of its batch")?;
        }
        Ok(())
    }

    /// Checks that this backbone and the equally built backbone `other` compute the features `first` again.
    fn is_deterministic(&self, pixels: &Tensor, first: &Features, other: &dyn Backbone) -> Result<()> {
        for backbone in [self.backbone, other] {
            let again = backbone.forward(pixels, &Injection::none(), &Taps::none())?;
            let same = distance(&again.cls, &first.cls)? == 0.0;
            self.promise(same, "equal settings and images give equal features")?;
        }
        Ok(())
    }

    /// Checks that every kind of prompt, in the first and in the last block, changes the CLS token and gets a correct
    /// gradient.
    fn prompts(&self, pixels: &Tensor, plain: &Features) -> Result<()> {
        let (width, depth) = (self.backbone.spec().width, self.backbone.spec().depth);
        let mut rng = Rng::new(6);
        let mut draw = |rows: usize| -> Result<Var> {
            Ok(Var::from_tensor(&rng.uniform(&[1, rows, width], -1.0, 1.0, &Device::Cpu)?)?)
        };
        let vars = [LENGTH, LENGTH, LENGTH, LENGTH, 1, 1, LENGTH].map(&mut draw);
        let vars = vars.into_iter().collect::<Result<Vec<Var>>>()?;
        let kv = |at: usize| Some(Kv::new(vars[at].as_tensor().clone(), vars[at + 1].as_tensor().clone()));
        let none = BlockInjection::default;
        for (kind, vars, block, tokens) in [
            ("prefix", &vars[..2], BlockInjection { prefix: kv(0), ..none() }, None),
            ("suffix", &vars[2..4], BlockInjection { suffix: kv(2), ..none() }, None),
            ("CLS addition", &vars[4..6], BlockInjection { cls_add: kv(4), ..none() }, None),
            ("token", &vars[6..], none(), Some(vars[6].as_tensor().clone())),
        ] {
            for at in [0, depth - 1] {
                let mut blocks = vec![BlockInjection::default(); depth];
                blocks[at] = block.clone();
                let injection = Injection { blocks, tokens: tokens.clone(), ..Injection::none() };
                let extra = tokens.as_ref().map_or(0, |_| LENGTH);
                let features = self.shapes(pixels, &injection, extra)?;
                let effect = distance(&features.cls, &plain.cls)? > 0.0;
                self.promise(effect, format!("a {kind} in block {at} has an effect"))?;
                self.gradients(pixels, &injection, vars, &format!("{kind} in block {at}"))?;
            }
        }
        Ok(())
    }

    /// Compares the gradient of a weighted sum of the CLS tokens with a central difference along the gradient.
    fn gradients(&self, pixels: &Tensor, injection: &Injection, vars: &[Var], what: &str) -> Result<()> {
        let value = || -> Result<Tensor> {
            let cls = self.backbone.forward(pixels, injection, &Taps::none())?.cls;
            // The outputs of a layer norm have a constant sum, so the weights must differ.
            let weights = Rng::new(7).uniform(cls.dims(), -1.0, 1.0, &Device::Cpu)?;
            Ok((cls * weights)?.sum_all()?)
        };
        let number = |value: Tensor| -> Result<f64> { Ok(value.to_dtype(DType::F64)?.to_scalar()?) };
        let gradients = value()?.backward()?;
        for var in vars {
            let Some(gradient) = gradients.get(var.as_tensor()) else {
                return self.promise(false, format!("a {what} gets a gradient"));
            };
            let norm = number(gradient.sqr()?.sum_all()?.sqrt()?)?;
            let some = norm.is_finite() && norm > 0.0;
            self.promise(some, format!("a {what} gets a gradient that is not zero"))?;
            let (start, step) = (var.as_tensor().copy()?, 1e-2);
            let at = |side: f64| -> Result<f64> {
                var.set(&(&start + (gradient * (side * step / norm))?)?)?;
                number(value()?)
            };
            let slope = (at(1.0)? - at(-1.0)?) / (2.0 * step);
            var.set(&start)?;
            let near = (slope - norm).abs() <= 0.05 * norm + 1e-3;
            let found = format!("its norm is {norm:.4}, but finite differences give {slope:.4}");
            self.promise(near, format!("the gradient of a {what} agrees with finite differences: {found}"))?;
        }
        Ok(())
    }
}
