//! The benchmark on rpmalloc.

#[global_allocator]
static GLOBAL: rpmalloc::RpMalloc = rpmalloc::RpMalloc;

fn main() -> std::process::ExitCode {
    kernmalloc_rust_bench::main()
}
