//! The query of a batch, computed when a learner asks for it, once.

use std::cell::{Cell, OnceCell};

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    traits::{Backbone, Injection, Mode, Taps},
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

impl QuerySource {
    /// Where a configuration says nothing: the student's in mode `published`, each one's own in mode `corrected`.
    pub(crate) fn of_mode(mode: Mode) -> Self {
        match mode {
            Mode::Published => Self::Student,
            Mode::Corrected => Self::Own,
        }
    }
}

/// Queries `q(x)` `(B, Dq)` of a batch: the CLS token of a frozen network without prompts, after the final norm.
pub struct Query<'a>(Source<'a>);

enum Source<'a> {
    Known(Tensor),
    Watched { value: Tensor, asked: &'a Cell<bool> },
    Lazy { backbone: &'a dyn Backbone, pixels: &'a Tensor, value: OnceCell<Tensor> },
}

impl<'a> Query<'a> {
    /// The query that `backbone` makes of images `(B, 3, S, S)`.
    pub fn of(backbone: &'a dyn Backbone, pixels: &'a Tensor) -> Self {
        Self(Source::Lazy { backbone, pixels, value: OnceCell::new() })
    }

    /// A query that is known already, `(B, Dq)`.
    pub fn known(value: Tensor) -> Self {
        Self(Source::Known(value))
    }

    /// A query that is known, and notes that it was asked for.
    pub(crate) fn watched(value: Tensor, asked: &'a Cell<bool>) -> Self {
        Self(Source::Watched { value, asked })
    }

    /// The query if it is known or has been asked for.
    pub(crate) fn computed(&self) -> Option<&Tensor> {
        match &self.0 {
            Source::Known(value) | Source::Watched { value, .. } => Some(value),
            Source::Lazy { value, .. } => value.get(),
        }
    }

    /// The query `(B, Dq)`, without gradient.
    ///
    /// # Errors
    /// Images that do not fit the network.
    pub fn get(&self) -> Result<&Tensor> {
        match &self.0 {
            Source::Known(value) => Ok(value),
            Source::Watched { value, asked } => {
                asked.set(true);
                Ok(value)
            }
            Source::Lazy { backbone, pixels, value } => {
                if let Some(value) = value.get() {
                    return Ok(value);
                }
                let _span = tracing::debug_span!("query").entered();
                let plain = backbone.forward(pixels, &Injection::none(), &Taps::none())?;
                Ok(value.get_or_init(|| plain.cls.detach()))
            }
        }
    }
}
