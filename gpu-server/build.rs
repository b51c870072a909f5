//! Compiles csrc/ against the same libtorch as torch-sys, and records where it was at build time, so that the
//! binary finds it without `LD_LIBRARY_PATH`. An image puts libtorch beside the binary instead, in `../lib`.

use std::path::Path;

fn main() {
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
    println!("cargo:rerun-if-changed=csrc");
    let Ok(libraries) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        return;
    };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{libraries}");
    let include = Path::new(&libraries).join("../include");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .warnings(false)
        .opt_level(3)
        // Without it libtorch's `at::parallel_for` is a plain loop.
        .flag("-fopenmp")
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        .files(
            ["attention", "kernels", "linear", "linear_bf16", "linear_f32", "scores"]
                .map(|name| format!("csrc/{name}.cpp")),
        )
        .compile("medkg_kernels");
    // The one that libtorch brings: it lies in the same folder, which the binary searches first.
    println!("cargo:rustc-link-lib=gomp");
}
