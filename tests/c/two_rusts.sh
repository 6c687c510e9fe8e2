#!/usr/bin/env bash
# two_rusts.sh ARCHIVE INCLUDE FOLDER: a program may link libhone.a beside another static library
# that was written in Rust.
set -euo pipefail
archive=$1 include=$2 folder=$3
mkdir -p "$folder"
cat > "$folder/other.rs" <<'RS'
#[unsafe(no_mangle)]
pub extern "C" fn other_sum(n: u32) -> u32 {
    std::thread::spawn(move || (0..n).map(|i| format!("{i}").len() as u32).sum()).join().unwrap_or(0)
}
RS
cat > "$folder/both.c" <<'C'
#include <hone.h>
#include <stdio.h>
unsigned other_sum(unsigned);
int main(void) {
    hone_optimizer *none = NULL;
    hone_error *error = hone_optimizer_new(0, NULL, &none);
    int good = hone_error_code(error) == HONE_CODE_INVALID_ARGUMENT && other_sum(11) == 12;
    hone_error_free(error);
    printf("hone %s beside another\n", hone_version());
    return good ? 0 : 1;
}
C
rustc --edition 2024 --crate-type staticlib -O -o "$folder/libother.a" "$folder/other.rs"
cc -I"$include" "$folder/both.c" "$archive" "$folder/libother.a" -o "$folder/both" \
    -lgcc_s -lutil -lrt -lpthread -lm -ldl
"$folder/both"
