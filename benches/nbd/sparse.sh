# shellcheck shell=bash disable=SC2154 # what is not assigned here is of nbd.sh
# Section of benches/nbd.sh: what looking for holes costs where there are none. Random data is read by the example
# nbd_reads with simple replies, with structured ones (holes are looked for), and with structured ones and the flag DF,
# which forbids to answer in pieces.

section_sparse() {
    local run kind bytes reads before after program
    program=${NBD_READS_BIN:-}
    if [[ -z $program ]]; then
        cargo build --quiet --release -p nbd-server --example nbd_reads
        program=${CARGO_TARGET_DIR:-target}/release/examples/nbd_reads
    fi
    serve_array "unix:$work/nbd.sock" 5 "$work/member0" "$work/member1" "$work/member2"
    await "nbd+unix:///bench5?socket=$work/nbd.sock"
    : >"$here/sparse"
    for ((run = 0; run < pairs; run++)); do
        for bytes in 4096 65536; do
            for kind in simple holes df; do
                before=$(ticks)
                reads=$("$program" "$work/nbd.sock" bench5 "$kind" "$bytes" 16 "${run_ms}e-3")
                after=$(ticks)
                printf '%s\t%s\t%s\t%s\n' "$kind" "$bytes" "$reads" $((after - before)) >>"$here/sparse"
            done
        done
    done
    stop_server
    rm -f "$work"/*.sock
    echo "Random reads of random data, 16 in flight, unix socket, RAID5 of three in memory, median of $pairs."
    echo
    echo "| bytes | replies | reads/s | to simple | CPU us/IO | to simple |"
    echo "|---|---|---|---|---|---|"
    for bytes in 4096 65536; do
        local rate_of_simple="" cpu_of_simple="" rate cpu
        for kind in simple holes df; do
            rate=$(awk -F'\t' -v k="$kind" -v b="$bytes" -v ms="$run_ms" '$1 == k && $2 == b { print $3 * 1000 / ms }' \
                "$here/sparse" | median)
            cpu=$(awk -F'\t' -v k="$kind" -v b="$bytes" -v hz="$ticks_per_second" \
                '$1 == k && $2 == b { print $4 / hz * 1e6 / $3 }' "$here/sparse" | median)
            rate_of_simple=${rate_of_simple:-$rate} cpu_of_simple=${cpu_of_simple:-$cpu}
            awk -v b="$bytes" -v k="$kind" -v r="$rate" -v s="$rate_of_simple" -v c="$cpu" -v d="$cpu_of_simple" 'BEGIN {
                printf "| %d | %s | %.0f | %.2f | %.1f | %.2f |\n", b, k, r, r / s, c, c / d
            }'
        done
    done
}
