//! The query of a batch, computed when a learner asks for it, once.

use std::cell::{Cell, OnceCell};

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    traits::{Backbone, Injection, Taps},
};

/// Whose frozen network makes the query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuerySource {
    /// The student's, for both networks.
    Student,
    /// Each network's own.
    Own,
}

/// Queries `q(x)` `(B, Dq)` of a batch: the CLS token of a frozen network without prompts, after the final norm.
pub struct Query<'a> {
    source: Source<'a>,
    asked: Cell<bool>,
}

enum Source<'a> {
    Known(Tensor),
    Lazy { backbone: &'a dyn Backbone, pixels: &'a Tensor, value: OnceCell<Tensor> },
}

impl<'a> Query<'a> {
    /// The query that `backbone` makes of images `(B, 3, S, S)`.
    pub fn of(backbone: &'a dyn Backbone, pixels: &'a Tensor) -> Self {
        let source = Source::Lazy { backbone, pixels, value: OnceCell::new() };
        Self { source, asked: Cell::default() }
    }

    /// A query that is known already, `(B, Dq)`.
    pub fn known(value: Tensor) -> Self {
        Self { source: Source::Known(value), asked: Cell::default() }
    }

    /// Whether anybody has asked for it.
    pub(crate) fn was_asked_for(&self) -> bool {
        self.asked.get()
    }

    /// The query if it is known or has been asked for.
    pub(crate) fn computed(&self) -> Option<&Tensor> {
        match &self.source {
            Source::Known(value) => Some(value),
            Source::Lazy { value, .. } => value.get(),
        }
    }

    /// The query `(B, Dq)`, without gradient.
    pub fn get(&self) -> Result<&Tensor> {
        self.asked.set(true);
        match (self.computed(), &self.source) {
            (Some(value), _) | (None, Source::Known(value)) => Ok(value),
            (None, Source::Lazy { backbone, pixels, value }) => {
                let _span = tracing::debug_span!("query").entered();
                let plain = backbone.forward(pixels, &Injection::none(), &Taps::none())?;
                Ok(value.get_or_init(|| plain.cls.detach()))
            }
        }
    }
}
