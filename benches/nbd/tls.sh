# shellcheck shell=bash disable=SC2154 # what is not assigned here is of nbd.sh
# Section of benches/nbd.sh: what TLS costs. nbdcopy moves the same data over loopback TCP in clear and over TLS, one
# connection, from raidctl (a RAID5, and a RAID0 which does least beside TLS) and from nbdkit with one file.

# name, nbdcopy's options, direction
tls_loads=(
    "read 256K|--request-size=262144 --requests=16|from"
    "read 4K|--request-size=4096 --requests=32|from"
    "write 256K|--request-size=262144 --requests=16|to"
)

# An authority and a server's certificate for 127.0.0.1 in $1, as the README makes them.
tls_certificates() {
    local curve="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    # shellcheck disable=SC2086 # options are words
    openssl req -x509 $curve -subj "/CN=bench CA" -keyout "$1/ca-key.pem" -out "$1/ca-cert.pem" 2>/dev/null
    # shellcheck disable=SC2086 # options are words
    openssl req -x509 -CA "$1/ca-cert.pem" -CAkey "$1/ca-key.pem" $curve -subj "/CN=bench" \
        -addext "subjectAltName=IP:127.0.0.1" -addext "basicConstraints=critical,CA:false" \
        -addext "extendedKeyUsage=serverAuth" -keyout "$1/server-key.pem" -out "$1/server-cert.pem" 2>/dev/null
}

# Copies $3 ("from" all of, or "to" the first $region_mib MiB of) the export at URI $1 with nbdcopy's options $2: MiB/s,
# and the server's CPU time in microseconds for each MiB.
tls_copy() {
    local uri=$1 before after begun ended pair
    pair=("$uri" null:)
    # It is written over with what is in there.
    [[ $3 == from ]] || pair=("$work/source" "$uri")
    before=$(ticks)
    begun=$(date +%s%N)
    # shellcheck disable=SC2086 # options are words
    nbdcopy --no-extents --sparse=0 --connections=1 $2 "${pair[@]}" 2>>"$work/log"
    ended=$(date +%s%N)
    after=$(ticks)
    local bytes=$((region_mib << 20))
    [[ $3 == to ]] || bytes=$(nbdinfo --size "$uri")
    awk -v bytes="$bytes" -v ns=$((ended - begun)) -v ticks=$((after - before)) -v hz="$ticks_per_second" \
        'BEGIN { mib = bytes / 1048576; print mib / ns * 1e9, ticks / hz * 1e6 / mib }'
}

# Measures all loads of the running server $1 at URI $3, which is in $2 ("clear" or "tls").
tls_measure() {
    local load options direction
    for load in "${tls_loads[@]}"; do
        IFS='|' read -r load options direction <<<"$load"
        printf '%s|%s|%s|%s\n' "$1" "$load" "$2" "$(tls_copy "$3" "$options" "$direction")" >>"$here/tls"
    done
}

section_tls() {
    local pki=$here/pki run how scheme query port level
    mkdir "$pki"
    tls_certificates "$pki"
    head -c "${region_mib}M" "$work/file" >"$work/region"
    cp "$work/region" "$work/source"
    : >"$here/tls"
    for ((run = 0; run < pairs; run++)); do
        for how in clear tls; do
            port=$(free_port)
            scheme=nbd query="" kit=(--tls=off) ours=off
            [[ $how == clear ]] || scheme=nbds query="?tls-certificates=$pki" kit=(--tls=require --tls-certificates="$pki") \
                ours="require --tls-certificates $pki"
            nbdkit --foreground --ipaddr 127.0.0.1 --port "$port" "${kit[@]}" file "$work/region" >"$work/log" 2>&1 &
            server=$!
            await "$scheme://127.0.0.1:$port/$query"
            tls_measure "nbdkit file" "$how" "$scheme://127.0.0.1:$port/$query"
            stop_server
            for level in 0 5; do
                local devices=() count=$((level == 0 ? 2 : 3)) i
                for ((i = 0; i < count; i++)); do
                    [[ $run$how != 0clear ]] || head -c $((region_mib / 2 + 16))M "$work/file" >"$work/part$i"
                    devices+=("$work/part$i")
                done
                serve_array "tcp:127.0.0.1:$port --tls $ours" "$level" "${devices[@]}"
                await "$scheme://127.0.0.1:$port/bench$level$query"
                tls_measure "raidctl RAID$level" "$how" "$scheme://127.0.0.1:$port/bench$level$query"
                stop_server
            done
        done
    done
    rm -f "$work"/part* "$work/region" "$work/source"
    echo "nbdcopy, one connection, about $region_mib MiB in memory; the server's CPU time for each MiB; median of $pairs."
    echo
    tls_table
}

tls_table() {
    local server load
    echo "| server | load | clear MiB/s | TLS MiB/s | TLS/clear | clear CPU us/MiB | TLS CPU us/MiB | TLS/clear |"
    echo "|---|---|---|---|---|---|---|---|"
    for load in "${tls_loads[@]}"; do
        load=${load%%|*}
        for server in "nbdkit file" "raidctl RAID0" "raidctl RAID5"; do
            local figures=() how field
            for field in 1 2; do
                for how in clear tls; do
                    figures+=("$(awk -F'|' -v s="$server" -v l="$load" -v h="$how" -v f="$field" \
                        '$1 == s && $2 == l && $3 == h { split($4, v, " "); print v[f] }' "$here/tls" | median)")
                done
            done
            awk -v s="$server" -v l="$load" -v a="${figures[0]}" -v b="${figures[1]}" \
                -v c="${figures[2]}" -v d="${figures[3]}" 'BEGIN {
                    printf "| %s | %s | %.0f | %.0f | %.2f | %.0f | %.0f | %.2f |\n", s, l, a, b, b / a, c, d,
                        c ? d / c : 0
                }'
        done
    done
}
