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
    /// The learner's, in training.
    pub(crate) penalty: Option<Tensor>,
    pub(crate) selections: Vec<Selection>,
}

impl Network {
    /// As the teacher, for the student and for the test: no gradients.
    pub(crate) fn as_teacher(
        &self,
        pixels: &Tensor,
        query: &Query<'_>,
        pass: Pass,
        taps: &Taps,
    ) -> Result<Passed> {
        let _span = tracing::debug_span!("teacher forward").entered();
        let injection = self.learner.inject(query, pass)?.detach();
        let features = self.backbone.forward(pixels, &injection, taps)?.detach();
        let logits = self.learner.logits(&features)?.detach();
        let output = Output { features: own_tokens(&features, injection.token_count()?, 0..0)?, logits };
        Ok(Passed { output, penalty: None, selections: injection.selections })
    }

    /// As the student, with the learner's and the distiller's prompts.
    pub(crate) fn as_student(
        &self,
        distiller: &dyn Distiller,
        pixels: &Tensor,
        query: &Query<'_>,
        pass: Pass,
        taps: &Taps,
    ) -> Result<Passed> {
        let _span = tracing::debug_span!("student forward").entered();
        let mut injection = self.learner.inject(query, pass)?;
        let penalty = injection.penalty.take();
        let learners = injection.token_count()?;
        let mut injection = injection.merge(distiller.inject(pass)?)?;
        if pass == Pass::Test {
            injection = injection.detach();
        }
        let features = self.backbone.forward(pixels, &injection, taps)?;
        // The learner's tokens come first, the distiller's follow; each is shown its own.
        let injected = injection.token_count()?;
        let logits = self.learner.logits(&own_tokens(&features, injected, 0..learners)?)?;
        let output = Output { features: own_tokens(&features, injected, learners..injected)?, logits };
        Ok(Passed { output, penalty, selections: injection.selections })
    }

    /// Logits `(B, C)` as the student predicts them, without gradients, and what the images took of pools of prompts.
    pub(crate) fn student_logits(
        &self,
        distiller: &dyn Distiller,
        pixels: &Tensor,
        query: &Query<'_>,
    ) -> Result<(Tensor, Vec<Selection>)> {
        let passed = self.as_student(distiller, pixels, query, Pass::Test, &Taps::none())?;
        Ok((distiller.predict(&passed.output)?.detach(), passed.selections))
    }

    /// Logits `(B, C)` as the teacher predicts them, without gradients, and what the images took of pools of prompts.
    pub(crate) fn teacher_logits(
        &self,
        pixels: &Tensor,
        query: &Query<'_>,
    ) -> Result<(Tensor, Vec<Selection>)> {
        let passed = self.as_teacher(pixels, query, Pass::Test, &Taps::none())?;
        Ok((passed.output.logits, passed.selections))
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
