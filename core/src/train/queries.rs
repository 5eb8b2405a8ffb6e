//! Queries of one batch.

use candle_core::Tensor;

use crate::traits::{Backbone, Query, Role};

/// Queries of one batch for both networks; networks that share one compute it once.
pub(crate) struct Queries<'a> {
    student: Query<'a>,
    /// The teacher's own query; `None` where it uses the student's.
    teacher: Option<Query<'a>>,
}

impl<'a> Queries<'a> {
    /// Queries of `pixels` `(B, 3, S, S)`, made by the student's frozen network and, where the teacher has a query of its
    /// own, by the teacher's.
    pub(crate) fn new(
        student: &'a dyn Backbone,
        teacher: Option<&'a dyn Backbone>,
        pixels: &'a Tensor,
    ) -> Self {
        Self {
            student: Query::of(student, pixels),
            teacher: teacher.map(|teacher| Query::of(teacher, pixels)),
        }
    }

    /// The query of one network.
    pub(crate) fn of(&self, role: Role) -> &Query<'a> {
        match (role, &self.teacher) {
            (Role::Teacher, Some(teacher)) => teacher,
            _ => &self.student,
        }
    }

    /// The distinct queries, the student's first.
    pub(crate) fn each(&mut self) -> impl Iterator<Item = &mut Query<'a>> {
        std::iter::once(&mut self.student).chain(&mut self.teacher)
    }
}
