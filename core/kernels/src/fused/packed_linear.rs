//! Frozen linear layers, packed for the product kernel.

use candle_core::{Device, Result, Tensor};

use super::{
    count, panel,
    tile::{LINE, Left, Order, PANEL, Right, STRIP, SimdLevel, prefetch_all, product},
};
use crate::layers::Linear;

/// Padding in floats between strips, so that strips do not map to the same cache sets.
const GAP: usize = 16;

/// Packed layer `y = W x + b` with frozen `W` `(O, I)`. `O`, and `I` for the backward pass, are multiples of eight.
///
/// Weights are stored in strips of eight outputs: for every input, the eight weights are contiguous. The layout suits
/// both `W x`, which reads strips from front to back, and `Wᵀ dy`, so no second copy is needed.
#[derive(Debug)]
pub struct PackedLinear {
    data: Vec<f32>,
    bias: Vec<f32>,
    /// Number of outputs `O`.
    pub outputs: usize,
    inputs: usize,
    /// Distance between strips in floats.
    stride: usize,
}

/// Initial values of a product.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// Bias of the layer.
    Bias,
    /// Sum of the bias and these panels, which have as many rows as the product.
    BiasAnd(&'a [f32]),
}

impl PackedLinear {
    /// Packs a layer.
    pub fn new(Linear { weight, bias }: &Linear) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        let rows = weight.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        let stride = inputs * STRIP + GAP;
        let mut data = vec![0.0; outputs / STRIP * stride];
        for (output, row) in rows.chunks_exact(inputs).enumerate() {
            for (input, weight) in row.iter().enumerate() {
                data[output / STRIP * stride + input * STRIP + output % STRIP] = *weight;
            }
        }
        Ok(Self { data, bias: bias.to_vec1()?, outputs, inputs, stride })
    }

    /// Returns the layer in its original layout.
    pub fn unpack(&self) -> Result<Linear> {
        let mut rows = vec![0.0; self.outputs * self.inputs];
        for (output, row) in rows.chunks_exact_mut(self.inputs).enumerate() {
            for (input, weight) in row.iter_mut().enumerate() {
                *weight = self.data[output / STRIP * self.stride + input * STRIP + output % STRIP];
            }
        }
        let weight = Tensor::from_vec(rows, (self.outputs, self.inputs), &Device::Cpu)?;
        Ok(Linear { weight, bias: Tensor::new(self.bias.as_slice(), &Device::Cpu)? })
    }

    /// Computes rows `outputs` (its bounds are multiples of eight) of `W x + b` for `tokens` tokens in panels `x` of
    /// `I` rows, into panels `y` of `outputs.len()` rows. Calls `then(panel, row, rows)` for every eight finished rows,
    /// while they are in the cache; `row` is the index of the first.
    #[allow(clippy::too_many_arguments, reason = "a product names both operands and the result")]
    pub fn forward(
        &self,
        level: SimdLevel,
        outputs: std::ops::Range<usize>,
        x: &[f32],
        tokens: usize,
        start: Start<'_>,
        y: &mut [f32],
        mut then: impl FnMut(usize, usize, &mut [f32]),
    ) {
        let rows = outputs.len();
        count::add(rows * tokens * self.inputs);
        let panels = panel::panels(tokens);
        let step = depth_step(level, Order::Columns);
        for depth in (0..self.inputs).step_by(step) {
            let depths = step.min(self.inputs - depth);
            for row in (0..rows).step_by(STRIP) {
                let output = outputs.start + row;
                let data = &self.data[output / STRIP * self.stride + depth * STRIP..];
                let next =
                    if level.prefetches() { None } else { data.get(self.stride..) }.unwrap_or_default();
                let next = &next[..next.len().min(depths * STRIP)];
                let left = Left { data, order: Order::Columns, stride: STRIP };
                for panel in 0..panels {
                    prefetch_all(part_of(next, panel, panels));
                    let at = (panel * rows + row) * PANEL;
                    prefetch_tile(y, at + rows * PANEL);
                    let result = &mut y[at..][..STRIP * PANEL];
                    if depth == 0 {
                        for (i, result) in result.chunks_exact_mut(PANEL).enumerate() {
                            result.fill(self.bias[output + i]);
                        }
                        if let Start::BiasAnd(more) = start {
                            result.iter_mut().zip(&more[at..]).for_each(|(y, x)| *y += x);
                        }
                    }
                    let right = Right { data: &x[(panel * self.inputs + depth) * PANEL..], stride: PANEL };
                    let size = (STRIP, panel::columns(panel, tokens), depths);
                    product(level, size, left, right, result, PANEL, true);
                    if depth + depths == self.inputs {
                        then(panel, row, result);
                    }
                }
            }
        }
    }

    /// Computes `Wᵀ dy` with rows `outputs` of `W`, for panels `dy` of `outputs.len()` rows, into panels `dx` of `I`
    /// rows. Calls `then` as [`Self::forward`] does.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        level: SimdLevel,
        outputs: std::ops::Range<usize>,
        dy: &[f32],
        tokens: usize,
        dx: &mut [f32],
        mut then: impl FnMut(usize, usize, &mut [f32]),
    ) {
        let rows = outputs.len();
        count::add(rows * tokens * self.inputs);
        let panels = panel::panels(tokens);
        let step = depth_step(level, Order::Strips);
        for depth in (0..rows).step_by(step) {
            let depths = step.min(rows - depth);
            for row in (0..self.inputs).step_by(STRIP) {
                let data = &self.data[(outputs.start + depth) / STRIP * self.stride + row * STRIP..];
                let left = Left { data, order: Order::Strips, stride: self.stride };
                for panel in 0..panels {
                    let strips = if level.prefetches() { 0 } else { depths / STRIP };
                    for strip in 0..strips {
                        let next = &data[strip * self.stride + STRIP * STRIP..];
                        prefetch_all(part_of(&next[..next.len().min(STRIP * STRIP)], panel, panels));
                    }
                    let at = (panel * self.inputs + row) * PANEL;
                    prefetch_tile(dx, at + self.inputs * PANEL);
                    let result = &mut dx[at..][..STRIP * PANEL];
                    let right = Right { data: &dy[(panel * rows + depth) * PANEL..], stride: PANEL };
                    let size = (STRIP, panel::columns(panel, tokens), depths);
                    product(level, size, left, right, result, PANEL, depth > 0);
                    if depth + depths == rows {
                        then(panel, row, result);
                    }
                }
            }
        }
    }
}

