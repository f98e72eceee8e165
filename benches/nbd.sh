#!/bin/bash
# Compares raidctl with nbdkit and qemu-nbd as servers: fio's nbd engine, unix socket, the same disks, one run.
# Prints a table for each section; those beside the servers are in benches/nbd/. See --help; docs/PERFORMANCE.md has results and how to read them.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

usage() {
    cat <<'END'
usage: benches/nbd.sh [--quick] [--memory DIR] [--disk DIR] [--only SECTION]... [--levels "0 1 5 10"]

  --quick         one short run of each instead of the median of three (five where runs are compared in pairs)
  --memory DIR    where the members in memory are (default /dev/shm)
  --disk DIR      where the members on a disk are (default target/; about 3 GiB are needed in each place)
  --only SECTION  this section alone; may be given several times
  --levels LIST   the RAID levels to measure in the sections memory and disk

Sections, each with a table in Markdown:

  memory, disk    raidctl, nbdkit and qemu-nbd as servers of the same place
  tls             the same copies over loopback TCP in clear and over TLS, raidctl and nbdkit
  idle            an active client alone and beside 1,000 idle connections
  sparse          reads of data that is not zero, with and without the search for holes
  members         an array of files, and of the same files exported by nbdkit

In memory and disk, for each server and each of four loads: IOPS or MiB/s (median, and the spread of the runs in percent),
the ratio to `nbdkit file` on one file in the same place, and the CPU time of the server for each I/O, in microseconds, by
/proc/PID/stat (user + system; what the kernel does for a server in its own threads counts for none of them).
On a disk, nbdkit and its like answer from the page cache, where raidctl and qemu-nbd use O_DIRECT.
Needs fio, nbdkit, qemu-utils, libnbd-bin, openssl and jq. Takes about ten minutes; with --quick about three.
END
}

members=4 member_mib=320 region_mib=256 runs=3 pairs=5 run_ms=1500
sections="memory disk tls idle sparse members" only="" levels="0 1 5 10"
declare -A parent=([memory]=/dev/shm [disk]=${CARGO_TARGET_DIR:-target})
while (($#)); do
    case $1 in
        --quick) runs=1 pairs=1; shift ;;
        --memory) parent[memory]=$2; shift 2 ;;
        --disk) parent[disk]=$2; shift 2 ;;
        --only) only+=" $2"; shift 2 ;;
        --levels) levels=$2; shift 2 ;;
        --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done
for section in $only; do
    [[ " $sections " == *" $section "* ]] || { echo "no section $section; there are: $sections" >&2; exit 2; }
done
sections=${only:-$sections}
export PATH=$PATH:/usr/sbin:/sbin
for program in fio nbdkit qemu-nbd nbdinfo nbdcopy openssl jq; do
    command -v "$program" >/dev/null || { echo "no program $program; ./test installs it" >&2; exit 1; }
done

raidctl=${RAIDCTL_BIN:-}
if [[ -z $raidctl ]]; then
    cargo build --quiet --release -p nbd-server --bin raidctl
    raidctl=$(realpath "${CARGO_TARGET_DIR:-target}")/release/raidctl
fi

