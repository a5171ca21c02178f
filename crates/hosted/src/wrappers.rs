//! Functions whose business is to call malloc for somebody else: a block they allocate is their caller's.
#![forbid(unsafe_code)]

use kern::text::Text;

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
    // MariaDB and MySQL, PHP, Ruby, R, Tcl
    b"my_malloc",
    b"my_multi_malloc",
    b"my_multi_malloc_large",
    b"my_realloc",
    b"my_memdup",
    b"my_strdup",
    b"my_strndup",
    b"__zend_malloc",
    b"__zend_calloc",
    b"__zend_realloc",
    b"zend_strndup",
    b"ruby_xmalloc",
    b"ruby_xmalloc2",
    b"ruby_xcalloc",
    b"ruby_xrealloc",
    b"ruby_xrealloc2",
    b"ruby_strdup",
    b"R_chk_calloc",
    b"R_chk_realloc",
    b"R_malloc_gc",
    b"R_calloc_gc",
    b"R_realloc_gc",
    b"Tcl_Alloc",
    b"Tcl_AttemptAlloc",
    b"Tcl_Realloc",
    b"Tcl_AttemptRealloc",
    b"TclpAlloc",
    b"TclpRealloc",
    // SQLite
    b"sqlite3MemMalloc",
    b"sqlite3MemRealloc",
    b"sqlite3Malloc",
    b"sqlite3MallocZero",
    b"sqlite3Realloc",
    b"sqlite3_malloc",
    b"sqlite3_malloc64",
    b"sqlite3_realloc",
    b"sqlite3_realloc64",
    b"sqlite3DbMallocRaw",
    b"sqlite3DbMallocRawNN",
    b"sqlite3DbMallocZero",
    b"sqlite3DbRealloc",
    b"sqlite3DbReallocOrFree",
    b"sqlite3DbStrDup",
    b"sqlite3DbStrNDup",
    // FFmpeg, ImageMagick
    b"av_malloc",
    b"av_mallocz",
    b"av_calloc",
    b"av_malloc_array",
    b"av_mallocz_array",
    b"av_realloc",
    b"av_realloc_f",
    b"av_realloc_array",
    b"av_reallocp",
    b"av_reallocp_array",
    b"av_strdup",
    b"av_strndup",
    b"av_memdup",
    b"AcquireMagickMemory",
    b"AcquireQuantumMemory",
    b"AcquireAlignedMemory",
    b"AcquireCriticalMemory",
    b"ResizeMagickMemory",
    b"ResizeQuantumMemory",
    // OpenLDAP, D-Bus, GMP, libxml2, nginx, PostgreSQL's programs, LLVM
    b"ber_memalloc",
    b"ber_memalloc_x",
    b"ber_memcalloc",
    b"ber_memcalloc_x",
    b"ber_memrealloc",
    b"ber_memrealloc_x",
    b"ber_strdup",
    b"ber_strdup_x",
    b"ber_strndup",
    b"ber_strndup_x",
    b"dbus_malloc",
    b"dbus_malloc0",
    b"dbus_realloc",
    b"_dbus_strdup",
    b"__gmp_default_allocate",
    b"__gmp_default_reallocate",
    b"xmlStrdup",
    b"xmlStrndup",
    b"xmlCharStrdup",
    b"ngx_alloc",
    b"ngx_calloc",
    b"pg_malloc",
    b"pg_malloc0",
    b"pg_malloc_extended",
    b"pg_realloc",
    b"pg_strdup",
    b"_ZN4llvm15allocate_bufferEmm",
    // Rust
    b"__rust_alloc",
    b"__rust_alloc_zeroed",
    b"__rust_realloc",
    b"__rdl_alloc",
    b"__rdl_alloc_zeroed",
    b"__rdl_realloc",
];

/// Members of C++'s strings, most of which the C++ library has compiled for everybody.
const STRINGS: &[&[u8]] = &[b"_ZNSt7__cxx1112basic_stringI", b"_ZNKSt7__cxx1112basic_stringI"];

