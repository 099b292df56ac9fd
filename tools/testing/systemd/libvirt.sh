# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash disable=SC2154 # $vmemctl, $receive_log
#
# libvirt, with the XML and the configuration that Documentation/howto-qemu.rst shows: these lines are taken from it. The two hosts are one, so the
# source's domain has another name and another QMP socket than the howto's. The domains are of type qemu: nothing that goes wrong is excused by
# the KVM of an emulated machine. Sourced by run.

howto=$VMEM_TOP/Documentation/howto-qemu.rst
domains=/var/lib/libvirt/qemu
# As many MiB have the domains here.
domain_mib=32

# howto FIRST LAST [NUMBER]: the lines from FIRST to LAST in its section on libvirt, the NUMBERth time, for a domain of that size.
howto() {
	sed -n '/^libvirt$/,/^Where the guest is$/p' "$howto" |
		awk -v first="$1" -v last="$2" -v number="${3:-1}" '
			{ line = $0; sub(/^ +/, "", line) }
			line == first && ++seen == number { on = 1 }
			on { print; found = 1 }
			on && line == last { exit }
			END { exit !found }' |
		sed "s/size=4G/size=${domain_mib}M/"
}
memory_backing() { howto '<memoryBacking>' '</memoryBacking>'; }
# The QMP socket of a source whose memory libvirt makes.
qmp_socket() { howto '<qemu:commandline>' '</qemu:commandline>' 1; }
# The memory, and what else the destination's domain wants.
on_region() { howto '<qemu:commandline>' '</qemu:commandline>' 2; }
# The same at the source.
on_file() { on_region | sed -e "/'-incoming'/d" -e "/'defer'/d" -e 's|/run/vmem/guest0|/dev/shm/vmem-guest0|'; }
of_source() { sed 's|vmem-guest0.qmp|vmem-guest0-source.qmp|'; }

# make_writable PLACE...: directories of this machine's read-only root.
make_writable() {
	local place
	for place; do
		! mountpoint -q "$place" || continue
		mkdir -p "/run/writable${place%/*}"
		cp -a "$place" "/run/writable$place"
		mount --bind "/run/writable$place" "$place"
	done
}

# start_libvirt [LINE...]: libvirtd and what belongs to it, with these lines in qemu.conf.
start_libvirt() {
	make_writable /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt
	[ -e /etc/libvirt/qemu.conf.dist ] || cp /etc/libvirt/qemu.conf /etc/libvirt/qemu.conf.dist
	{ cat /etc/libvirt/qemu.conf.dist && printf '%s\n' "$@"; } >/etc/libvirt/qemu.conf
	install -m 755 "$VMEM_BUILD/libvirt/guest" /run/guest
	in_this_machine libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service virtlogd.socket virtlogd-admin.socket \
		virtlogd.service systemd-machined.service
	systemctl daemon-reload
	systemctl start libvirtd.socket virtlogd.socket
	systemctl restart libvirtd
}

# define NAME MEMORY COMMANDLINE: a domain that has these two in its definition, and its console in /run/NAME.console.
define() {
	cat >"/run/$1.xml" <<-END
		<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
		  <name>$1</name>
		  <memory unit='MiB'>$domain_mib</memory>
		  $2
		  <os>
		    <type arch='x86_64' machine='pc'>hvm</type>
		    <kernel>/run/guest</kernel>
		  </os>
		  <devices>
		    <controller type='usb' model='none'/>
		    <serial type='file'><source path='/run/$1.console'/></serial>
		    <memballoon model='none'/>
		  </devices>
		  $3
		</domain>
	END
	virsh define --validate "/run/$1.xml"
}

domain_is() { [ "$(virsh domstate "$1")" = "$2" ]; }

# has_said NUMBER NAME: its guest, so many lines.
has_said() { [ "$(wc -l <"/run/$2.console")" -ge "$1" ]; }

# no_round_is_wrong FIRST SECOND: the consoles of a guest at the source and at the destination: each round is there, once, and found nothing wrong.
no_round_is_wrong() {
	local console=/run/both.console
	cat "/run/$1.console" "/run/$2.console" >"$console"
	# The last line may be half a line.
	head -n "$(wc -l <"$console")" "$console" | awk '
		$0 != "round " NR " wrong 0" { print "instead of round " NR ": " $0; wrong = 1 }
		END { print "rounds: " NR; exit wrong }'
}

