//! Usage of the prompts of pools by test images.

use candle_core::DType;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    traits::{PromptUsage, Selection},
};

/// Maximum number of prompts in a pool.
const MAX_PROMPTS: usize = 1 << 20;

/// Usage of one pool of prompts by test images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolUsage {
    /// Name of the pool.
    pub pool: String,
    /// Number of images of each task.
    pub images: Vec<u64>,
    /// Usage of the prompts by these images.
    #[serde(flatten)]
    pub table: PromptUsageTable,
}

/// Usage of prompts: a row for each task of the images, a column for each prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptUsageTable {
    /// Number of images that selected the prompt.
    Counts(Vec<Vec<u64>>),
    /// Mean weight of the prompt over the images.
    MeanWeights(Vec<Vec<f64>>),
}

/// Sums over the images of a test, for all pools.
#[derive(Debug, Default)]
pub(crate) struct PromptUseSums {
    pools: Vec<Pool>,
}

#[derive(Debug)]
struct Pool {
    name: String,
    weighted: bool,
    size: usize,
    /// Number of images of each task, and the sum of each prompt's usage over these images.
    tasks: Vec<(u64, Vec<f64>)>,
}

impl PromptUseSums {
    /// Adds the selections of `images` images of `task`.
    pub(crate) fn add(&mut self, task: usize, images: usize, selections: &[Selection]) -> Result<()> {
        for (index, selection) in selections.iter().enumerate() {
            let promise = |kept: bool, promise: &str| check_promise(selection, kept, promise.into());
            let alone = selections[..index].iter().all(|other| other.pool != selection.pool);
            promise(alone, "names of pools are unique")?;
            let rows = rows_of(selection, images)?;
            let Some(size) = rows.first().map(Vec::len) else { continue };
            let weighted = matches!(selection.usage, PromptUsage::Weighted(_));
            let known = self.pools.iter().position(|pool| pool.name == selection.pool);
            let at = known.unwrap_or(self.pools.len());
            if known.is_none() {
                self.pools.push(Pool { name: selection.pool.clone(), weighted, size, tasks: Vec::new() });
            }
            let pool = &mut self.pools[at];
            promise(
                (pool.weighted, pool.size) == (weighted, size),
                "the number of prompts and the kind of selection stay the same throughout a test",
            )?;
            if pool.tasks.len() <= task {
                pool.tasks.resize_with(task + 1, || (0, vec![0.0; size]));
            }
            let (count, sums) = &mut pool.tasks[task];
            *count += images as u64;
            for row in rows {
                sums.iter_mut().zip(row).for_each(|(sum, usage)| *sum += usage);
            }
        }
        Ok(())
    }

    /// Returns the usage of each pool.
    pub(crate) fn finish(self) -> Vec<PoolUsage> {
        let usage = |Pool { name, weighted, tasks, .. }: Pool| {
            let images = tasks.iter().map(|(images, _)| *images).collect();
            let row = |(images, sums): &(u64, Vec<f64>)| -> Vec<f64> {
                sums.iter().map(|sum| sum / (*images).max(1) as f64).collect()
            };
            let table = match weighted {
                true => PromptUsageTable::MeanWeights(tasks.iter().map(row).collect()),
                false => {
                    let counts = |(_, sums): &(u64, Vec<f64>)| sums.iter().map(|sum| *sum as u64).collect();
                    PromptUsageTable::Counts(tasks.iter().map(counts).collect())
                }
            };
            PoolUsage { pool: name, images, table }
        };
        self.pools.into_iter().map(usage).collect()
    }
}

/// Returns the usage of each prompt by each of `images` images, one row per image: 1 or 0, or the weights.
fn rows_of(selection: &Selection, images: usize) -> Result<Vec<Vec<f64>>> {
    let promise = |kept: bool, promise: String| check_promise(selection, kept, promise);
    let (PromptUsage::Chosen { numbers: tensor, .. } | PromptUsage::Weighted(tensor)) = &selection.usage;
    let (dims, rows) = (tensor.dims(), tensor.dims().first().copied().unwrap_or(0));
    promise(
        dims.len() == 2 && (rows == images || rows == 1),
        format!("a selection has a row for each of {images} images, or one row; its shape is {dims:?}"),
    )?;
    promise(!tensor.track_op(), "a selection is detached from the graph (`detach`)".into())?;
    let mut found = Vec::with_capacity(images);
    match &selection.usage {
        PromptUsage::Chosen { numbers, of } => {
            let dtype = numbers.dtype();
            promise(*of <= MAX_PROMPTS, format!("a pool has at most {MAX_PROMPTS} prompts, not {of}"))?;
            promise(dtype == DType::U32, format!("indices of prompts have dtype U32, not {dtype:?}"))?;
            for chosen in numbers.to_vec2::<u32>()? {
                let mut row = vec![0.0; *of];
                for number in chosen {
                    let broken = match row.get_mut(number as usize) {
                        Some(usage) if *usage == 0.0 => {
                            *usage = 1.0;
                            continue;
                        }
                        Some(_) => format!("an image selects prompt {number} at most once"),
                        None => format!("indices of prompts are less than {of}, not {number}"),
                    };
                    promise(false, broken)?;
                }
                found.push(row);
            }
        }
        PromptUsage::Weighted(weights) => {
            found = weights.to_dtype(DType::F64)?.to_vec2::<f64>()?;
            if let Some(weight) = found.iter().flatten().find(|weight| !weight.is_finite()) {
                let columns = dims[1];
                let finite = format!("the weights of {columns} prompts are finite, not {weight}");
                promise(false, finite)?;
            }
        }
    }
    if rows < images {
        found = found.first().map(|row| vec![row.clone(); images]).unwrap_or_default();
    }
    Ok(found)
}

