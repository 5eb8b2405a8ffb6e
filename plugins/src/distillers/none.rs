//! No distillation: the student learns from labels only. Baseline that measures the benefit of a teacher.

use cdl_core::prelude::*;

/// Settings of `none`, which has none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NoneConfig {}

cdl_core::register!(Distiller {
    name: "none",
    about: "No distillation: the student learns from labels only",
    citation: "baseline",
    config: NoneConfig,
    build: |config: NoneConfig, _context: &DistillerContext<'_>| Ok(Box::new(config) as Box<dyn Distiller>),
});

impl Distiller for NoneConfig {
    fn needs_teacher(&self) -> bool {
        false
    }

    fn loss(
        &self,
        _student: &Output,
        _teacher: Option<&Output>,
        _labels: &Tensor,
        _task: &Task,
    ) -> Result<Vec<LossTerm>> {
        Ok(Vec::new())
    }
}
