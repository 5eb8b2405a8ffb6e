//! The two networks of a run, and values that exist once for each.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which of the two networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The large network, which learns each task first.
    Teacher,
    /// The small network, which learns it with the teacher's help.
    Student,
}

impl Role {
    /// Lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Teacher => "teacher",
            Self::Student => "student",
        }
    }
}

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
    /// Value of one network.
    pub fn of(&self, role: Role) -> Option<&T> {
        match role {
            Role::Teacher => self.teacher.as_ref(),
            Role::Student => self.student.as_ref(),
        }
    }

    /// Sets that of one network.
    pub(crate) fn set(&mut self, role: Role, value: T) {
        match role {
            Role::Teacher => self.teacher = Some(value),
            Role::Student => self.student = Some(value),
        }
    }
}
