//! `cdl-core` and everything below it as one shared library.
//!
//! A program that loads plugins and the plugins themselves must have one registry, one counter of tensor ids and one
//! thread pool between them: both link this library. Everything else links `cdl-core` statically, also the program `cdl` of
//! `cdl-cli`.

pub use cdl_core::*;
