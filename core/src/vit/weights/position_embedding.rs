//! Position embeddings for another image size, resampled as in timm: bicubic with antialiasing (kernel a = -1/2), as in
//! PyTorch and Pillow.

use crate::transform::Interpolation;

/// Resamples `from`×`from` vectors of `width` numbers to `to`×`to`, both axes, in float64.
pub fn resample(values: &[f32], from: usize, to: usize, width: usize) -> Vec<f32> {
    let weights = axis_weights(from, to);
    // Columns first: (from, to, width).
    let mut columns = vec![0f64; from * to * width];
    for row in 0..from {
        for (target, taps) in weights.iter().enumerate() {
            let out = &mut columns[(row * to + target) * width..][..width];
            for &(source, weight) in taps {
                let input = &values[(row * from + source) * width..][..width];
                out.iter_mut().zip(input).for_each(|(o, &v)| *o += weight * v as f64);
            }
        }
    }
    let mut rows = vec![0f64; to * to * width];
    for (target, taps) in weights.iter().enumerate() {
        for &(source, weight) in taps {
            let out = &mut rows[target * to * width..][..to * width];
            let input = &columns[source * to * width..][..to * width];
            out.iter_mut().zip(input).for_each(|(o, &v)| *o += weight * v);
        }
    }
    rows.into_iter().map(|v| v as f32).collect()
}

/// Returns, for each target position, the source positions and their weights, which sum to 1. For a smaller target the
/// kernel is stretched by the ratio, so that it averages.
fn axis_weights(from: usize, to: usize) -> Vec<Vec<(usize, f64)>> {
    let ratio = from as f64 / to as f64;
    let stretch = ratio.max(1.0);
    let support = 2.0 * stretch;
    (0..to)
        .map(|target| {
            let centre = (target as f64 + 0.5) * ratio;
            let first = (centre - support + 0.5).floor().max(0.0) as usize;
            let end = ((centre + support + 0.5).floor() as usize).min(from);
            let weight = |s: usize| Interpolation::Bicubic.weight((s as f64 + 0.5 - centre) / stretch);
            let taps: Vec<_> = (first..end).map(|s| (s, weight(s))).collect();
            let total: f64 = taps.iter().map(|(_, weight)| weight).sum();
            taps.into_iter().map(|(s, weight)| (s, weight / total)).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_size_is_the_identity_and_constants_are_preserved() {
        let values: Vec<f32> = (0..25).map(|v| (v * v % 7) as f32).collect();
        for (a, b) in resample(&values, 5, 5, 1).iter().zip(&values) {
            assert!((a - b).abs() < 1e-6);
        }
        for size in [1, 2, 3, 8, 13] {
            for v in resample(&[2.5; 2 * 49], 7, size, 2) {
                assert!((v - 2.5).abs() < 1e-6);
            }
        }
    }
}
