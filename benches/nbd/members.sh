# shellcheck shell=bash disable=SC2154 # what is not assigned here is of nbd.sh
# Section of benches/nbd.sh: a RAID5 of four files in memory, and of the same four files exported by nbdkit on a unix
# socket (an array of raidctl's own has more than one member). The CPU time is that of both processes.

# As measure, with the CPU time of the backend, if there is one.
members_measure() {
    local before=0 after=0 figures
    [[ -z $backend ]] || before=$(ticks "$backend")
    figures=$(measure "$@")
    [[ -z $backend ]] || after=$(ticks "$backend")
    awk -v ms=$(((after - before) * 1000 / ticks_per_second)) -v s="$run_ms" \
        '{ ios = $1 * s / 1000; printf "%s\t%s\t%s\n", $1, $2, $3 + (ios ? ms * 1000 / ios : 0) }' <<<"$figures"
}

# Has a backend export each of the members by its name.
members_export() {
    local i
    mkdir -p "$work/exports"
    for ((i = 0; i < members; i++)); do ln -f "$work/member$i" "$work/exports/member$i"; done
    nbdkit --foreground --unix "$work/backend.sock" file dir="$work/exports" >"$work/backend.log" 2>&1 &
    backend=$!
    for _ in {1..200}; do
        if nbdinfo --size "nbd+unix:///member0?socket=$work/backend.sock" >/dev/null 2>&1; then return; fi
        sleep 0.05
    done
    cat "$work/backend.log" >&2
    return 1
}

section_members() {
    local run how i load options
    : >"$here/members"
    for ((run = 0; run < pairs; run++)); do
        for how in files exports; do
            local devices=()
            [[ $how == files ]] || members_export
            for ((i = 0; i < members; i++)); do
                if [[ $how == files ]]; then devices+=("$work/member$i"); else
                    devices+=("nbd+unix:///member$i?socket=$work/backend.sock")
                fi
            done
            serve_array "unix:$work/nbd.sock" 5 "${devices[@]}"
            await "nbd+unix:///bench5?socket=$work/nbd.sock"
            for load in "${loads[@]}"; do
                IFS='|' read -r load options _ <<<"$load"
                printf '%s\t%s\t%s\n' "$how" "$load" \
                    "$(members_measure "nbd+unix:///bench5?socket=$work/nbd.sock" "$region_mib" "$options")" >>"$here/members"
            done
            stop_server
            stop_backend
            rm -f "$work"/*.sock
        done
    done
    echo "RAID5 of $members, median of $pairs."
    echo
    echo "| load | files | exports | ratio | files CPU us/IO | exports CPU us/IO | ratio |"
    echo "|---|---|---|---|---|---|---|"
    for load in "${loads[@]}"; do
        local unit field figures=()
        IFS='|' read -r load _ unit <<<"$load"
        for field in $([[ $unit == IOPS ]] && echo 3 || echo 4) 5; do
            for how in files exports; do
                figures+=("$(awk -F'\t' -v h="$how" -v l="$load" -v f="$field" '$1 == h && $2 == l { print $f }' \
                    "$here/members" | median)")
            done
        done
        awk -v l="$load" -v u="$unit" -v a="${figures[0]}" -v b="${figures[1]}" -v c="${figures[2]}" \
            -v e="${figures[3]}" 'BEGIN {
                printf "| %s | %.0f %s | %.0f %s | %.2f | %.1f | %.1f | %.2f |\n", l, a, u, b, u, b / a, c, e, e / c
            }'
    done
}
