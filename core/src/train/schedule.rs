//! Learning rate schedules.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    registry::ranges,
    traits::Mode,
};

/// Shape of the schedule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleName {
    /// `lr cos(99π e / (200 (K-1)))` over the K epochs e = 0, 1, ... of a task, down to about 1.6 % of `lr`.
    #[default]
    Cosine,
    /// `lr`, multiplied by `gamma` at each of `milestones`.
    Step,
    /// `lr` in all epochs.
    Constant,
}

/// Learning rate of each epoch of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ScheduleConfig {
    /// Shape of the schedule.
    pub name: ScheduleName,
    /// Whether the first two epochs of a cosine schedule have the same rate, as in the published code. Default: true in
    /// mode `published`, false in mode `corrected`.
    pub repeat_first_rate: Option<bool>,
    /// Epochs (from 0) at which a step schedule lowers the rate.
    pub milestones: Vec<usize>,
    /// Factor by which a step schedule multiplies the rate at each milestone.
    pub gamma: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { name: ScheduleName::Cosine, repeat_first_rate: None, milestones: Vec::new(), gamma: 0.1 }
    }
}

impl ScheduleConfig {
    /// Checks the ranges of all values.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.name == ScheduleName::Step && self.milestones.is_empty() {
            return Err(Error::setting(
                "milestones",
                "[]",
                "expected at least one epoch for a step schedule",
            ));
        }
        ranges::positive("gamma", self.gamma)
    }

    /// Returns whether the first two epochs have the same rate, which only a cosine schedule supports.
    pub(crate) fn repeats_first_rate(&self, mode: Mode) -> bool {
        self.name == ScheduleName::Cosine && self.repeat_first_rate.unwrap_or(mode == Mode::Published)
    }

    /// Returns the learning rate of epoch `epoch` (from 0) of `epochs`. `lr` is the rate at the start of a task.
    pub fn rate(&self, lr: f64, epoch: usize, epochs: usize, mode: Mode) -> f64 {
        match self.name {
            ScheduleName::Constant => lr,
            ScheduleName::Step => {
                let passed = self.milestones.iter().filter(|&&milestone| epoch >= milestone).count();
                lr * self.gamma.powi(passed as i32)
            }
            ScheduleName::Cosine if epochs <= 1 => lr,
            ScheduleName::Cosine => {
                let at = if self.repeats_first_rate(mode) { epoch.saturating_sub(1) } else { epoch };
                lr * (99.0 * std::f64::consts::PI * at as f64 / (200.0 * (epochs - 1) as f64)).cos()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_rates_match_with_and_without_the_repeated_rate() {
        let schedule = ScheduleConfig::default();
        let rates: Vec<f64> = (0..3).map(|e| schedule.rate(0.005, e, 3, Mode::Published)).collect();
        assert_eq!(rates[..2], [0.005, 0.005]);
        assert!((rates[2] - 0.003563192594626027).abs() < 1e-15);
        assert!((schedule.rate(1.0, 2, 3, Mode::Corrected) - 0.015_707_317).abs() < 1e-8);
        assert_eq!(schedule.rate(1.0, 0, 1, Mode::Published), 1.0);
    }

    #[test]
    fn step_schedule_lowers_the_rate_at_milestones() {
        let schedule =
            ScheduleConfig { name: ScheduleName::Step, milestones: vec![2, 4], ..Default::default() };
        let rates: Vec<f64> = (0..6).map(|e| schedule.rate(1.0, e, 6, Mode::Published)).collect();
        for (rate, expected) in rates.iter().zip([1.0, 1.0, 0.1, 0.1, 0.01, 0.01]) {
            assert!((rate - expected).abs() < 1e-12);
        }
    }
}
