//! Rehearsal: images of earlier tasks that are seen again.

use crate::{data::image_stream::Member, rng::Rng, traits::Task};

/// Images of earlier tasks that are seen again.
pub(super) struct Memory {
    /// How many in all.
    pub(super) size: usize,
    /// By class in stream order: its images (number and label) in the order in which they are kept.
    classes: Vec<Vec<Member>>,
}

impl Memory {
    /// Chooses from the training images of all tasks, `train`.
    pub(super) fn new(size: usize, train: &[Vec<Member>], classes: usize, rng: &Rng) -> Self {
        let mut by_class = vec![Vec::new(); classes];
        if size > 0 {
            for &(image, label) in train.iter().flatten() {
                by_class[label as usize].push((image, label));
            }
            for (class, images) in by_class.iter_mut().enumerate() {
                rng.derive(&format!("class {class}")).shuffle(images);
            }
        }
        Self { size, classes: by_class }
    }

    /// What is rehearsed in `task`: the same share of every class before it, the first ones taking what is left over.
    pub(super) fn before(&self, task: &Task) -> impl Iterator<Item = Member> {
        let past = task.classes.start;
        let share = move |class: usize| match past {
            0 => 0,
            _ => self.size / past + usize::from(class < self.size % past),
        };
        self.classes[..past]
            .iter()
            .enumerate()
            .flat_map(move |(class, images)| images.iter().take(share(class)).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shared_out_evenly_over_the_classes_before() {
        let train = [
            vec![(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1)],
            vec![(6, 2), (7, 2), (8, 2)],
            vec![(9, 3)],
        ];
        let memory = Memory::new(5, &train, 4, &Rng::new(1));
        let kept = |start: usize| -> (Vec<usize>, Vec<u32>) {
            memory.before(&Task { index: 0, count: 3, classes: start..start + 1 }).unzip()
        };
        assert!(kept(0).0.is_empty());
        let ((early, early_labels), (late, late_labels)) = (kept(2), kept(3));
        assert_eq!(early_labels, [0, 0, 0, 1, 1]);
        assert_eq!(late_labels, [0, 0, 1, 1, 2]);
        assert!(
            late[..4].iter().all(|image| early.contains(image)),
            "memory only shrinks: {early:?}, {late:?}"
        );
    }
}
