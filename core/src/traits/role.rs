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

/// A value of each network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByRole<T> {
    /// The student's.
    pub student: T,
    /// The teacher's.
    pub teacher: T,
}

impl<T> ByRole<T> {
    /// Value of one network.
    pub fn of(&self, role: Role) -> &T {
        match role {
            Role::Teacher => &self.teacher,
            Role::Student => &self.student,
        }
    }

    /// Value of one network, to be changed.
    pub(crate) fn of_mut(&mut self, role: Role) -> &mut T {
        match role {
            Role::Teacher => &mut self.teacher,
            Role::Student => &mut self.student,
        }
    }
}
