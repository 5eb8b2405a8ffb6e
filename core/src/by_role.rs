//! The same of both networks.

use serde::{Deserialize, Serialize};

use crate::Role;

/// Something of each network; `null` for one that is not trained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByRole<T> {
    /// The student's.
    pub student: Option<T>,
    /// The teacher's.
    pub teacher: Option<T>,
}

impl<T> Default for ByRole<T> {
    fn default() -> Self {
        Self { student: None, teacher: None }
    }
}

impl<T> ByRole<T> {
    /// That of one network.
    pub fn of(&self, role: Role) -> Option<&T> {
        match role {
            Role::Teacher => self.teacher.as_ref(),
            Role::Student => self.student.as_ref(),
        }
    }

    /// Sets that of one network.
    pub fn set(&mut self, role: Role, value: T) {
        match role {
            Role::Teacher => self.teacher = Some(value),
            Role::Student => self.student = Some(value),
        }
    }
}
