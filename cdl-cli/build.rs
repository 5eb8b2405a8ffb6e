//! Where the program that loads plugins finds what it shares with them: in the `lib` beside its `bin`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_DYNAMIC").is_some() {
        println!("cargo:rustc-link-arg-bin=cdl-dynamic=-Wl,-rpath,$ORIGIN/../lib");
    }
}
