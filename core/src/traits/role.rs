//! The two networks of a run, and pairs of values, one for each network.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Role of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The large network, which learns each task first.
    Teacher,
    /// The small network, which learns each task with the teacher's help.
    Student,
}

impl Role {
    /// Returns the lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Teacher => "teacher",
            Self::Student => "student",
        }
    }
}

/// Pair of values, one for each network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByRole<T> {
    /// Value of the student.
    pub student: T,
    /// Value of the teacher.
    pub teacher: T,
}

impl<T> ByRole<T> {
    /// Returns the value of one network.
    pub fn of(&self, role: Role) -> &T {
        match role {
            Role::Teacher => &self.teacher,
            Role::Student => &self.student,
        }
    }

    /// Returns the value of one network for modification.
    pub(crate) fn of_mut(&mut self, role: Role) -> &mut T {
        match role {
            Role::Teacher => &mut self.teacher,
            Role::Student => &mut self.student,
        }
    }
}
