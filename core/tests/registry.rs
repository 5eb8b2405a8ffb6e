//! Test of two plugins with the same name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use cdl_core::{
    error::Error,
    registry::{self, Kind},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
struct Empty {}

mod first {
    cdl_core::register!(Distiller {
        name: "twice",
        about: "",
        citation: "",
        config: super::Empty,
        build: |_c: super::Empty, _x: &cdl_core::traits::DistillerContext<'_>| Err(
            cdl_core::error::Error::Tasks("never built".into())
        ),
    });
}

mod second {
    cdl_core::register!(Distiller {
        name: "twice",
        about: "",
        citation: "",
        config: super::Empty,
        build: |_c: super::Empty, _x: &cdl_core::traits::DistillerContext<'_>| Err(
            cdl_core::error::Error::Tasks("never built".into())
        ),
    });
}

#[test]
fn a_duplicate_name_is_an_error_with_both_origins() {
    let error = registry::entries(Kind::Distiller).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("`twice`") && error.contains("first") && error.contains("second"), "{error}");
    assert!(matches!(registry::find(Kind::Distiller, "twice"), Err(Error::DuplicateName { .. })));
    assert!(registry::entries(Kind::Learner).is_ok_and(|learners| learners.is_empty()));
}
