#!/usr/bin/env bash
# install.sh SOURCE BUILD PREFIX: an installed hone serves programs of others, by find_package and by
# pkg-config, wherever it is moved to.
set -euo pipefail
source=$1 build=$2 prefix=$3
rm -rf "$prefix" "$prefix.moved" "$prefix.examples"
cmake --install "$build" --prefix "$prefix" >/dev/null
mv "$prefix" "$prefix.moved"
prefix=$prefix.moved

# With the other compiler, if there is one.
compilers=()
if command -v clang >/dev/null && command -v clang++ >/dev/null; then
    compilers=(-DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++)
fi
examples=${prefix%.moved}.examples
cmake -S "$source/examples-c" -B "$examples" -DCMAKE_PREFIX_PATH="$prefix" "${compilers[@]}" \
    >/dev/null
cmake --build "$examples" >/dev/null
ctest --test-dir "$examples" --output-on-failure

pc=$(dirname "$(find "$prefix" -name hone.pc)")
if command -v pkg-config >/dev/null; then
    export PKG_CONFIG_PATH=$pc
    libs=$(pkg-config --variable=libdir hone)
    # shellcheck disable=SC2046
    cc "$source/examples-c/train.c" -o "$examples/by_pkg_config" $(pkg-config --cflags --libs hone) -lm
    LD_LIBRARY_PATH=$libs "$examples/by_pkg_config"
    # shellcheck disable=SC2046
    cc "$source/examples-c/train.c" -o "$examples/static_by_pkg_config" \
        $(pkg-config --cflags hone) "$libs/libhone.a" \
        $(pkg-config --static --libs-only-l hone | sed 's/-lhone//')
    "$examples/static_by_pkg_config"
else
    echo "pkg-config is missing, so hone.pc was not tried: apt-get install pkg-config"
fi
