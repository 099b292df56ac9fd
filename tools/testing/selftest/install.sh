# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash disable=SC2154 # $work and `it` are those of selftest/run
#
# `make install` and `make uninstall`: what the one has put, the other takes away. Sourced by selftest/run.

# The programs that were built, or what answers like them where there are none.
stand_in() {
	# shellcheck disable=SC2016 # expanded by the script that is written
	printf '#!/bin/sh\necho "$0 $2: a script"\n' >"$work/programs/$1"
	chmod +x "$work/programs/$1"
}
mkdir -p "$work/programs"
echo "licences" >"$work/programs/NOTICES"
for program in vmemd vmemctl; do
	if [ -x "$VMEM_BUILD/target/release/$program" ] && "$VMEM_BUILD/target/release/$program" completions bash >/dev/null 2>&1; then
		cp "$VMEM_BUILD/target/release/$program" "$work/programs"
	else
		stand_in "$program"
	fi
done

# to PREFIX COMMAND...: packaging/install with the tree of these tests.
to() { DESTDIR=$work/tree PREFIX=$1 "$VMEM_TOP/packaging/install" "${@:2}"; }
# Everything in the tree, for comparisons.
contents() { (cd "$work/tree" && find . -mindepth 1 -printf '%y %m %P %s\n' | sort); }
is_empty() { [ ! -e "$work/tree" ] || [ -z "$(find "$work/tree" -mindepth 1 -print -quit)" ]; }
has() { [ -s "$work/tree$1" ] || { echo "no $1" && return 1; }; }

installs() {
	rm -rf "$work/tree"
	to /usr/local files "$work/programs" || return
	local file
	for file in /usr/local/sbin/vmemd /usr/local/sbin/vmemctl /usr/local/share/man/man8/vmemctl.8 /etc/logrotate.d/vmem \
		/usr/local/share/doc/vmem-tools/NOTICES /usr/local/lib/systemd/system/run-vmem.mount /usr/local/lib/systemd/system/vmemd@.service /usr/local/share/bash-completion/completions/vmemd \
		/usr/local/share/zsh/site-functions/_vmemctl /usr/local/share/fish/vendor_completions.d/vmemctl.fish; do
		has "$file" || return
	done
}
uninstalls() { to /usr/local remove && { is_empty || { contents && return 1; }; }; }
keeps_what_is_not_its_own() {
	rm -rf "$work/tree"
	mkdir -p "$work/tree/usr/local/sbin" "$work/tree/etc/empty"
	echo kept >"$work/tree/usr/local/sbin/other"
	contents >"$work/before"
	# Twice, as for an upgrade, and a file that somebody else puts into a directory of ours.
	to /usr/local files "$work/programs" && to /usr/local files "$work/programs" || return
	to /usr/local remove && contents | diff "$work/before" - || return
	mkdir -p "$work/tree/usr/local/share/vmem"
	to /usr/local files "$work/programs" && echo kept >"$work/tree/usr/local/share/vmem/other" && to /usr/local remove || return
	has /usr/local/share/vmem/other && has /usr/local/sbin/other && [ ! -e "$work/tree/usr/local/share/vmem/apparmor" ]
}
keeps_configuration_of_others() {
	rm -rf "$work/tree"
	mkdir -p "$work/tree/etc/logrotate.d"
	echo kept >"$work/tree/etc/logrotate.d/vmem"
	# Twice: the second one has a record.
	to /usr/local files "$work/programs" && to /usr/local files "$work/programs" || return
	grep -qx kept "$work/tree/etc/logrotate.d/vmem" && to /usr/local remove && grep -qx kept "$work/tree/etc/logrotate.d/vmem"
}
takes_a_relative_destdir() (
	rm -rf "$work/tree"
	cd "$work" || return
	DESTDIR=tree "$VMEM_TOP/packaging/install" files programs || return
	has /usr/local/sbin/vmemd && has /usr/local/lib/vmem/installed && DESTDIR=tree "$VMEM_TOP/packaging/install" remove && is_empty
)
refuses_a_relative_prefix() {
	rm -rf "$work/tree"
	! to usr/local files "$work/programs" 2>"$work/said" && grep -q "relative path" "$work/said" && is_empty
}
removes_nothing_without_a_record() { rm -rf "$work/tree" && ! to /usr/local remove; }
installs_the_module() {
	rm -rf "$work/tree"
	to /usr/local module "$VMEM_KDIR" "$VMEM_BUILD/module" && find "$work/tree/lib/modules" -name 'vmem.ko*' | grep -q updates/vmem.ko
}

module_says_the_version() { [ "$(modinfo -F version "$VMEM_BUILD/module/vmem.ko")" = "$("$VMEM_TOP/packaging/version")" ]; }

it install_puts_programs_pages_and_completions installs
it uninstall_leaves_an_empty_tree uninstalls
it uninstall_keeps_what_is_not_its_own keeps_what_is_not_its_own
it install_keeps_the_configuration_of_others keeps_configuration_of_others
it install_takes_a_relative_destdir takes_a_relative_destdir
it install_refuses_a_relative_prefix refuses_a_relative_prefix
it uninstall_without_a_record_removes_nothing removes_nothing_without_a_record
# Kbuild's own modules_install, with the module that was built for the virtual machine.
if [ -e "$VMEM_BUILD/module/vmem.ko" ] && [ -e "$VMEM_KDIR" ]; then
	it install_puts_the_module installs_the_module
	it uninstall_takes_the_module_away uninstalls
	it module_has_the_version_of_everything module_says_the_version
fi