/// Strings of `char`, as the C++ library exports them: how every name begins, and how those end whose functions allocate.
const STRING: &[u8] = b"_ZNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEE";
const STRING_MEMBERS: &[&[u8]] = &[
    b"9_M_createERmm",
    b"9_M_mutateEmmPKcm",
    b"9_M_appendEPKcm",
    b"9_M_assignERKS4_",
    b"10_M_replaceEmmPKcm",
    b"14_M_replace_auxEmmmc",
    b"12_M_constructEmc",
    b"12_M_constructIPKcEEvT_S8_St20forward_iterator_tag",
    b"12_M_constructIPcEEvT_S7_St20forward_iterator_tag",
    b"7reserveEm",
    b"6resizeEmc",
    b"9push_backEc",
    b"6appendEPKc",
    b"6appendEPKcm",
    b"6appendERKS4_",
    b"6appendERKS4_mm",
    b"6appendEmc",
    b"6assignEPKc",
    b"6assignEPKcm",
    b"6assignERKS4_",
    b"6assignERKS4_mm",
    b"6assignEmc",
    b"6insertEmPKc",
    b"6insertEmPKcm",
    b"6insertEmRKS4_",
    b"6insertEmmc",
    b"7replaceEmmPKc",
    b"7replaceEmmPKcm",
    b"7replaceEmmRKS4_",
    b"7replaceEmmmc",
    b"C1EPKcRKS3_",
    b"C1EPKcmRKS3_",
    b"C1ERKS4_",
    b"C1ERKS4_mm",
    b"C1EmcRKS3_",
    b"aSEPKc",
    b"aSERKS4_",
    b"pLEPKc",
    b"pLERKS4_",
    b"pLEc",
];

/// Calls `visit` with the exported names of what allocates for C++'s strings, while it says that there is such a thing.
pub(crate) fn string_members(mut visit: impl FnMut(&[u8]) -> bool) {
    for (n, member) in STRING_MEMBERS.iter().enumerate() {
        let mut name = Text::<128>::new();
        name.push(STRING).push(member);
        // Without the first a library has none.
        if !visit(name.as_bytes()) && n == 0 {
            return;
        }
    }
}

/// What a Rust program's request passes on its way from the function that wants memory: all of these crates, since whatever
/// they allocate is for their callers (a function that they call back, a closure, is its own crate's).
const RUST_CRATES: &[&[u8]] = &[b"__rustc", b"alloc", b"core", b"hashbrown", b"allocator_api2"];

/// Modules of crates that also allocate for themselves.
const RUST_MODULES: &[(&[u8], &[u8])] = &[(b"std", b"collections"), (b"kernmalloc", b"global")];

fn is_rust_path(root: &[u8], next: &[u8]) -> bool {
    RUST_CRATES.contains(&root) || RUST_MODULES.contains(&(root, next))
}

/// An identifier of a mangled name, its length in front, and what follows it.
fn identifier(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let digits = text.iter().take(4).take_while(|byte| byte.is_ascii_digit()).count();
    let len = text[..digits].iter().fold(0, |sum, &digit| sum * 10 + usize::from(digit - b'0'));
    // v0 puts a bar between length and an identifier that begins with one, or with a digit.
    let bar = usize::from(text.get(digits) == Some(&b'_') && text.get(digits + 1) == Some(&b'_'));
    let rest = text.get(digits + bar..)?;
    if len == 0 || len > rest.len() { None } else { Some(rest.split_at(len)) }
}

/// Whether a function mangled in the v0 way is of one of those crates: the first crate named is the function's, or its
/// implementation's.
fn is_wrapper_v0(name: &[u8]) -> bool {
    let root = |at: usize| {
        let rest = &name[at + 1..];
        let rest = match rest.strip_prefix(b"s") {
            Some(rest) => &rest[rest.iter().take(16).position(|&byte| byte == b'_')? + 1..],
            None => rest,
        };
        identifier(rest)
    };
    let crates = name.iter().enumerate().filter(|(_, byte)| **byte == b'C');
    let Some((krate, rest)) = crates.into_iter().find_map(|(at, _)| root(at)) else { return false };
    is_rust_path(krate, identifier(rest).map_or(b"", |(next, _)| next))
}

/// The same of one mangled in the legacy way: `_ZN`, the path's parts, a hash. `<T as Trait>::f` is one part and `f`; it is the
/// library's if the trait is, and the type too unless it is anybody's.
fn is_wrapper_legacy(name: &[u8]) -> bool {
    let Some((first, rest)) = name.strip_prefix(b"_ZN").and_then(identifier) else { return false };
    let Some(ty) = first.strip_prefix(b"_$LT$") else {
        return is_rust_path(first, identifier(rest).map_or(b"", |(next, _)| next));
    };
    let dotted = |path: &[u8]| {
        let mut parts = path.splitn(2, |&byte| byte == b'.');
        let root = parts.next().unwrap_or_default();
        let next = parts.next().and_then(|rest| rest.strip_prefix(b".")).unwrap_or_default();
        let end = next.iter().position(|&byte| byte == b'.' || byte == b'$').unwrap_or(next.len());
        is_rust_path(root, &next[..end])
    };
    const AS: &[u8] = b"$u20$as$u20$";
    let Some(at) = ty.windows(AS.len()).rposition(|window| window == AS) else { return dotted(ty) };
    let (ty, of) = (&ty[..at], &ty[at + AS.len()..]);
    (dotted(of) || of.starts_with(b"std..")) && (dotted(ty) || !ty.windows(2).any(|window| window == b".."))
}