/// Returns the depth to compute at once (measured). The panels' rows of this depth then stay in the cache.
fn depth_step(level: SimdLevel, order: Order) -> usize {
    match (level, order) {
        (SimdLevel::Avx512, Order::Columns) => 768,
        _ => 128,
    }
}

/// Returns part `number` of `parts` parts of `floats`, in units of cache lines. Each panel prefetches one part of the
/// next strip.
fn part_of(floats: &[f32], number: usize, parts: usize) -> &[f32] {
    let border = |number: usize| (number * floats.len().div_ceil(LINE) / parts * LINE).min(floats.len());
    &floats[border(number)..border(number + 1)]
}

/// Prefetches the result of the next panel's product, from `at` on: the product first loads it, and it is in no cache.
fn prefetch_tile(panels: &[f32], at: usize) {
    if let Some(next) = panels.get(at..) {
        prefetch_all(&next[..next.len().min(STRIP * PANEL)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_concatenate_to_the_whole() {
        for (len, parts) in [(0, 3), (16, 9), (64, 9), (1024, 9), (1030, 7), (5, 1)] {
            let floats: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let joined: Vec<f32> =
                (0..parts).flat_map(|part| part_of(&floats, part, parts).to_vec()).collect();
            assert_eq!(joined, floats, "{parts} parts");
        }
    }
}