/// Returns the error of a selection that violates its contract, unless `kept`.
fn check_promise(selection: &Selection, kept: bool, promise: String) -> Result<()> {
    let plugin = format!("the selection of pool `{}`", selection.pool);
    if kept { Ok(()) } else { Err(Error::ContractViolation { plugin, promise }) }
}

impl PoolUsage {
    /// Returns the share of images that selected each prompt, or the mean weight of the prompt: a row for each task of
    /// the images, a column for each prompt.
    pub fn rows(&self) -> Vec<Vec<f64>> {
        match &self.table {
            PromptUsageTable::MeanWeights(rows) => rows.clone(),
            PromptUsageTable::Counts(rows) => {
                let share = |(row, images): (&Vec<u64>, &u64)| -> Vec<f64> {
                    row.iter().map(|count| *count as f64 / (*images).max(1) as f64).collect()
                };
                rows.iter().zip(&self.images).map(share).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    fn chosen(numbers: &[[u32; 2]]) -> Result<Selection> {
        Ok(Selection::chosen(
            "keys",
            &Tensor::from_vec(numbers.concat(), (numbers.len(), 2), &Device::Cpu)?,
            4,
        ))
    }

    #[test]
    fn selections_are_counted_by_task_and_prompt() -> Result<()> {
        let weights = |rows: &[[f32; 3]]| -> Result<Selection> {
            Ok(Selection::weighted("other", &Tensor::from_vec(rows.concat(), (rows.len(), 3), &Device::Cpu)?))
        };
        let mut sums = PromptUseSums::default();
        sums.add(0, 2, &[chosen(&[[0, 1], [1, 3]])?, weights(&[[0.5, 0.0, -1.0], [0.25, 0.5, 0.0]])?])?;
        // One row for three images.
        sums.add(2, 3, &[chosen(&[[3, 2]])?, weights(&[[1.0, 0.0, 0.5]])?])?;
        sums.add(2, 1, &[chosen(&[[0, 2]])?, weights(&[[0.0, 0.0, 0.5]])?])?;
        let found = sums.finish();
        let counts = vec![vec![1, 2, 0, 1], vec![0; 4], vec![1, 0, 4, 3]];
        let keys =
            PoolUsage { pool: "keys".into(), images: vec![2, 0, 4], table: PromptUsageTable::Counts(counts) };
        let means = vec![vec![0.375, 0.25, -0.5], vec![0.0; 3], vec![0.75, 0.0, 0.5]];
        let other = PoolUsage {
            pool: "other".into(),
            images: vec![2, 0, 4],
            table: PromptUsageTable::MeanWeights(means),
        };
        assert_eq!(keys.rows()[2], [0.25, 0.0, 1.0, 0.75]);
        assert_eq!(found, [keys, other]);
        let json = serde_json::to_string(&found).map_err(|e| Error::Tasks(e.to_string()))?;
        assert!(json.contains(r#""images":[2,0,4],"counts":[[1,2,0,1],"#), "{json}");
        assert_eq!(serde_json::from_str::<Vec<PoolUsage>>(&json).ok(), Some(found));
        Ok(())
    }

    #[test]
    fn invalid_selections_are_refused() -> Result<()> {
        let weights = Tensor::new(&[[1f32, 0.5]], &Device::Cpu)?;
        let found = PromptUseSums::default().add(0, 3, &[Selection::chosen("w", &weights, 2)]);
        assert!(found.is_err_and(|e| e.to_string().contains("have dtype U32, not F32")));
        let mut sums = PromptUseSums::default();
        sums.add(0, 1, &[chosen(&[[0, 1]])?])?;
        let numbers = Tensor::new(&[[0u32]], &Device::Cpu)?;
        assert!(sums.add(0, 1, &[Selection::chosen("keys", &numbers, 5)]).is_err());
        Ok(())
    }
}
