//! A frozen network with its learner, and its forward pass.

use std::{ops::Range, sync::Arc};

use candle_core::Tensor;

use crate::{
    error::Result,
    traits::{Backbone, Distiller, Features, Learner, Output, Pass, Query, Selection, Taps},
};

/// A frozen network with its learner.
pub struct Network {
    /// Frozen network.
    pub backbone: Arc<dyn Backbone>,
    /// Learner, which is trained.
    pub learner: Box<dyn Learner>,
}

/// Output of a forward pass.
pub(crate) struct PassOutput {
    pub(crate) output: Output,
    /// Penalty of the learner, in training.
    pub(crate) penalty: Option<Tensor>,
    pub(crate) selections: Vec<Selection>,
}

impl Network {
    /// Runs a forward pass with the prompts of the learner and, for the student, those of the `distiller`. Only
    /// [`Pass::Train`] records gradients.
    pub(crate) fn pass(
        &self,
        distiller: Option<&dyn Distiller>,
        pixels: &Tensor,
        query: &Query<'_>,
        pass: Pass,
        taps: &Taps,
    ) -> Result<PassOutput> {
        let span = match distiller {
            Some(_) => tracing::debug_span!("student forward"),
            None => tracing::debug_span!("teacher forward"),
        };
        let _span = span.entered();
        let mut injection = self.learner.inject(query, pass)?;
        let penalty = injection.penalty.take();
        let learner_tokens = injection.token_count()?;
        if let Some(distiller) = distiller {
            injection = injection.merge(distiller.inject(pass)?)?;
        }
        if pass != Pass::Train {
            injection = injection.detach();
        }
        let features = self.backbone.forward(pixels, &injection, taps)?;
        // The learner's tokens come first, the distiller's follow. Each method gets only its own tokens.
        let injected = injection.token_count()?;
        let mut logits = self.learner.logits(&own_tokens(&features, injected, 0..learner_tokens)?)?;
        if pass != Pass::Train {
            logits = logits.detach();
        }
        let output = Output { features: own_tokens(&features, injected, learner_tokens..injected)?, logits };
        Ok(PassOutput { output, penalty, selections: injection.selections })
    }

    /// Returns the predicted logits `(B, C)` without gradients, and the prompts that the images select from pools.
    pub(crate) fn predict(
        &self,
        distiller: Option<&dyn Distiller>,
        pixels: &Tensor,
        query: &Query<'_>,
    ) -> Result<(Tensor, Vec<Selection>)> {
        let PassOutput { output, selections, .. } =
            self.pass(distiller, pixels, query, Pass::Test, &Taps::none())?;
        let logits = distiller.map_or(Ok(output.logits.clone()), |distiller| distiller.predict(&output))?;
        Ok((logits.detach(), selections))
    }
}

/// Returns the features for one method: its `own` range of the `injected` tokens, and block outputs without injected
/// tokens.
fn own_tokens(features: &Features, injected: usize, own: Range<usize>) -> Result<Features> {
    let image_tokens = |tokens: &Tensor| tokens.narrow(1, 0, tokens.dim(1)? - injected);
    let blocks = features
        .blocks
        .iter()
        .map(|(&block, tokens)| Ok((block, image_tokens(tokens)?)))
        .collect::<Result<_>>()?;
    let tokens = match &features.tokens {
        Some(tokens) if !own.is_empty() => Some(tokens.narrow(1, own.start, own.len())?),
        _ => None,
    };
    let norm = features.norm.as_ref().map(image_tokens).transpose()?;
    Ok(Features { cls: features.cls.clone(), tokens, blocks, norm })
}
