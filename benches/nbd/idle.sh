# shellcheck shell=bash disable=SC2154 # what is not assigned here is of nbd.sh
# Section of benches/nbd.sh: 4 KiB reads of one client, alone and beside 1,000 connections that have chosen the export
# and say nothing. Alternating, so that a disturbance of the machine hits both.

idle_connections=1000

# Opens the idle connections to port $1 and holds them until its stdin ends; says "there" when all are open.
idle_hold() {
    local i fd
    ulimit -n $((idle_connections + 100))
    for ((i = 0; i < idle_connections; i++)); do
        exec {fd}<>"/dev/tcp/127.0.0.1/$1"
        # Client flags, NBD_OPT_STRUCTURED_REPLY, NBD_OPT_GO of the default export; the answers fit into the socket.
        printf '\0\0\0\3IHAVEOPT\0\0\0\10\0\0\0\0IHAVEOPT\0\0\0\7\0\0\0\6\0\0\0\0\0\0' >&"$fd"
    done
    echo there
    read -r || true
}

resident_kib() {
    awk '/^VmRSS/ { print $2 }' "/proc/$server/status"
}

section_idle() {
    local port run how depth uri holder word before
    port=$(free_port)
    serve_array "tcp:127.0.0.1:$port" 5 "$work/member0" "$work/member1" "$work/member2"
    uri="nbd://127.0.0.1:$port/bench5"
    await "$uri"
    : >"$here/idle"
    : >"$here/idle-memory"
    # What is allocated once, however many there are.
    measure "$uri" "$region_mib" "--rw=randread --bs=4k --iodepth=32" >/dev/null
    for ((run = 0; run < pairs; run++)); do
        for how in alone beside; do
            if [[ $how == beside ]]; then
                before=$(resident_kib)
                coproc holder { idle_hold "$port"; }
                # shellcheck disable=SC2154 # coproc sets it
                read -r -u "${holder[0]}" word
                [[ $word == there ]]
                # The server has them all, and has answered them.
                until (($(find "/proc/$server/fd" -lname 'socket:*' | wc -l) > idle_connections)); do sleep 0.05; done
                echo $(($(resident_kib) - before)) >>"$here/idle-memory"
            fi
            for depth in 1 32; do
                printf '%s\t%s\t%s\n' "$how" "$depth" \
                    "$(measure "$uri" "$region_mib" "--rw=randread --bs=4k --iodepth=$depth")" >>"$here/idle"
            done
            if [[ $how == beside ]]; then
                local pid=$holder_PID
                echo >&"${holder[1]}"
                wait "$pid" || true
                until (($(find "/proc/$server/fd" -lname 'socket:*' | wc -l) < 100)); do sleep 0.05; done
            fi
        done
    done
    stop_server
    rm -f "$work/control.sock"
    echo "4 KiB random reads over loopback TCP, RAID5 of three in memory, median of $pairs. $idle_connections idle connections" \
        "make the process $(median <"$here/idle-memory") KiB larger."
    echo
    echo "| depth | alone IOPS | beside IOPS | ratio | alone CPU us/IO | beside CPU us/IO | ratio |"
    echo "|---|---|---|---|---|---|---|"
    for depth in 1 32; do
        local figures=() field
        for field in 3 5; do
            for how in alone beside; do
                figures+=("$(awk -F'\t' -v h="$how" -v d="$depth" -v f="$field" '$1 == h && $2 == d { print $f }' \
                    "$here/idle" | median)")
            done
        done
        awk -v d="$depth" -v a="${figures[0]}" -v b="${figures[1]}" -v c="${figures[2]}" -v e="${figures[3]}" 'BEGIN {
            printf "| %d | %.0f | %.0f | %.2f | %.1f | %.1f | %.2f |\n", d, a, b, b / a, c, e, e / c
        }'
    done
}
