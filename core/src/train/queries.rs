//! Queries of a batch for both networks.

use crate::traits::{Query, Role};

/// Queries of a batch for both networks. A shared query is computed once.
pub(crate) struct Queries<'a> {
    pub(super) student: Query<'a>,
    /// Query of the teacher, or `None` if it uses the student's.
    pub(super) teacher: Option<Query<'a>>,
}

impl<'a> Queries<'a> {
    /// Returns the query of one network.
    pub(crate) fn of(&self, role: Role) -> &Query<'a> {
        match (role, &self.teacher) {
            (Role::Teacher, Some(teacher)) => teacher,
            _ => &self.student,
        }
    }

    /// Returns the distinct queries, the student's first.
    pub(crate) fn each(&mut self) -> impl Iterator<Item = &mut Query<'a>> {
        std::iter::once(&mut self.student).chain(&mut self.teacher)
    }
}
