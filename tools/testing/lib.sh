# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# What every script here needs: where things are, how to fail, and how a long step is shown.
# Sourced, never run.

# The checkout is mounted at its own path inside the build root and inside the VM, so a path is valid
# in all three.
VMEM_TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
VMEM_BUILD=$VMEM_TOP/build
VMEM_ROOT=${VMEM_ROOT:-$VMEM_BUILD/root}
VMEM_LOGS=$VMEM_BUILD/log
# The debug kernels, and the source that they are built from.
VMEM_DEBUG=$VMEM_BUILD/kernel-debug
# Where the kernel build tree is, as seen inside the root. A symbolic link, so that it does not carry a version.
VMEM_KDIR=/usr/src/vmem-kdir
# The same of the next kernel series, if there is one.
VMEM_KDIR_NEXT=/usr/src/vmem-kdir-next
# shellcheck disable=SC2034 # read by those who source this
readonly VMEM_TOP VMEM_BUILD VMEM_ROOT VMEM_LOGS VMEM_DEBUG VMEM_KDIR VMEM_KDIR_NEXT

say() { printf '%s\n' "vmem: $*"; }

die() {
	printf '%s\n' "vmem: error: $*" >&2
	exit 1
}

need_root() {
	[ "$(id -u)" = 0 ] || die "$1 must be run as root (it makes mounts and a chroot)"
}

# seconds SINCE: whole seconds since the EPOCHSECONDS value SINCE.
seconds() { printf '%d' $((EPOCHSECONDS - $1)); }

# last_line FILE: the last line of a log as a human wants it, cut to what fits beside a step's name.
last_line() {
	tail -c 2000 -- "$1" 2>/dev/null | tr '\r' '\n' | sed -e 's/[^[:print:]]//g' -e '/^[[:space:]]*$/d' |
		tail -n 1 | cut -c 1-70
}

# watch_step TITLE LOG SINCE PID [PROGRESS]: shows the step until PID ends. On a terminal one line that is
# written over each second, else a line every ten seconds. PROGRESS is a function that prints how far it is
# from the log.
watch_step() {
	local title=$1 log=$2 since=$3 pid=$4 progress=${5:-last_line} shown=0 now
	while kill -0 "$pid" 2>/dev/null; do
		now=$(seconds "$since")
		if [ -t 1 ]; then
			printf '\r\033[K%s: %ds %s' "$title" "$now" "$("$progress" "$log")"
		elif [ $((now - shown)) -ge 10 ]; then
			printf '%s: %ds %s\n' "$title" "$now" "$("$progress" "$log")"
			shown=$now
		fi
		sleep 0.5
	done
	[ ! -t 1 ] || printf '\r\033[K'
}

# run_step TITLE NAME PROGRESS COMMAND...: runs COMMAND with its output in $VMEM_LOGS/NAME.log and shows it as it
# goes. Returns the command's status.
run_step() {
	local title=$1 log=$VMEM_LOGS/$2.log progress=$3 since=$EPOCHSECONDS pid status=0
	shift 3
	mkdir -p "$VMEM_LOGS"
	: >"$log"
	[ -t 1 ] || printf '%s ...\n' "$title"
	"$@" >"$log" 2>&1 </dev/null &
	pid=$!
	# Interrupted: what was started must not go on alone.
	# shellcheck disable=SC2064 # the pid of now
	trap "kill_tree $pid; exit 130" INT TERM HUP
	watch_step "$title" "$log" "$since" "$pid" "$progress"
	wait "$pid" || status=$?
	trap - INT TERM HUP
	[ "$status" != 0 ] || printf '%s: done in %ds\n' "$title" "$(seconds "$since")"
	return "$status"
}

# kill_tree PID: ends a process and all that it started, children first.
kill_tree() {
	local child children=()
	read -ra children 2>/dev/null <"/proc/$1/task/$1/children" || true
	for child in "${children[@]}"; do
		kill_tree "$child"
	done
	kill -TERM "$1" 2>/dev/null || true
}

# guarded SIGNAL COMMAND...: runs COMMAND with this terminal and returns its status. However this shell ends, SIGNAL ends COMMAND.
guarded() {
	local signal=$1 pid status=0
	shift
	setpriv --pdeathsig "$signal" "$@" <&0 &
	pid=$!
	# shellcheck disable=SC2064 # the pid and the signal of now
	trap "kill -$signal $pid 2>/dev/null; wait $pid 2>/dev/null || true; exit 130" INT
	# shellcheck disable=SC2064
	trap "kill -$signal $pid 2>/dev/null; wait $pid 2>/dev/null || true; exit 143" TERM HUP
	wait "$pid" || status=$?
	trap - INT TERM HUP
	return "$status"
}
