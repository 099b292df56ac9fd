# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# How the tests of vm/run are made. A boot for each. Sourced, after lib.sh.

passed=0 failed=0

# it NAME STATUS PATTERN OPTION... -- COMMAND...: the run ends with STATUS and prints a line with PATTERN. $group is the
# first part of the test's name.
it() {
	local name=$1 want=$2 pattern=$3 status=0 output
	shift 3
	output=$("$VMEM_TOP/tools/testing/vm/run" --name selftest --mem 512M "$@" 2>&1) || status=$?
	# shellcheck disable=SC2154
	if [ "$status" = "$want" ] && grep -qE -- "$pattern" <<<"$output"; then
		echo "test $group::$name ... ok"
		passed=$((passed + 1))
	else
		echo "test $group::$name ... FAILED"
		printf 'status %s, wanted %s and "%s"; output:\n%s\n' "$status" "$want" "$pattern" "$output"
		failed=$((failed + 1))
	fi
}

# left NAME FILE PATTERN: the last machine has left FILE, with a line with PATTERN.
left() {
	if grep -qE -- "$3" "$VMEM_BUILD/vm/selftest/$2"; then
		echo "test $group::$1 ... ok"
		passed=$((passed + 1))
	else
		echo "test $group::$1 ... FAILED"
		echo "build/vm/selftest/$2 has no line with \"$3\""
		failed=$((failed + 1))
	fi
}

# finish: the summary, and the status.
finish() {
	echo "test result: $passed passed; $failed failed; 0 ignored;"
	[ "$failed" = 0 ]
}
