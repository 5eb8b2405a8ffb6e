//! `cdl-core` and everything below it as one shared library.
//!
//! A program that loads plugins and the plugins themselves must have one registry, one counter of tensor ids and one
//! thread pool between them. They have, when both take `cdl-core` from here. The package stands outside the workspace:
//! built together with programs that link `cdl-core` statically, it would clash with them.

pub use cdl_core::*;
