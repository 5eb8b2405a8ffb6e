//! Rehearsal of images of earlier tasks.

use crate::{data::image_stream::Member, rng::Rng, traits::Task};

/// Images of earlier tasks that later tasks rehearse.
pub(super) struct RehearsalMemory {
    /// Total number of images.
    pub(super) size: usize,
    /// Images of each class in stream order, sorted by priority.
    classes: Vec<Vec<Member>>,
}

impl RehearsalMemory {
    /// Draws the order of priority of the training images `train` of all tasks.
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

    /// Returns the images to rehearse in `task`: the same number of every earlier class. The first classes get the
    /// remainder.
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
    fn memory_is_divided_evenly_among_earlier_classes() {
        let train = [
            vec![(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1)],
            vec![(6, 2), (7, 2), (8, 2)],
            vec![(9, 3)],
        ];
        let memory = RehearsalMemory::new(5, &train, 4, &Rng::new(1));
        let kept = |start: usize| -> (Vec<usize>, Vec<u32>) {
            memory.before(&Task { index: 0, count: 3, classes: start..start + 1 }).unzip()
        };
        assert!(kept(0).0.is_empty());
        let ((early, early_labels), (late, late_labels)) = (kept(2), kept(3));
        assert_eq!(early_labels, [0, 0, 0, 1, 1]);
        assert_eq!(late_labels, [0, 0, 1, 1, 2]);
        assert!(
            late[..4].iter().all(|image| early.contains(image)),
            "images of a class are only removed: {early:?}, {late:?}"
        );
    }
}
