# SPDX-License-Identifier: GPL-2.0
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
