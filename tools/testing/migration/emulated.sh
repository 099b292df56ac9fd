# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# What is done about an emulator of SVM that loses interrupts and machines (Documentation/testing.rst, "Guests that move"), and nowhere else. Sourced.

# pulse ACCEL: a byte a second for the machine's terminal, as long as somebody reads them: any later interrupt makes up for one that is lost.
pulse() {
	[ "$1" = tcg ] || return 0
	sleep 20
	while sleep 1 && printf '\0' 2>/dev/null; do :; done
}

# is_emulators_fault ACCEL STATUS CONSOLE: whether a machine for which vm/run has this status may have been broken by its emulator. It was not if it died
# with the module on its stack. One that hangs may have been, too.
is_emulators_fault() {
	[ "$1" = tcg ] || return 1
	case $2 in
	124 | 125) ! grep -qa '\[vmem\]' "$3" ;;
	*) return 1 ;;
	esac
}

# keep_evidence NAME DIRECTORY: what the machine NAME has left goes to DIRECTORY: its console, what its guests and the programs in it have said, and the
# registers and stacks of its processors if it died.
keep_evidence() {
	local from=$VMEM_BUILD/vm/$1 file
	rm -rf "$2"
	mkdir -p "$2"
	for file in console.log qemu.log registers out/dmesg out/results; do
		[ ! -e "$from/$file" ] || cp -r "$from/$file" "$2/"
	done
}

# measure_in_machines NAME MEMORY SECONDS JSON COMMAND...: runs COMMAND, which measures, in a virtual machine of so much memory and for so long. Its
# results go to JSON; what is there is not measured again. When an emulated machine dies of its emulator, another one goes on, 40 in all.
measure_in_machines() {
	local name=$1 memory=$2 seconds=$3 json=$4 results machine status known
	shift 4
	results=$(dirname "$json")
	mkdir -p "$results"
	# What is measured is what is built; a change that is not committed shows.
	VMEM_BENCH_COMMIT=$(git describe --always --dirty --exclude '*' 2>/dev/null || echo unknown)
	VMEM_BENCH_HOST_CPU=$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)
	VMEM_BENCH_ACCELERATOR=$(tools/testing/vm/accel)
	export VMEM_BENCH_COMMIT VMEM_BENCH_HOST_CPU VMEM_BENCH_ACCELERATOR
	export VMEM_KO=$VMEM_BUILD/module/vmem.ko
	for ((machine = 1; ; machine++)); do
		status=0 known=()
		[ ! -s "$json" ] || known=(--go-on-from "$json")
		# shellcheck disable=SC2016 # for the shell in there
		tools/testing/vm/run --name "$name" --mem "$memory" --timeout "$seconds" -- \
			sh -c '"$@" --json "$VMEM_RESULTS/measured.json"' sh "$@" "${known[@]}" 2>&1 |
			tee "${json%.json}.txt" | sed -u -n -E '/^(\[[0-9]+ (of|s)|round |vmem)/p' || status=${PIPESTATUS[0]}
		if [ -s "$VMEM_BUILD/vm/$name/out/results/measured.json" ]; then
			cp "$VMEM_BUILD/vm/$name/out/results/measured.json" "$json.new"
			mv "$json.new" "$json"
		fi
		[ "$status" != 0 ] || return 0
		keep_evidence "$name" "$results/died-$machine"
		if [ "$machine" = 40 ] || ! is_emulators_fault "$VMEM_BENCH_ACCELERATOR" "$status" "$results/died-$machine/console.log"; then
			return "$status"
		fi
		say "$name: the emulated machine has died or hung (what is left of it: $results/died-$machine): another one goes on"
	done
}
