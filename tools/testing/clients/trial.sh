# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# What the trials with other virtual machine monitors have in common: sourced by them, in the virtual machine. The guest is the one of the migration tests.

# What the guest has, and what of it the guest knows each word of.
# shellcheck disable=SC2034 # for who sources this
readonly guest_mib=256 known_mib=48
readonly bin=$VMEM_BUILD/target/release
readonly host_address=192.0.2.1 guest_address=192.0.2.2
readonly regions=/run/vmem
work=$(mktemp -d /dev/shm/trial.XXXXXX)
readonly work
pids=()
declare -A monitors

cleanup() {
	local status=$?
	[ "$status" = 0 ] || tail -n 5 "$work"/*.log >&2 || true
	for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
	exit "$status"
}
trap cleanup EXIT

step() { printf '\n[%3d s] %s\n' "$SECONDS" "$*"; }
note() { printf '        %s\n' "$*"; }
now() { date +%s%3N; }
# since MILLISECONDS: seconds since then.
since() { awk -v "ms=$(($(now) - $1))" 'BEGIN { printf "%.1f s", ms / 1000 }'; }

# wait_for WHAT COMMAND...: until COMMAND succeeds, for three minutes.
wait_for() {
	local what=$1 until=$((SECONDS + 180))
	shift
	until "$@"; do
		[ "$SECONDS" -lt "$until" ] || die "not within three minutes: $what"
		sleep 0.1
	done
}

# network NAME: a network namespace of this name, with the tap device that a guest knows.
network() {
	if ip netns list | grep -qw "$1"; then return; fi
	ip netns add "$1"
	ip -n "$1" tuntap add tap0 mode tap
	ip -n "$1" address add "$host_address/24" dev tap0
	ip -n "$1" link set tap0 up
}

# end_of NAME...: ends these monitors.
end_of() {
	local name
	for name; do
		kill -KILL "${monitors[$name]}" 2>/dev/null || true
		wait "${monitors[$name]}" 2>/dev/null || true
	done
}

# ask NAME ORDER [SECONDS]: what the guest answers. Its verdict on all of its memory for the order "verify".
ask() { printf '%s\n' "$2" | ip netns exec "$1" timeout "${3:-120}" socat -t 120 - "TCP:$guest_address:7"; }
# is_right NAME: the guest looks at all pages that it knows.
is_right() {
	local verdict
	verdict=$(ask "$1" verify) || die "guest $1 does not answer"
	[[ $verdict == *"\"pages\":$((known_mib << 8)),\"wrong\":0,"* ]] || die "guest $1: $verdict"
}

# present FILE: MiB of a region that are present.
present() { echo "$(($(stat -c '%b * %B' "$1") >> 20)) MiB"; }
# fill ARGUMENT...: starts vmemd, and waits until the region is there. Its process is $vmemd.
fill() {
	rm -f "$work/vmemd.json"
	"$bin/vmemd" --json "$@" >"$work/vmemd.json" 2>"$work/vmemd.log" &
	vmemd=$!
	pids+=("$vmemd")
	wait_for "vmemd is ready" is_ready "$vmemd"
}
is_ready() {
	kill -0 "$1" 2>/dev/null || die "vmemd has ended: $(tail -n 1 "$work/vmemd.log")"
	grep -qs '"event":"ready"' "$work/vmemd.json"
}
# ends_well PROCESS
ends_well() { wait "$1" || die "vmemd ends with $?: $(tail -n 1 "$work/vmemd.log")"; }
# begin: the module, and its file system.
begin() {
	note "$(head -n 1 "$VMEM_BUILD/clients/version"), $(uname -r)"
	modprobe -a tun
	modprobe kvm_amd 2>/dev/null || modprobe kvm_intel 2>/dev/null || true
	[ -c /dev/kvm ] || die "there is no /dev/kvm in here: the monitor needs it"
	[ -e /dev/vmem/control ] || insmod "${VMEM_KO:-$VMEM_BUILD/module/vmem.ko}"
	mkdir -p "$regions"
	mountpoint -q "$regions" || mount -t vmem vmem "$regions"
}

# finish: nothing uses the module any more.
finish() {
	umount "$regions"
	rmmod vmem
	step "Done: all of this works"
}
