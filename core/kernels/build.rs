//! Compiles the CUDA sources in `cuda/` to PTX if the feature `cuda` is enabled.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=cuda");
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        let variable = |name: &str| PathBuf::from(env::var_os(name).unwrap_or_default());
        compile_kernels(&variable("CARGO_MANIFEST_DIR").join("cuda"), &variable("OUT_DIR"))?;
    }
    Ok(())
}

/// Compiles each CUDA source in `folder` to PTX, which the driver compiles for its GPU.
fn compile_kernels(folder: &Path, out: &Path) -> io::Result<()> {
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_COMPUTE_CAP"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let installed = homes.chain([PathBuf::from("/usr/local/cuda")]).map(|home| home.join("bin/nvcc"));
    let nvcc = env::var_os("NVCC").map(PathBuf::from);
    let nvcc = nvcc.or_else(|| installed.into_iter().find(|nvcc| nvcc.exists())).unwrap_or("nvcc".into());
    // PTX for this compute capability runs on GPUs of this and of every later one.
    let generation = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "80".into());
    if generation.is_empty() || !generation.bytes().all(|digit| digit.is_ascii_digit()) {
        let message = format!("CUDA_COMPUTE_CAP = {generation:?}: expected digits only, such as 80 for 8.0");
        return Err(io::Error::other(message));
    }
    println!("cargo:rustc-env=CDL_COMPUTE_CAP={generation}");
    let mut kernels = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    kernels.sort();
    kernels.retain(|file| file.extension().is_some_and(|extension| extension == "cu"));
    for source in kernels {
        let name = source.file_stem().unwrap_or_default();
        let ptx = out.join(name).with_extension("ptx");
        let mut compile = Command::new(&nvcc);
        compile.args(["--ptx", "-O3", "-std=c++17"]);
        compile.arg(format!("-gencode=arch=compute_{generation},code=compute_{generation}"));
        compile.arg("-o").arg(ptx).arg(&source);
        let done = compile.status().map_err(|error| {
            let message =
                "the feature `cuda` needs nvcc, CUDA's compiler; set NVCC or CUDA_HOME, see tools/cuda.sh";
            io::Error::new(error.kind(), format!("{}: {error}: {message}", nvcc.display()))
        })?;
        if !done.success() {
            return Err(io::Error::other(format!("{} failed on {}", nvcc.display(), source.display())));
        }
    }
    Ok(())
}