scratch=() server="" backend=""
clean_up() {
    stop_server
    stop_backend
    rm -rf "${scratch[@]}"
}
stop_backend() {
    local front=$server
    server=$backend backend=""
    stop_server
    server=$front
}
stop_server() {
    [[ -n $server ]] || return 0
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    server=
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# name, fio's options, unit. Loads run in this order, so that what is read has been written.
loads=(
    "seq write 1M|--rw=write --bs=1M --iodepth=8|MiB/s"
    "seq read 1M|--rw=read --bs=1M --iodepth=8|MiB/s"
    "rand read 4K|--rw=randread --bs=4k --iodepth=32|IOPS"
    "rand write 4K|--rw=randwrite --bs=4k --iodepth=32|IOPS"
)

# The time a process (the server) has been on a processor, in ticks (fields 14 and 15, behind the name in parentheses).
ticks() {
    local stat
    stat=$(<"/proc/${1:-$server}/stat")
    # shellcheck disable=SC2086 # the fields are to be split
    set -- ${stat##*) }
    echo $((${12} + ${13}))
}
ticks_per_second=$(getconf CLK_TCK)

# Waits until the server answers at $1, for ten seconds at most.
await() {
    for _ in {1..200}; do
        if nbdinfo --size "$1" >/dev/null 2>&1; then return; fi
        if ! kill -0 "$server" 2>/dev/null; then break; fi
        sleep 0.05
    done
    return 1
}

# Runs load $3 ("options") of $2 MiB at URI $1, and prints: IOPS MiB/s CPU-microseconds-per-I/O.
measure() {
    local uri=$1 mib=$2 before after
    before=$(ticks)
    # shellcheck disable=SC2086 # options are words
    fio --name=load --ioengine=nbd --uri="$uri" --size="${mib}m" --time_based --runtime="${run_ms}ms" \
        --norandommap --randrepeat=0 --output-format=json --output="$work/fio.json" $3 >"$work/fio.log" 2>&1 ||
        { cat "$work/fio.log" "$work/log" >&2; return 1; }
    after=$(ticks)
    jq -r --argjson ticks $((after - before)) --argjson hz "$ticks_per_second" '
        .jobs[0] | (if .write.total_ios > 0 then .write else .read end) as $io
        | [$io.iops, $io.bw_bytes / 1048576, $ticks / $hz * 1000000 / $io.total_ios] | @tsv' "$work/fio.json"
}

# Measures every load on the running server and appends "place server load iops mibs cpu" to the results.
measure_all() {
    local place=$1 name=$2 uri=$3 mib=$4 load options figures
    for load in "${loads[@]}"; do
        IFS='|' read -r load options _ <<<"$load"
        figures=$(measure "$uri" "$mib" "$options")
        printf '%s\t%s\t%s\t%s\n' "$place" "$name" "$load" "$figures" >>"$results"
    done
}

serve_peer() {
    local kind=$1 file=$2
    case $kind in
        nbdkit) nbdkit --foreground --unix "$work/nbd.sock" file "$file" >"$work/log" 2>&1 & ;;
        qemu-nbd)
            qemu-nbd --persistent --shared=8 --format=raw --aio=io_uring --cache=none --discard=unmap \
                --socket="$work/nbd.sock" "$file" >"$work/log" 2>&1 &
            ;;
        qemu-nbd-cached)
            qemu-nbd --persistent --shared=8 --format=raw --aio=threads --cache=writeback --discard=unmap \
                --socket="$work/nbd.sock" "$file" >"$work/log" 2>&1 &
            ;;
    esac
    server=$!
    await "nbd+unix:///?socket=$work/nbd.sock"
}

# One round of all servers in one place.
round() {
    local place=$1 level uri devices=()
    work=$2
    for ((i = 0; i < members; i++)); do devices+=("$work/member$i"); done
    uri="nbd+unix:///?socket=$work/nbd.sock"
    if serve_peer nbdkit "$work/file"; then measure_all "$place" "nbdkit file" "$uri" "$region_mib"; fi
    stop_server
    rm -f "$work/nbd.sock"
    if serve_peer qemu-nbd "$work/file"; then
        measure_all "$place" "qemu-nbd io_uring" "$uri" "$region_mib"
    else
        echo "qemu-nbd --aio=io_uring --cache=none does not run in $work: $(tail -n1 "$work/log")" >>"$notes"
        stop_server
        if serve_peer qemu-nbd-cached "$work/file"; then measure_all "$place" "qemu-nbd threads" "$uri" "$region_mib"; fi
    fi
    stop_server
    rm -f "$work/nbd.sock"
    for level in $levels; do
        "$raidctl" create "bench$level" --level "$level" --chunk 64K --assume-clean --force "${devices[@]}" >/dev/null
        RAIDCTL_CONTROL=$work/control.sock "$raidctl" serve --listen "unix:$work/nbd.sock" "${devices[@]}" \
            >"$work/log" 2>&1 &
        server=$!
        uri="nbd+unix:///bench$level?socket=$work/nbd.sock"
        if await "$uri"; then
            measure_all "$place" "raidctl RAID$level" "$uri" "$region_mib"
        else
            echo "raidctl does not serve a RAID$level in $work: $(tail -n1 "$work/log")" >>"$notes"
        fi
        stop_server
        rm -f "$work/nbd.sock" "$work/control.sock"
    done
}

# Everything is measured in files that are filled, so that no server writes into holes.
prepare() {
    local dir=$1
    dd if=/dev/urandom of="$dir/file" bs=1M count="$member_mib" status=none
    for ((i = 0; i < members; i++)); do cp "$dir/file" "$dir/member$i"; done
    sync
}

# The middle of the numbers on stdin, one a line.
median() {
    sort -g | awk '{ value[NR] = $1 } END { print value[int((NR + 1) / 2)] }'
}

