//! The benchmark on rlsf, TLSF behind a mutex: its growing global allocator.

#[global_allocator]
static GLOBAL: rlsf::GlobalTlsf = rlsf::GlobalTlsf::new();

fn main() -> std::process::ExitCode {
    kernmalloc_rust_bench::main()
}
