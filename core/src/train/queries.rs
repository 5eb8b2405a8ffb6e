//! Queries of one batch.

use crate::traits::{Query, Role};

/// Queries of one batch for both networks; networks that share one compute it once.
pub(crate) struct Queries<'a> {
    pub(super) student: Query<'a>,
    /// The teacher's own query; `None` where it uses the student's.
    pub(super) teacher: Option<Query<'a>>,
}

impl<'a> Queries<'a> {
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