/// Length of the tail of `name` that is a wrapper's name.
pub(crate) fn match_symbol(name: &[u8]) -> Option<usize> {
    if name.len() < 4 {
        return None;
    }
    if name.starts_with(b"_R") {
        return is_wrapper_v0(name).then_some(name.len());
    }
    if STRINGS.iter().any(|members| name.starts_with(members)) || name.starts_with(b"_ZN") && is_wrapper_legacy(name) {
        return Some(name.len());
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
    }

    #[test]
    fn members_of_strings_match_and_functions_that_take_one_do_not() {
        for (name, matches) in [
            ("_ZNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEE9_M_createERmm", true),
            ("_ZNKSt7__cxx1112basic_stringIwSt11char_traitsIwESaIwEE6substrEmm", true),
            ("_Z4workNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE", false),
            ("_ZNSt6vectorINSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEESaIS5_EE7reserveEm", false),
        ] {
            assert_eq!(match_symbol(name.as_bytes()), matches.then_some(name.len()), "{name}");
        }
    }

    #[test]
    fn functions_of_rusts_libraries_match_and_those_of_others_do_not() {
        let matches = |name: &str| match_symbol(name.as_bytes()).map(|len| assert_eq!(len, name.len())).is_some();
        for name in [
            "_RNvCskdnyYGbM6yj_7___rustc12___rust_alloc",
            "_RNvCskdnyYGbM6yj_7___rustc11___rdl_alloc",
            "_ZN5alloc5alloc15exchange_malloc17h0123456789abcdefE",
            "_ZN5alloc3vec16Vec$LT$T$C$A$GT$4push17h0123456789abcdefE",
            "_RINvMs10_NtNtNtCslNYArtu3iFV_5alloc11collections5btree4nodeINtB7_16BalancingContextjNtCs_3abc1TE1f",
            "_ZN9hashbrown3raw21RawTable$LT$T$C$A$GT$14reserve_rehash17h0123456789abcdefE",
            "_ZN3std11collections4hash3map20HashMap$LT$K$C$V$GT$6insert17h0123456789abcdefE",
            "_ZN50_$LT$T$u20$as$u20$alloc..slice..hack..ConvertVec$GT$6to_vec17h0123456789abcdefE",
            "_ZN62_$LT$alloc..vec..Vec$LT$T$GT$$u20$as$u20$core..clone..Clone$GT$5clone17h0123456789abcdefE",
            "_ZN83_$LT$kernmalloc..global..KernMalloc$u20$as$u20$core..alloc..global..GlobalAlloc$GT$5alloc17hE",
        ] {
            assert!(matches(name), "{name}");
        }
        for name in [
            "_ZN4main4work17h0123456789abcdefE",
            "_ZN3std6thread5spawn17h0123456789abcdefE",
            "_ZN10kernmalloc7symbols4load17h0123456789abcdefE",
            // A trait of the program's own for a vector, and a type of its own with a trait of the library.
            "_ZN52_$LT$alloc..vec..Vec$LT$T$GT$$u20$as$u20$main..Work$GT$4work17h0123456789abcdefE",
            "_ZN48_$LT$main..Work$u20$as$u20$core..clone..Clone$GT$5clone17h0123456789abcdefE",
            // Its own function, generic over a vector.
            "_RINvCskdnyYGbM6yj_4main4workINtNtCslNYArtu3iFV_5alloc3vec3VechEEB2_",
            "_RNvNtCskdnyYGbM6yj_3std6thread5spawn",
            "_RNvXs_CskdnyYGbM6yj_4mainNtB4_1TNtNtCs_4core5clone5Clone5clone",
            // Cut short.
            "_ZN5all",
            "_ZN",
            "_RNvC",
            "_RNvCs",
            "_RNvCs_99999alloc",
        ] {
            assert!(!matches(name), "{name}");
        }
    }
}
