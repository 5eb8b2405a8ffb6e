//! Sets the run-time search path: the shared libraries are in `lib`, beside the `bin` of the program.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-bins=-Wl,-rpath,$ORIGIN/../lib");
}
