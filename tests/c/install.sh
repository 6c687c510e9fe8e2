#!/usr/bin/env bash
# install.sh SOURCE BUILD PREFIX: hone serves programs of others: installed, by find_package and by
# pkg-config, wherever it is moved to; and from its sources, by add_subdirectory.
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

# As a part of another project, which builds where this build was made so that nothing is repeated.
cached() { sed -n "s/^$1:[A-Z]*=//p" "$build/CMakeCache.txt"; }
project=$examples/project
mkdir -p "$project"
cat > "$project/CMakeLists.txt" <<CMAKE
cmake_minimum_required(VERSION 3.22)
project(other LANGUAGES C CXX)
add_subdirectory($source hone)
add_executable(train $source/examples-c/train.c)
target_link_libraries(train PRIVATE hone::hone m)
CMAKE
cmake -S "$project" -B "$project/build" -DCMAKE_BUILD_TYPE="$(cached CMAKE_BUILD_TYPE)" \
    -DHONE_CARGO_DIR="$(cached HONE_CARGO_DIR)" -DHONE_CARGO_FLAGS="$(cached HONE_CARGO_FLAGS)" \
    >/dev/null
cmake --build "$project/build" --target train >"$project/log" 2>&1 || { cat "$project/log"; exit 1; }
"$project/build/train"
