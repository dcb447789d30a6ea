#!/usr/bin/env bash
# A Ray cluster on this machine's loopback: a head without slots and workers, until Ctrl-C or kill.
#
#   cluster/local.sh                       two workers of one CPU each, job port 8265
#   cluster/local.sh --workers 4 --cpus 2 --port 6400 --dashboard-port 8300 --client-port 10100 --dir /tmp/second
#
# In another terminal:  source /tmp/distsub-ray-$UID/env.sh; ray job submit --working-dir . -- distsub run ...
# It ends only what it started: another Ray on this machine goes on.
set -euo pipefail
umask 077

workers=2 cpus=1 gpus=0 port=6379 dashboard_port=8265 client_port=10001 dashboard_host=127.0.0.1
dir=/tmp/distsub-ray-$UID # short: Ray's sockets lie below it, and the path of a socket ends at 107 characters

fail() {
    echo "local.sh: $*" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
        --help | -h)
            sed -n '2,9s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        --workers | --cpus | --gpus | --port | --dashboard-port | --client-port)
            [[ ${2-} =~ ^[0-9]+$ ]] || fail "$1 needs a number, got \"${2-}\""
            ;;
        --dashboard-host | --dir)
            [ -n "${2-}" ] || fail "$1 needs a value"
            ;;
        *) fail "unknown option $1; known: --workers --cpus --gpus --port --dashboard-port --client-port --dashboard-host --dir" ;;
    esac
    name=${1#--}
    printf -v "${name//-/_}" %s "$2"
    shift 2
done
[ ${#dir} -le 32 ] || fail "--dir $dir is too long for Ray's sockets; give at most 32 characters, such as /tmp/second"

root=$(cd "$(dirname "$0")/.." && pwd)
if ! command -v ray >/dev/null && [ -x "$root/.venv/bin/ray" ]; then
    PATH=$root/.venv/bin:$PATH # jobs find distsub there too
fi
command -v ray >/dev/null || fail "no ray here; run make quickstart once, or activate an environment that has distsub"

for taken in "$port" "$dashboard_port" "$client_port"; do
    if (: </dev/tcp/127.0.0.1/"$taken") 2>/dev/null; then
        fail "port $taken is taken; give others with --port, --dashboard-port and --client-port"
    fi
done

mkdir -p "$dir"
[ -O "$dir" ] || fail "$dir belongs to somebody else; give another with --dir"
chmod 700 "$dir"
exec 9>"$dir/lock"
flock --nonblock 9 || fail "a cluster runs in $dir already; give another directory with --dir"
rm -rf "$dir"/node-* "$dir"/*.log
token=$dir/token
od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$token"

unset RAY_ADDRESS RAY_API_SERVER_ADDRESS RAY_AUTH_TOKEN RAY_TMPDIR
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token RAY_USAGE_STATS_ENABLED=0
# Ray takes 127.0.0.1 for a wish to be reached and listens everywhere, except where clusters are switched off.
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
export RAY_JOB_STOP_WAIT_TIME_S=90              # a stopped sweep finishes its rows; Ray would kill it after 3 s
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # Ctrl-C means now

pids=()
# shellcheck disable=SC2317,SC2329
stop() {
    trap '' INT TERM HUP
    local pid
    disown -a
    for pid in $(printf '%s\n' ${pids[@]+"${pids[@]}"} | tac); do # workers before their head
        kill -TERM "$pid" 2>/dev/null || true                      # ray start ends its own, within seconds
        for _ in $(seq 100); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL -- "-$pid" 2>/dev/null || true
    done
    rm -f "$token" "$dir/env.sh"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

launch() { # a node's name, then the command that starts it, in a process group of its own; until it runs
    local log=$dir/$1.log
    for _ in 1 2 3; do # on a busy machine Ray gives up on itself after 30 s
        setsid "${@:2}" </dev/null >"$log" 2>&1 9>&- &
        pids+=($!)
        while kill -0 "${pids[-1]}" 2>/dev/null; do
            ! grep -qs "Ray runtime started" "$log" || return 0
            sleep 0.2
        done
        kill -KILL -- "-${pids[-1]}" 2>/dev/null || true
        unset "pids[-1]"
    done
    tail -n 5 "$log" >&2
    echo "local.sh: $1 did not start; all it said is in $log" >&2
    exit 1
}

# With clusters switched off no further node may join, so a worker's launcher, and nothing below it, switches them on.
worker='
from ray._private import ray_constants, services
from ray.scripts.scripts import main
ray_constants.ENABLE_RAY_CLUSTER = True
services.resolve_ip_for_localhost = lambda host: host
main()
'

common=(--node-ip-address=127.0.0.1 --disable-usage-stats --dashboard-agent-listen-port=0
    --min-worker-port=0 --max-worker-port=0 --block)
launch head ray start --head --port="$port" --ray-client-server-port="$client_port" --temp-dir="$dir/node-0" \
    --dashboard-host="$dashboard_host" --dashboard-port="$dashboard_port" --num-cpus=0 --num-gpus=0 "${common[@]}"
for number in $(seq "$workers"); do
    # A directory each: nodes that share one take a running job's files away from each other.
    launch "worker-$number" "$(dirname "$(command -v ray)")/python" -c "$worker" start --address="127.0.0.1:$port" \
        --temp-dir="$dir/node-$number" --num-cpus="$cpus" --num-gpus="$gpus" "${common[@]}"
done

cat >"$dir/env.sh" <<END
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token RAY_USAGE_STATS_ENABLED=0 RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard_port
export PATH="$(dirname "$(command -v ray)"):\$PATH"
END
echo "ready: $workers workers of $cpus CPUs and $gpus GPUs; logs in $dir; Ctrl-C ends it. In another terminal:"
echo "  source $dir/env.sh"
echo "  ray job submit --working-dir . -- distsub run sweeps/quickstart.toml --out \$PWD/results/quickstart"

wait -n "${pids[@]}" || true
echo "local.sh: a node ended by itself; the logs in $dir say why" >&2
exit 1
