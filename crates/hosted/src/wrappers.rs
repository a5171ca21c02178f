//! Functions whose business is to call malloc for somebody else: a block they allocate is their caller's.
#![forbid(unsafe_code)]

/// By name, exported or local.
pub(crate) const NAMES: &[&[u8]] = &[
    // C library
    b"strdup",
    b"__strdup",
    b"strndup",
    b"__strndup",
    b"wcsdup",
    // the customary names of programs
    b"xmalloc",
    b"xcalloc",
    b"xrealloc",
    b"xreallocarray",
    b"xzalloc",
    b"xmallocz",
    b"xnmalloc",
    b"x2realloc",
    b"x2nrealloc",
    b"xmemdup",
    b"xmemdupz",
    b"xstrdup",
    b"xstrndup",
    b"emalloc",
    b"ecalloc",
    b"erealloc",
    b"estrdup",
    b"safe_malloc",
    b"do_xmalloc",
    // operator new of programs that bring their own, or of a C++ library that is called past ours
    b"_Znwm",
    b"_Znam",
    b"_ZnwmRKSt9nothrow_t",
    b"_ZnamRKSt9nothrow_t",
    b"_ZnwmSt11align_val_t",
    b"_ZnamSt11align_val_t",
    b"_ZnwmSt11align_val_tRKSt9nothrow_t",
    b"_ZnamSt11align_val_tRKSt9nothrow_t",
    // GLib
    b"g_malloc",
    b"g_malloc0",
    b"g_malloc_n",
    b"g_malloc0_n",
    b"g_realloc",
    b"g_realloc_n",
    b"g_try_malloc",
    b"g_try_malloc0",
    b"g_try_malloc_n",
    b"g_try_malloc0_n",
    b"g_try_realloc",
    b"g_try_realloc_n",
    b"g_memdup",
    b"g_memdup2",
    b"g_strdup",
    b"g_strndup",
    b"g_slice_alloc",
    b"g_slice_alloc0",
    b"g_slice_copy",
    // CPython
    b"PyMem_Malloc",
    b"PyMem_Calloc",
    b"PyMem_Realloc",
    b"PyMem_RawMalloc",
    b"PyMem_RawCalloc",
    b"PyMem_RawRealloc",
    b"PyObject_Malloc",
    b"PyObject_Calloc",
    b"PyObject_Realloc",
    b"_PyMem_RawMalloc",
    b"_PyMem_RawCalloc",
    b"_PyMem_RawRealloc",
    b"_PyObject_Malloc",
    b"_PyObject_Calloc",
    b"_PyObject_Realloc",
    // OpenSSL, Perl, redis
    b"CRYPTO_malloc",
    b"CRYPTO_zalloc",
    b"CRYPTO_realloc",
    b"CRYPTO_strdup",
    b"CRYPTO_memdup",
    b"Perl_safesysmalloc",
    b"Perl_safesyscalloc",
    b"Perl_safesysrealloc",
    b"zmalloc",
    b"zcalloc",
    b"zcalloc_num",
    b"zrealloc",
    b"ztrymalloc",
    b"ztrycalloc",
    b"ztryrealloc",
    b"zmalloc_usable",
    b"zrealloc_usable",
    b"ztrymalloc_usable",
    b"zstrdup",
    // Rust
    b"__rust_alloc",
    b"__rust_alloc_zeroed",
    b"__rust_realloc",
    b"__rdl_alloc",
    b"__rdl_alloc_zeroed",
    b"__rdl_realloc",
];

/// Ends of mangled Rust paths (v0, or legacy without its hash).
const RUST_ENDS: &[&[u8]] = &[
    b"___rust_alloc",
    b"___rust_alloc_zeroed",
    b"___rust_realloc",
    b"___rdl_alloc",
    b"___rdl_alloc_zeroed",
    b"___rdl_realloc",
    b"15exchange_malloc",
    b"10alloc_impl",
    b"11finish_grow",
    b"14grow_amortized",
    b"8grow_one",
    b"12do_reserve_and_handle",
    b"16with_capacity_in",
    b"15try_allocate_in",
];

/// A generic function of the standard library's growing vector, with whatever its type arguments are.
const RUST_PARTS: &[&[u8]] = &[b"7raw_vec"];

/// Length of the tail of `name` that is a wrapper's name.
pub(crate) fn match_symbol(name: &[u8]) -> Option<usize> {
    if name.len() < 4 {
        return None;
    }
    if name.starts_with(b"_R") || name.starts_with(b"_ZN") {
        let path = match name.strip_suffix(b"E") {
            // Legacy: 17h, sixteen digits, E.
            Some(rest) if rest.len() > 19 && rest[rest.len() - 19..].starts_with(b"17h") => &rest[..rest.len() - 19],
            _ => name,
        };
        let hit = RUST_ENDS.iter().any(|end| path.ends_with(end))
            || RUST_PARTS.iter().any(|part| path.windows(part.len()).any(|window| window == *part));
        return hit.then_some(name.len());
    }
    NAMES.iter().filter(|known| name.ends_with(known)).map(|known| known.len()).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_whole_or_as_a_shared_tail() {
        assert_eq!(match_symbol(b"xmalloc"), Some(7));
        assert_eq!(match_symbol(b"my_xmalloc"), Some(7));
        assert_eq!(match_symbol(b"malloc"), None);
        let v0 = b"_RNvCskdnyYGbM6yj_7___rustc12___rust_alloc";
        assert_eq!(match_symbol(v0), Some(v0.len()));
        let legacy = b"_ZN5alloc5alloc15exchange_malloc17h0123456789abcdefE";
        assert_eq!(match_symbol(legacy), Some(legacy.len()));
        assert_eq!(match_symbol(b"_ZN4main4work17h0123456789abcdefE"), None);
    }
}
