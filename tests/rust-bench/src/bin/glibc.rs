//! The benchmark on the C library's malloc.

#[global_allocator]
static GLOBAL: std::alloc::System = std::alloc::System;

fn main() -> std::process::ExitCode {
    kernmalloc_rust_bench::main()
}
