//! Looking at images ahead of a run: at a few of a task, or at all of them.

use rayon::prelude::*;

use crate::traits::Inspection;
use crate::{
    data::{image_source::Source, image_stream::Member},
    error::Error,
    rng::Rng,
};

/// Decodes `most` of the images: the first, the last, and others drawn by a fixed seed. `seen` is told of each.
pub(super) fn inspect(
    source: &Source,
    members: &[Member],
    most: usize,
    seen: &(dyn Fn() + Sync),
) -> Inspection {
    let mut chosen: Vec<usize> = (0..members.len()).collect();
    if most < chosen.len() {
        // The last one first, so that of two images these two are taken.
        let last = members.len() - 1;
        chosen.swap(last.min(1), last);
        if let Some(others) = chosen.get_mut(2..) {
            Rng::new(0).derive("inspect").shuffle(others);
        }
        chosen.truncate(most);
        chosen.sort_unstable();
    }
    let look = |at: usize| {
        let found = source.decode(members[at].0).err();
        seen();
        found
    };
    let looked_at = chosen.len();
    let found: Vec<Option<Error>> = chosen.into_par_iter().map(look).collect();
    Inspection { looked_at, damaged: found.into_iter().flatten().collect() }
}
