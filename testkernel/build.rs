//! Gives the linker the kernel's script, under the profiles that make a kernel and under no other; and the kernel the
//! archive of the modules that it loads, if `KERNMALLOC_MODULES` names one (`cargo xtask qemu` does), else an empty
//! one.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernel.ld");
    // A build script is told neither the panic strategy nor the profile's own name (PROFILE says "release"): the folder
    // has it.
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    if !out.iter().any(|part| part == "kernel" || part == "kernel-bench") {
        return;
    }
    println!("cargo:rerun-if-env-changed=KERNMALLOC_MODULES");
    let modules = match std::env::var_os("KERNMALLOC_MODULES") {
        Some(file) => {
            println!("cargo:rerun-if-changed={}", PathBuf::from(&file).display());
            std::fs::read(&file).expect("KERNMALLOC_MODULES names a file")
        }
        None => b"!<arch>\n".to_vec(),
    };
    std::fs::write(out.join("modules.a"), modules).expect("the build folder is writable");
    let script = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("kernel.ld");
    let arguments = ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,max-page-size=0x1000"];
    for argument in arguments.iter().chain(&["-Wl,-z,norelro"]) {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{}", script.display());
}
