#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# Builds the C interface and installs it: install.sh PREFIX [TARGET_DIR]
set -eu
[ $# -ge 1 ] || { echo "usage: $0 PREFIX [TARGET_DIR]    (PREFIX: /usr/local, or any folder)" >&2; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1/lib/pkgconfig" "$1/include/sys" "$1/include/vm"
prefix=$(cd "$1" && pwd)
target=${2:-${CARGO_TARGET_DIR:-$root/target}}

# The profile has no unwinder and is one unit, see Cargo.toml.
(cd "$root" && "${CARGO:-cargo}" build --quiet --profile preload -p kernmalloc-clib --target-dir "$target")
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)

# By way of another name: a program may be running with the old file.
install -m 755 "$target/preload/libkernmalloc_c.so" "$prefix/lib/libkernmalloc-c.so.$version.new"
mv "$prefix/lib/libkernmalloc-c.so.$version.new" "$prefix/lib/libkernmalloc-c.so.$version"
ln -sf "libkernmalloc-c.so.$version" "$prefix/lib/libkernmalloc-c.so.0"
ln -sf libkernmalloc-c.so.0 "$prefix/lib/libkernmalloc-c.so"
install -m 644 "$target/preload/libkernmalloc_c.a" "$prefix/lib/libkernmalloc-c.a"
for header in sys/malloc.h sys/kmem.h sys/vmem.h sys/pool.h vm/uma.h memstat.h; do
	install -m 644 "$root/include/$header" "$prefix/include/$header"
done
sed -e "s|@PREFIX@|$prefix|" -e "s|@VERSION@|$version|" "$root/crates/clib/kernmalloc-c.pc.in" \
	> "$prefix/lib/pkgconfig/kernmalloc-c.pc"
