//! Query of a batch, computed lazily and at most once.

use std::cell::{Cell, OnceCell};

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    traits::{Backbone, Injection, Taps},
};

/// Frozen network that computes the query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuerySource {
    /// The student, for both networks.
    Student,
    /// Each network computes its own query.
    Own,
}

/// Queries `q(x)` `(B, Dq)` of a batch: the CLS token of a frozen network without prompts, after the final norm.
pub struct Query<'a> {
    source: Source<'a>,
    requested: Cell<bool>,
}

enum Source<'a> {
    Known(Tensor),
    Lazy { backbone: &'a dyn Backbone, pixels: &'a Tensor, value: OnceCell<Tensor> },
}

impl<'a> Query<'a> {
    /// Creates the query of images `(B, 3, S, S)`, which `backbone` computes on the first call of [`Query::get`].
    pub fn of(backbone: &'a dyn Backbone, pixels: &'a Tensor) -> Self {
        let source = Source::Lazy { backbone, pixels, value: OnceCell::new() };
        Self { source, requested: Cell::default() }
    }

    /// Creates a query `(B, Dq)` that has been computed already.
    pub fn known(value: Tensor) -> Self {
        Self { source: Source::Known(value), requested: Cell::default() }
    }

    /// Returns whether the query has been requested.
    pub(crate) fn was_requested(&self) -> bool {
        self.requested.get()
    }

    /// Returns the query if it has been computed.
    pub(crate) fn computed(&self) -> Option<&Tensor> {
        match &self.source {
            Source::Known(value) => Some(value),
            Source::Lazy { value, .. } => value.get(),
        }
    }

    /// Returns the query `(B, Dq)` without gradient. The first call computes it.
    pub fn get(&self) -> Result<&Tensor> {
        self.requested.set(true);
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
