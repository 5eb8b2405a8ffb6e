//! A frozen network with its learner, and how it passes images as the teacher and as the student.

use std::{ops::Range, sync::Arc};

use candle_core::Tensor;

use crate::{
    error::Result,
    traits::{Backbone, Distiller, Features, Learner, Output, Pass, Query, Selection, Taps},
};

/// A frozen network with the learner that prompts it.
pub struct Network {
    /// Frozen.
    pub backbone: Arc<dyn Backbone>,
    /// Trained.
    pub learner: Box<dyn Learner>,
}

/// Result of a pass through a network.
pub(crate) struct Passed {
    pub(crate) output: Output,
    /// Penalty of the learner, in training.
    pub(crate) penalty: Option<Tensor>,
    pub(crate) selections: Vec<Selection>,
}

impl Network {
    /// Passes images with the learner's prompts and, in the student, those of the `distiller`. Only training has gradients.
    pub(crate) fn pass(
        &self,
        distiller: Option<&dyn Distiller>,
        pixels: &Tensor,
        query: &Query<'_>,
        pass: Pass,
        taps: &Taps,
    ) -> Result<Passed> {
        let span = match distiller {
            Some(_) => tracing::debug_span!("student forward"),
            None => tracing::debug_span!("teacher forward"),
        };
        let _span = span.entered();
        let mut injection = self.learner.inject(query, pass)?;
        let penalty = injection.penalty.take();
        let learners = injection.token_count()?;
        if let Some(distiller) = distiller {
            injection = injection.merge(distiller.inject(pass)?)?;
        }
        if pass != Pass::Train {
            injection = injection.detach();
        }
        let features = self.backbone.forward(pixels, &injection, taps)?;
        // The learner's tokens come first, the distiller's follow; each is shown its own.
        let injected = injection.token_count()?;
        let mut logits = self.learner.logits(&own_tokens(&features, injected, 0..learners)?)?;
        if pass != Pass::Train {
            logits = logits.detach();
        }
        let output = Output { features: own_tokens(&features, injected, learners..injected)?, logits };
        Ok(Passed { output, penalty, selections: injection.selections })
    }

    /// Predicted logits `(B, C)` without gradients, and what the images took of pools of prompts.
    pub(crate) fn predict(
        &self,
        distiller: Option<&dyn Distiller>,
        pixels: &Tensor,
        query: &Query<'_>,
    ) -> Result<(Tensor, Vec<Selection>)> {
        let Passed { output, selections, .. } =
            self.pass(distiller, pixels, query, Pass::Test, &Taps::none())?;
        let logits = distiller.map_or(Ok(output.logits.clone()), |distiller| distiller.predict(&output))?;
        Ok((logits.detach(), selections))
    }
}

/// Features as a method sees them: its `own` of the `injected` tokens, and of block outputs the image's tokens.
fn own_tokens(features: &Features, injected: usize, own: Range<usize>) -> Result<Features> {
    let images = |tokens: &Tensor| tokens.narrow(1, 0, tokens.dim(1)? - injected);
    let blocks =
        features.blocks.iter().map(|(&block, tokens)| Ok((block, images(tokens)?))).collect::<Result<_>>()?;
    let tokens = match &features.tokens {
        Some(tokens) if !own.is_empty() => Some(tokens.narrow(1, own.start, own.len())?),
        _ => None,
    };
    let norm = features.norm.as_ref().map(images).transpose()?;
    Ok(Features { cls: features.cls.clone(), tokens, blocks, norm })
}
