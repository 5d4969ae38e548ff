#!/usr/bin/env bash
# Searches for bytes that a decoder falls over, guided by what code they reach (libFuzzer).
#
#   run.sh SECONDS [DECODER ...]      all decoders where none is named, one after the other, each for SECONDS
#
# Works with the stable toolchain: the instrumentation is LLVM's own pass. What is found is kept in target/fuzz/found
# and named; put it into tests/fuzz/corpus/DECODER as `bad-…` or `ok-…` together with the mend, and `make test` replays
# it ever after. Inputs that reached new code stay in target/fuzz/inputs for the next run.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."

seconds=$1; shift
folder=target/fuzz
mkdir -p "$folder/found"

decoders() { sed -n '/DECODERS/,/^];/s/^    ("\([a-z_]*\)".*/\1/p' tests/fuzz/decoders.rs; }

build() {
  local flags="-Cpasses=sancov-module -Ccodegen-units=16 --cfg fuzzing" argument
  for argument in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=" -Cllvm-args=-sanitizer-coverage-$argument"
  done
  # The product's own versions, and libFuzzer.
  cp Cargo.lock tests/fuzz/guided/Cargo.lock
  # With a target named, build scripts and macros stay as they are.
  RUSTFLAGS=$flags cargo build --release --manifest-path tests/fuzz/guided/Cargo.toml \
    --target-dir "$folder/build" --target "$(rustc -vV | sed -n 's/^host: //p')"
}

# Prints a row: decoder, executions, edges reached, findings.
search() {
  local decoder=$1 log=$folder/$1.log inputs=$folder/inputs/$1 program status=0
  program=$(echo "$folder"/build/*/release/guided)
  mkdir -p "$inputs"
  WARREN_FUZZ=$decoder WARREN_FUZZ_INPUTS=$inputs "$program" "$inputs" -max_total_time="$seconds" -timeout=10 \
    -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 -artifact_prefix="$folder/found/$decoder-" >"$log" 2>&1 || status=$?
  printf '%-26s %8s s %12s runs %8s edges  %s\n' "$decoder" "$seconds" \
    "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
    "$(grep -o 'cov: [0-9]*' "$log" | tail -n 1 | cut -d' ' -f2)" \
    "$([ "$status" = 0 ] && echo "nothing found" || echo "FOUND: see $log")"
  return "$status"
}

build
failed=0
for decoder in ${*:-$(decoders)}; do
  search "$decoder" || failed=1
done
exit "$failed"
