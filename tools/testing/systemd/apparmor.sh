# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash disable=SC2154 # $domains
#
# libvirt on a host with AppArmor, with the rules that Documentation/howto-qemu.rst has copied to libvirt's. The profiles of libvirtd and of domains are
# Debian's; libvirt confines domains only if libvirtd is confined. Sourced by run.

apparmor_rules=/etc/apparmor.d/abstractions/libvirt-qemu.d/vmem
profiles_of_libvirt=(/etc/apparmor.d/usr.sbin.libvirtd /etc/apparmor.d/usr.lib.libvirt.virt-aa-helper)

# start_apparmor: the profiles of libvirt are in force, and vmem's rules are not among theirs. libvirtd starts afterwards.
start_apparmor() {
	aa-enabled
	# Audit messages are many, and the one that says what was denied must be among those that the kernel's log gets.
	echo 0 >/proc/sys/kernel/printk_ratelimit
	make_writable /etc/apparmor.d /var/cache/apparmor
	apparmor_parser --replace "${profiles_of_libvirt[@]}"
}

# install_rules: as the howto says.
install_rules() { install -D -m 644 "$VMEM_TOP/tools/vmemctl/apparmor/libvirt-qemu" "$apparmor_rules"; }

# clean_up_apparmor: after libvirt's domains are gone.
clean_up_apparmor() {
	grep -q '^libvirtd ' /sys/kernel/security/apparmor/profiles || return 0
	rm -f "$apparmor_rules"
	systemctl stop libvirtd 2>/dev/null || true
	apparmor_parser --remove "${profiles_of_libvirt[@]}"
}

profile_of() { echo "libvirt-$(virsh domuuid "$1")"; }

# is_confined NAME: AppArmor enforces the domain's own profile on its QEMU.
is_confined() {
	local context
	context=$(cat "/proc/$(cat "/run/libvirt/qemu/$1.pid")/attr/apparmor/current")
	echo "$1 is $context"
	[ "$context" = "$(profile_of "$1") (enforce)" ]
}

# control_node_is_denied NAME: whoever opens that node could serve the regions of other guests.
control_node_is_denied() {
	local memory=memory-backend-file,id=ram,size=1M,share=on,mem-path=/dev/vmem/control words
	words=$(timeout 20 aa-exec -p "$(profile_of "$1")" -- qemu-system-x86_64 -nodefaults -display none -machine none -object "$memory" 2>&1 || true)
	grep "can't open backing store /dev/vmem/control for guest RAM: Permission denied" <<<"$words"
}

both_are_confined() {
	is_confined guest0-source
	is_confined guest0
	control_node_is_denied guest0
}

a_libvirt_domain_that_apparmor_confines_moves() {
	start_apparmor
	install_rules
	start_libvirt
	move_to_a_domain_on_a_region both_are_confined
}

is_denied() { dmesg | grep "apparmor=\"DENIED\" .* profile=\"$(profile_of guest0)\" name=\"$1\""; }

# refused_for PATH: libvirt does not start the domain guest0, because AppArmor denies PATH to its QEMU.
refused_for() {
	if virsh start --paused guest0; then return 1; fi
	grep "$1.*: Permission denied" /var/log/libvirt/qemu/guest0.log
	wait_for "the kernel says that AppArmor has denied $1" is_denied "$1"
}

apparmor_refuses_a_libvirt_domain_without_the_rules() {
	start_apparmor
	start_libvirt
	receive_region
	# The socket of an earlier domain would be denied otherwise: to be removed, and not to be made.
	rm -f "$domains/vmem-guest0.qmp"
	define guest0 '' "$(on_region)"
	refused_for "$domains/vmem-guest0.qmp"
	# All rules but that for regions.
	install_rules
	sed -i '\|/run/vmem/\* rw,|d' "$apparmor_rules"
	refused_for /run/vmem/guest0
	install_rules
	virsh start --paused guest0
	is_confined guest0
}
