#!/usr/bin/env bash
# symbols.sh LIBRARY HEADER ABI PROFILE: the library offers what the header says and nothing else, under its
# soname, stays loaded, needs nothing but the C library and its kin, and is not large.
set -euo pipefail
library=$1 header=$2 abi=$3 profile=$4

offered=$(nm -D --defined-only "$library" | awk '{print $3}' | sort)
promised=$(grep -v '///' "$header" | grep -o 'hone_[a-z_]*(' | tr -d '(' | sort -u)
diff <(echo "$promised") <(echo "$offered") || {
    echo "the header and the library differ in what they offer (< header, > library)"; exit 1; }
dynamic=$(readelf -d "$library")
grep -q "SONAME.*\[libhone.so.$abi\]" <<<"$dynamic" || { echo "the soname is wrong"; exit 1; }
grep -q NODELETE <<<"$dynamic" || { echo "the library can be unloaded"; exit 1; }
needed=$(grep NEEDED <<<"$dynamic" | grep -o '\[.*\]' | grep -vE '\[(lib(c|m|gcc_s|dl|pthread|rt)\.so\.[0-9]+|ld-linux.*)\]' || true)
[ -z "$needed" ] || { echo "the library needs $needed"; exit 1; }
stripped=$(mktemp)
trap 'rm -f "$stripped"' EXIT
strip -o "$stripped" "$library"
bytes=$(stat -c %s "$stripped")
echo "$(wc -l <<<"$offered") functions, $((bytes / 1000)) kB stripped"
[ "$profile" != release ] || [ "$bytes" -le 12000000 ] || { echo "larger than 12 MB"; exit 1; }
