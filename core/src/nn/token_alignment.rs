//! Alignment of the tokens of two networks, so that tokens at the same position in the image can be compared.

use candle_core::{Device, Tensor};

use crate::{
    error::{Error, Result},
    traits::BackboneSpec,
    vit::resample,
};

/// Alignment of the block outputs of student and teacher. Outputs of networks with the same number of patches and
/// register tokens stay unchanged. Otherwise register tokens are removed, and the teacher's map of patches is resampled
/// to the student's grid (bicubic, with averaging when it shrinks).
#[derive(Debug)]
pub struct TokenAlignment {
    student_patches: usize,
    teacher_patches: usize,
    /// Matrix `(student's patches, teacher's patches)`, or `None` if the grids are equal.
    resampling: Option<Tensor>,
}

impl TokenAlignment {
    /// Creates the alignment of two networks.
    ///
    /// # Errors
    /// Different numbers of patches, one of which is not a square number.
    pub fn new(student: &BackboneSpec, teacher: &BackboneSpec, device: &Device) -> Result<Self> {
        let (to, from) = (student.patches, teacher.patches);
        let mut alignment = Self { student_patches: to, teacher_patches: from, resampling: None };
        if to == from {
            return Ok(alignment);
        }
        for spec in [student, teacher] {
            if spec.patches.isqrt().pow(2) != spec.patches {
                return Err(Error::Config {
                    origin: spec.provenance.source.clone(),
                    reason: format!(
                        "its {} patches do not form a square, so they cannot be compared with those of another network",
                        spec.patches
                    ),
                });
            }
        }
        // Resampling is linear: applied to the identity matrix, it returns the matrix of the linear map.
        let identity = Tensor::eye(from, candle_core::DType::F32, &Device::Cpu)?.flatten_all()?.to_vec1()?;
        let matrix = resample(&identity, from.isqrt(), to.isqrt(), from);
        alignment.resampling = Some(Tensor::from_vec(matrix, (to, from), device)?);
        Ok(alignment)
    }

    /// Aligns the tokens of student `(B, Ns, Ds)` and teacher `(B, Nt, Dt)`. Returns `(B, N, Ds)` and `(B, N, Dt)`,
    /// with the CLS token first.
    pub fn apply(&self, student: &Tensor, teacher: &Tensor) -> Result<(Tensor, Tensor)> {
        if self.resampling.is_none() && student.dim(1)? == teacher.dim(1)? {
            return Ok((student.clone(), teacher.clone()));
        }
        let patches = |tokens: &Tensor, count: usize| tokens.narrow(1, tokens.dim(1)? - count, count);
        let mut map = patches(teacher, self.teacher_patches)?;
        if let Some(matrix) = &self.resampling {
            map = matrix.broadcast_matmul(&map.contiguous()?)?;
        }
        let with_cls = |tokens: &Tensor, map: &Tensor| Tensor::cat(&[&tokens.narrow(1, 0, 1)?, map], 1);
        Ok((with_cls(student, &patches(student, self.student_patches)?)?, with_cls(teacher, &map)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        rng::Rng,
        traits::{Normalization, Provenance},
    };

    fn spec(grid: usize) -> BackboneSpec {
        BackboneSpec {
            plugin: "test".into(),
            width: 3,
            depth: 1,
            heads: 1,
            heads_from: crate::traits::HeadsFrom::Stated,
            patch_size: 1,
            image_size: grid,
            patches: grid * grid,
            normalization: Normalization::NONE,
            provenance: Provenance::of_bytes("test", &[]),
        }
    }

    #[test]
    fn tokens_of_equal_grids_stay_unchanged() -> Result<()> {
        let alignment = TokenAlignment::new(&spec(4), &spec(4), &Device::Cpu)?;
        let tokens = Rng::new(1).normal(&[2, 17, 3], 1.0, &Device::Cpu)?;
        let (student, teacher) = alignment.apply(&tokens, &tokens)?;
        assert_eq!(student.to_vec3::<f32>()?, teacher.to_vec3::<f32>()?);
        assert_eq!(student.dims(), [2, 17, 3]);
        Ok(())
    }

    /// Patches of a map that increases linearly with row and column, for image coordinates in `[0, 1]²`.
    fn ramp(grid: usize) -> Vec<f32> {
        let at = |i: usize| (i as f32 + 0.5) / grid as f32;
        (0..grid * grid).map(|p| 10.0 * at(p / grid) + at(p % grid)).collect()
    }

    #[test]
    fn other_grids_are_resampled_without_registers() -> Result<()> {
        for (student, teacher, inner) in [(3, 6, 1), (8, 4, 3)] {
            let alignment = TokenAlignment::new(&spec(student), &spec(teacher), &Device::Cpu)?;
            let mut rng = Rng::new(2);
            let tokens = rng.normal(&[1, 1 + student * student, 3], 1.0, &Device::Cpu)?;
            // CLS, two registers, and the map.
            let head = rng.normal(&[1, 3, 1], 9.0, &Device::Cpu)?;
            let map = Tensor::from_vec(ramp(teacher), (1, teacher * teacher, 1), &Device::Cpu)?;
            let (same, resampled) = alignment.apply(&tokens, &Tensor::cat(&[&head, &map], 1)?)?;
            assert_eq!(same.to_vec3::<f32>()?, tokens.to_vec3::<f32>()?);
            let resampled = resampled.flatten_all()?.to_vec1::<f32>()?;
            assert_eq!(resampled[0], head.flatten_all()?.to_vec1::<f32>()?[0], "CLS stays");
            // The resampled ramp is linear except at the edges, where the kernel is cut off.
            for (patch, (ours, expected)) in resampled[1..].iter().zip(ramp(student)).enumerate() {
                let inside = |i: usize| (inner..student - inner).contains(&i);
                if inside(patch / student) && inside(patch % student) {
                    assert!((ours - expected).abs() < 1e-4, "patch {patch}: {ours} against {expected}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn maps_that_are_not_square_are_refused() {
        let oblong = BackboneSpec { patches: 12, ..spec(3) };
        let error = TokenAlignment::new(&spec(3), &oblong, &Device::Cpu).err().map(|e| e.to_string());
        assert!(error.unwrap_or_default().contains("12 patches do not form a square"));
    }
}
