#!/bin/bash
# Two hosts on one machine, to try a run over a network before there is a cluster: two network namespaces joined by a
# virtual cable, a Ray node on each, and a command on the first. It needs no rights where the kernel lets users make
# namespaces; it touches no network of the machine, and all it started is gone when the command ends.
#
#   deploy/namespaces/two-hosts.sh gimp pretrain --config run.yaml --train.workers 2 --train.cpus_per_worker 2
#
# Each host has GIMP_RAY_CPUS logical CPUs (3) and sees the same disk. With cpus_per_worker more than half of them, one
# worker fits a host, and CPUs are left for Ray Data.
set -euo pipefail

if [[ ${1:-} != --inside ]]; then
    folder=$(mktemp -d /tmp/gimp-hosts-XXXX)   # a short path: Ray's sockets are in it
    status=0
    unshare --user --map-root-user --net --uts --mount --pid --fork --kill-child --mount-proc \
        bash "${BASH_SOURCE[0]}" --inside "$folder" "$@" || status=$?
    rm -rf "$folder"
    exit "$status"
fi

folder=$2
shift 2
cpus=${GIMP_RAY_CPUS:-3}

# the second host: a process that does nothing, in namespaces of its own
hostname host-a
unshare --net --uts sleep infinity &
second=$!
own=$(readlink /proc/self/ns/net)
until its=$(readlink "/proc/$second/ns/net") && [[ $its != "$own" ]]; do
    kill -0 "$second"
    sleep 0.05
done
on_second() { nsenter --target "$second" --net --uts -- "$@"; }

on_second hostname host-b
ip link add cable type veth peer name cable netns "$second"
ip link set lo up
ip address add 10.77.0.1/24 dev cable
ip link set cable up
on_second ip link set lo up
on_second ip address add 10.77.0.2/24 dev cable
on_second ip link set cable up

# nobody else is on this network
export RAY_AUTH_MODE=disabled
# torch looks its network up by the host's name, which no one knows here
export GLOO_SOCKET_IFNAME=cable
unset RAY_ADDRESS
started() {
    "$@" --num-cpus "$cpus" --num-gpus 0 --object-store-memory 200000000 --disable-usage-stats >> "$folder/start.log" 2>&1 ||
        { cat "$folder/start.log" >&2; exit 1; }
}
started ray start --head --node-ip-address 10.77.0.1 --port 6379 --temp-dir "$folder"
started on_second ray start --address 10.77.0.1:6379 --node-ip-address 10.77.0.2
export RAY_ADDRESS=10.77.0.1:6379
"$@"
