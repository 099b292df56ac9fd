# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash disable=SC2154 # $stamps and $steps
#
# Steps that take long and are taken once. Each leaves a stamp when it is whole, with a hash of what determined it. A step without
# its stamp is taken again; one with it is skipped. Sourced by what makes a root or a kernel; needs lib.sh and apt.sh, and
# $stamps (the directory of the stamps) and $steps (how many there are).

stamp_of() { sha256sum | cut -c 1-16; }
is_done() { [ "$(cat "$stamps/$1.done" 2>/dev/null)" = "$2" ]; }
mark_done() { printf '%s\n' "$2" >"$stamps/$1.done"; }

# remove DIRECTORY: only what is on the checkout's own file system, whatever someone may have mounted in there.
remove() { rm -rf --one-file-system -- "$1"; }

fail() { die "set-up: $1: $2 (log: $3)"; }

# begin_steps: what every set-up wants, which is to be alone.
begin_steps() {
	need_root "make setup"
	[ "$(uname -m)" = x86_64 ] || die "set-up: only amd64 machines are supported, this is $(uname -m)"
	mkdir -p "$stamps" "$VMEM_LOGS"
	exec 9>"$stamps/lock"
	if ! flock -n 9; then
		say "waiting for another set-up of this checkout"
		flock 9
	fi
}

# need_disk MIB: below build/.
need_disk() {
	local free
	free=$(df -Pk "$VMEM_BUILD" | awk 'NR == 2 { print int($4 / 1024) }')
	[ "$free" -ge "$1" ] || die "set-up: too little disk: $VMEM_BUILD has $free MiB free, $1 are needed"
}

# step NUMBER NAME TITLE HASH PROGRESS COMMAND...: see run_step.
step() {
	local number=$1 name=$2 title=$3 hash=$4 progress=$5
	shift 5
	if is_done "$name" "$hash"; then
		return
	fi
	rm -f "$stamps/$name.done"
	if ! run_step "[$number/$steps] $title" "$name" "$progress" "$@"; then
		fail "$title" "$(explain "$VMEM_LOGS/$name.log")" "$VMEM_LOGS/$name.log"
	fi
	mark_done "$name" "$hash"
}