receive_region() {
	in_unit "$vmemctl" --state /run/destination receive --qmp "$domains/vmem-guest0.qmp" --region "guest0=${domain_mib}M" \
		--owner "$(id -u libvirt-qemu)"
	wait_for "receive listens" said listening
	test -f /run/vmem/guest0
}

a_libvirt_domain_without_the_acl_does_not_find_its_region() {
	start_libvirt
	receive_region
	define guest0 '' "$(on_region | sed 's|/run/vmem/guest0|/dev/vmem/guest0|')"
	if virsh start --paused guest0; then return 1; fi
	grep "can't open backing store /dev/vmem/guest0 for guest RAM: No such file or directory" /var/log/libvirt/qemu/guest0.log
}

# move_to_a_domain_on_a_region COMMAND...: COMMAND looks at the two domains before the guest moves.
move_to_a_domain_on_a_region() {
	define guest0-source '' "$(on_file | of_source)"
	virsh start guest0-source
	wait_for "the guest works" has_said 2 guest0-source
	receive_region
	define guest0 '' "$(on_region)"
	virsh start --paused guest0
	"$@"
	migrate "$domains/vmem-guest0-source.qmp"
	ends_well
	wait_for "the destination's domain is running" domain_is guest0 running
	wait_for "the source's domain is shut off" domain_is guest0-source 'shut off'
	wait_for "the guest works at the destination" has_said 3 guest0
	no_round_is_wrong guest0-source guest0
}

a_libvirt_domain_moves_to_a_domain_on_a_region() {
	start_libvirt
	move_to_a_domain_on_a_region true
}

# libvirts_words NAME: the command line that libvirt wrote to the domain's log, changed as the howto says, one word a line.
libvirts_words() {
	local words
	# The lines of the last command, and no environment.
	eval "words=($(awk '/^LC_ALL=/ { on = 1; text = "" } on { text = text $0 "\n"; on = /\\$/ } END { printf "%s", text }' \
		"/var/log/libvirt/qemu/$1.log"))"
	set -- "${words[@]}"
	while [ "${1##*/}" != qemu-system-x86_64 ]; do shift; done
	while [ $# -gt 0 ]; do
		case "$1 ${2:-}" in
		-S\ *) ;;
		-chardev\ *id=charmonitor,* | -mon\ * | -sandbox\ * | -add-fd\ * | -object\ *'"masterKey0"'*) shift ;;
		-chardev\ *id=charserial0,*) printf '%s\n' -chardev file,id=charserial0,path=/run/destination.console && shift ;;
		-qmp\ *) printf '%s\n' -qmp 'unix:{qmp},server=on,wait=off' && shift ;;
		*) printf '%s\n' "$1" ;;
		esac
		shift
	done | sed '/"qom-type":"memory-backend-file"/s|"mem-path":"[^"]*"|"mem-path":"{memory:pc.ram}"|'
	printf '%s\n' -incoming defer
}

a_libvirt_domain_moves_to_a_qemu_that_vmemctl_starts() {
	local words
	start_libvirt 'memory_backing_dir = "/dev/shm"'
	define guest0 "$(memory_backing)" "$(qmp_socket)"
	virsh start guest0
	wait_for "the guest works" has_said 2 guest0
	ls /dev/shm/libvirt/qemu/*-guest0/pc.ram
	mapfile -t words < <(libvirts_words guest0)
	printf 'word: %s\n' "${words[@]}"
	in_unit "$vmemctl" --state /run/destination receive --qmp /run/destination.qmp -- "${words[@]}"
	wait_for "receive listens" said listening
	migrate "$domains/vmem-guest0.qmp"
	ends_well
	runs /run/destination.qmp
	wait_for "the source's domain is shut off" domain_is guest0 'shut off'
	wait_for "the guest works at the destination" has_said 3 destination
	no_round_is_wrong guest0 destination
}

# clean_up_libvirt: after its QEMUs have been killed.
clean_up_libvirt() {
	local name
	systemctl -q is-active libvirtd || return 0
	for name in guest0 guest0-source; do
		virsh destroy "$name" || true
		virsh undefine "$name" || true
	done >/dev/null 2>&1
	rm -rf /dev/shm/vmem-guest0 /dev/shm/libvirt /run/*.console
}
