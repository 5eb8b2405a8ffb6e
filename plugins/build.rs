//! Methods are found by their files; a new one makes the crate build anew.

fn main() {
    for folder in ["backbones", "learners", "distillers", "streams"] {
        println!("cargo::rerun-if-changed=src/{folder}");
    }
}
