//! Tokens of two networks at the same places of the image, so that they can be compared one by one.

use candle_core::{Device, Tensor};

use crate::{BackboneSpec, Result, vit::resample};

/// Brings block outputs of student and teacher to the same tokens. Networks that cut the image alike (and have as many
/// register tokens) are compared as they are. Otherwise register tokens are left out, and the teacher's map of patches
/// is resampled to the student's grid (bicubic, averaging where it shrinks).
#[derive(Debug)]
pub struct TokenAlignment {
    student_patches: usize,
    teacher_patches: usize,
    /// `(student's patches, teacher's patches)`; `None` if the grids are equal.
    resampling: Option<Tensor>,
}

impl TokenAlignment {
    /// For tokens of these two networks.
    pub fn new(student: &BackboneSpec, teacher: &BackboneSpec, device: &Device) -> Result<Self> {
        let (to, from) = (student.patches, teacher.patches);
        let resampling = match to == from {
            true => None,
            false => {
                // What becomes of every single patch is one column of the matrix.
                let unit =
                    Tensor::eye(from, candle_core::DType::F32, &Device::Cpu)?.flatten_all()?.to_vec1()?;
                let matrix = resample(&unit, from.isqrt(), to.isqrt(), from);
                Some(Tensor::from_vec(matrix, (to, from), device)?)
            }
        };
        Ok(Self { student_patches: to, teacher_patches: from, resampling })
    }

    /// Tokens `(B, Ns, Ds)` and `(B, Nt, Dt)` to `(B, N, Ds)` and `(B, N, Dt)`; the CLS token comes first.
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
    use crate::{Normalization, Rng, hub::Provenance};

    fn spec(grid: usize) -> BackboneSpec {
        BackboneSpec {
            plugin: "test".into(),
            width: 3,
            depth: 1,
            heads: 1,
            patch_size: 1,
            image_size: grid,
            patches: grid * grid,
            normalization: Normalization::NONE,
            provenance: Provenance::of_bytes("test", &[]),
        }
    }

    #[test]
    fn equal_grids_stay_as_they_are() -> Result<()> {
        let alignment = TokenAlignment::new(&spec(4), &spec(4), &Device::Cpu)?;
        let tokens = Rng::new(1).normal(&[2, 17, 3], 1.0, &Device::Cpu)?;
        let (student, teacher) = alignment.apply(&tokens, &tokens)?;
        assert_eq!(student.to_vec3::<f32>()?, teacher.to_vec3::<f32>()?);
        assert_eq!(student.dims(), [2, 17, 3]);
        Ok(())
    }

    #[test]
    fn other_grids_are_resampled_and_registers_left_out() -> Result<()> {
        let alignment = TokenAlignment::new(&spec(2), &spec(4), &Device::Cpu)?;
        let mut rng = Rng::new(2);
        let student = rng.normal(&[2, 5, 3], 1.0, &Device::Cpu)?;
        // CLS, two registers, and sixteen patches that are all alike.
        let (cls, registers) =
            (rng.normal(&[2, 1, 3], 1.0, &Device::Cpu)?, rng.normal(&[2, 2, 3], 9.0, &Device::Cpu)?);
        let patch = rng.normal(&[2, 1, 3], 1.0, &Device::Cpu)?;
        let teacher = Tensor::cat(&[&cls, &registers, &patch.broadcast_as((2, 16, 3))?.contiguous()?], 1)?;
        let (same, resampled) = alignment.apply(&student, &teacher)?;
        assert_eq!(same.to_vec3::<f32>()?, student.to_vec3::<f32>()?);
        let expected = Tensor::cat(&[&cls, &patch.broadcast_as((2, 4, 3))?.contiguous()?], 1)?;
        let apart = (resampled - expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(apart < 1e-5, "{apart}");
        Ok(())
    }
}
