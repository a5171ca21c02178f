//! The benchmark on kernmalloc, as users run it: exact statistics, credited to call sites.

#[global_allocator]
static GLOBAL: kernmalloc::KernMalloc = kernmalloc::KernMalloc;

fn main() -> std::process::ExitCode {
    kernmalloc_rust_bench::main()
}
