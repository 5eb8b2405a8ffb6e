//! `cdl-core` and everything below it as one shared library.
//!
//! A program that loads plugins and the plugins themselves must have one registry, one counter of tensor ids and one
//! thread pool between them. They have, when both take `cdl-core` from here. All else links `cdl-core` statically, the program
//! `cdl` of `cdl-cli` too.

pub use cdl_core::*;