# Serves a fresh array of level $2 over devices $3... at $1 (as --listen takes it, with further options of serve).
serve_array() {
    local listen=$1 level=$2
    shift 2
    "$raidctl" create "bench$level" --level "$level" --chunk 64K --assume-clean --force "$@" >/dev/null
    # shellcheck disable=SC2086 # options are words
    RAIDCTL_CONTROL=$work/control.sock "$raidctl" serve --listen $listen "$@" >"$work/log" 2>&1 &
    server=$!
}

# A TCP port of 127.0.0.1 that nobody listens at.
free_port() {
    local port
    for _ in {1..100}; do
        port=$((20000 + RANDOM % 20000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
    return 1
}

table() {
    local units="" load unit
    for load in "${loads[@]}"; do
        IFS='|' read -r load _ unit <<<"$load"
        units+="$load=$unit;"
    done
    awk -F'\t' -v units="$units" '
        function median(list, n,   values, i, j, t) {
            n = split(list, values, " ")
            for (i = 2; i <= n; i++)
                for (j = i; j > 1 && values[j - 1] + 0 > values[j] + 0; j--) {
                    t = values[j]; values[j] = values[j - 1]; values[j - 1] = t
                }
            low = values[1]; high = values[n]
            return values[int((n + 1) / 2)]
        }
        BEGIN {
            n = split(units, pairs, ";")
            for (i = 1; i < n; i++) { split(pairs[i], pair, "="); unit[pair[1]] = pair[2]; loads[i] = pair[1] }
            nloads = n - 1
        }
        {
            key = $1 FS $2
            if (!($1 in places)) { places[$1] = 1; place[++nplaces] = $1 }
            if (!(key in seen)) { seen[key] = 1; order[++count] = key }
            rate[key, $3] = rate[key, $3] " " (unit[$3] == "IOPS" ? $4 : $5)
            cpu[key, $3] = cpu[key, $3] " " $6
        }
        END {
            row = "| %-6s | %-17s | %-13s | %7s %-5s | %6s | %9s | %9s | %9s |\n"
            printf row, "place", "server", "load", "rate", "", "spread", "to nbdkit", "CPU us/IO", "to nbdkit"
            print "|---|---|---|---|---|---|---|---|"
            for (p = 1; p <= nplaces; p++) for (l = 1; l <= nloads; l++) for (i = 1; i <= count; i++) {
                split(order[i], name, FS); key = order[i]; base = name[1] FS "nbdkit file"; load = loads[l]
                if (name[1] != place[p]) continue
                reference = median(rate[base, load]); reference_cpu = median(cpu[base, load])
                used = median(cpu[key, load])
                value = median(rate[key, load])
                printf row, name[1], name[2], load, sprintf("%.0f", value), unit[load],
                    value ? sprintf("%.0f%%", (high - low) / value * 100) : "-",
                    reference ? sprintf("%.2f", value / reference) : "-", sprintf("%.1f", used),
                    reference_cpu ? sprintf("%.2f", used / reference_cpu) : "-"
            }
        }' "$results"
}

# The servers beside each other, in the places in $1.
section_servers() {
    local place run
    # The rounds of all servers alternate, so that a disturbance of the machine hits all of them.
    for ((run = 0; run < runs; run++)); do
        for place in $1; do round "$place" "${directory[$place]}"; done
    done
    sort -u "$notes"
    table
}

here=$(mktemp -d)
scratch+=("$here")
results=$here/results notes=$here/notes
touch "$results" "$notes"
declare -A directory
servers="" prepared=memory
for section in $sections; do
    case $section in
        memory | disk) servers+=" $section" ;;
    esac
    case $section in
        disk) prepared="memory disk" ;;
    esac
done
for place in $prepared; do
    mkdir -p "${parent[$place]}"
    directory[$place]=$(mktemp -d "$(realpath "${parent[$place]}")/raidbench.XXXXXX")
    scratch+=("${directory[$place]}")
    prepare "${directory[$place]}"
done

echo "$(nproc) CPUs, $(uname -r), $(nbdkit --version), $(qemu-nbd --version | head -n1), fio $(fio --version)"
echo "$members members of $member_mib MiB, chunk 64K, loads on the first $region_mib MiB, median of $runs runs of $run_ms ms ($pairs in pairs)"
if [[ -n $servers ]]; then
    printf '\n### Servers\n\n'
    section_servers "$servers"
fi
work=${directory[memory]}
for section in $sections; do
    case $section in
        memory | disk) ;;
        *)
            printf '\n### %s\n\n' "${section^}"
            # shellcheck disable=SC1090 # one file a section
            source "benches/nbd/$section.sh"
            "section_$section"
            ;;
    esac
done
