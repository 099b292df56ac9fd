# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash disable=SC2154 # $receive_log
#
# vmemd as a service, by its unit: systemd keeps the descriptors of its regions when it dies, and ends one that is stuck. Sourced by run.

vmemd=$VMEM_BUILD/target/release/vmemd
memory_of_services=/dev/shm/memory

# start_service NAME ARGUMENT...: the service vmemd@NAME with these arguments, and with what $service_options has in addition.
start_service() {
	local name=$1 dropin=/run/systemd/system/vmemd@$1.service.d/test.conf
	shift
	install -D -m 644 -t /run/systemd/system "$VMEM_TOP/tools/vmemd/systemd/vmemd@.service"
	in_this_machine "vmemd@$name.service"
	mkdir -p "${dropin%/*}" /run/vmemd
	echo "VMEMD_ARGUMENTS=$*" >"/run/vmemd/$name"
	# This machine has no /etc of its own.
	cat >"$dropin" <<-END
		[Unit]
		ConditionPathExists=
		[Service]
		EnvironmentFile=
		EnvironmentFile=/run/vmemd/$name
		ExecStart=
		ExecStart=$vmemd \$VMEMD_ARGUMENTS
		StandardOutput=append:$receive_log
		StandardError=append:$receive_log
		$service_options
	END
	systemctl daemon-reload
	systemctl start "vmemd@$name"
}
service_options=

show() { systemctl show -P "$2" "vmemd@$1"; }

# start_source_of_services: memory of random bytes, and a vmemd that serves it.
start_source_of_services() {
	: >"$receive_log"
	head -c 1M /dev/urandom >"$memory_of_services"
	"$vmemd" serve --listen 127.0.0.1:8636 "memory=$memory_of_services" >/run/source.log 2>&1 &
	source=$!
	wait_for "the source listens" grep -q listening /run/source.log
}

# start_destination: the region memory. Only what a program touches comes, so that a lost request is one that is waited for for ever;
# and a program that touches a page while there is no daemon gets SIGBUS. Descriptor 9 is one of the region from then on.
start_destination() {
	start_service memory --source 127.0.0.1:8636 --no-background --prefetch 0 --on-death sigbus
	exec 9<>/dev/vmem/memory
}

# state_of_memory: 1 a daemon is attached, 2 it is ready, 4 the region is plain; a sum.
state_of_memory() { sed -n 's/^vmem-state:[[:space:]]*//p' "/proc/$BASHPID/fdinfo/9"; }
waits_for_a_page() { [ "$(sed -n 's/^vmem-waiters:[[:space:]]*//p' "/proc/$BASHPID/fdinfo/9")" -ge 1 ]; }
takes_the_request() { waits_for_a_page && [ "$(sed -n 's/^vmem-queued:[[:space:]]*//p' "/proc/$BASHPID/fdinfo/9")" = 0 ]; }

# read_memory: a program that reads all of it, and finds what the source has.
read_memory() {
	cmp "$memory_of_services" /run/vmem/memory &
	reader=$!
}

# stays_attached COMMAND...: until COMMAND succeeds, the region has a daemon whenever it is looked at.
stays_attached() {
	local looks=0 until=$((SECONDS + 60))
	while true; do
		[ "$(state_of_memory)" = 3 ]
		looks=$((looks + 1))
		! "$@" || break
		[ "$SECONDS" -lt "$until" ]
	done
	echo "the region had a daemon, at each of $looks looks"
	[ "$(state_of_memory)" = 3 ]
}

is_kept() { [ "$(show memory NFileDescriptorStore)" = "$1" ]; }
has_restarted() { [ "$(show memory NRestarts)" -ge 1 ]; }
runs_again() { [ "$(show "$1" NRestarts)" -ge 1 ] && [ "$(show "$1" ActiveState)" = active ]; }
no_daemon() { [ "$(state_of_memory)" = 0 ]; }
has_failed() { [ "$(show memory ActiveState)" = failed ]; }
has_exited() { [ "$(show memory SubState)" = exited ]; }
has_ended() { ! kill -0 "$1" 2>/dev/null; }

a_service_whose_vmemd_is_killed_keeps_its_regions() {
	local source reader restart
	start_source_of_services
	start_destination
	wait_for "systemd keeps the region" is_kept 1
	kill -STOP "$source"
	read_memory
	# vmemd has taken the request, and has no answer.
	wait_for "a page is waited for" takes_the_request
	kill -KILL "$(show memory MainPID)"
	stays_attached has_restarted
	waits_for_a_page
	kill -CONT "$source"
	wait "$reader"
	said 'region memory: goes on with the descriptor that systemd has kept'
	# A restart is no detach, either.
	systemctl restart vmemd@memory &
	restart=$!
	stays_attached has_ended "$restart"
	wait "$restart"
	is_kept 1
	# An end is.
	systemctl stop vmemd@memory
	wait_for "the region has no daemon" no_daemon
	[ "$(show memory Result)" = success ]
}

a_service_that_is_stuck_is_started_again() {
	local source reader service_options=WatchdogSec=8
	start_source_of_services
	kill "$source"
	wait "$source"
	start_service source serve --listen 127.0.0.1:8636 "memory=$memory_of_services"
	start_destination
	wait_for "systemd keeps the region" is_kept 1
	# Those that have nothing to do are not stuck.
	sleep 12
	[ "$(show memory NRestarts)" = 0 ]
	[ "$(show source NRestarts)" = 0 ]
	kill -STOP "$(show memory MainPID)"
	read_memory
	stays_attached runs_again memory
	wait "$reader"
	kill -STOP "$(show source MainPID)"
	wait_for "the source is started again" runs_again source
}

# A service that stays active when its process has ended: systemd would keep the descriptor.
a_service_lets_go_of_a_region_that_is_complete() {
	local source service_options=RemainAfterExit=yes
	start_source_of_services
	start_service memory --source 127.0.0.1:8636 --detach-unmapped
	wait_for "vmemd has ended" has_exited
	[ "$(show memory Result)" = success ]
	is_kept 0
}

a_service_that_is_started_again_gets_pages_of_no_other_memory() {
	local source
	start_source_of_services
	start_destination
	wait_for "systemd keeps the region" is_kept 1
	kill -KILL "$(show memory MainPID)" "$source"
	wait "$source" || true
	rm "$memory_of_services"
	start_source_of_services
	wait_for "vmemd has failed" has_failed
	[ "$(show memory ExecMainStatus)" = 7 ]
	no_daemon
}

# systemd passes a file that it opens just as it passes what it has kept.
a_service_refuses_a_descriptor_that_is_no_region() {
	local source service_options=OpenFile=/dev/null:memory@1
	start_source_of_services
	if start_service memory --source 127.0.0.1:8636; then return 1; fi
	[ "$(show memory ExecMainStatus)" = 1 ]
	said 'systemd has kept a descriptor as "memory@1", with which vmemd cannot go on: it is not the descriptor of a region'
}

clean_up_services() {
	systemctl stop 'vmemd@*' 2>/dev/null || true
	systemctl reset-failed 'vmemd@*' 2>/dev/null || true
	rm -rf /run/systemd/system/vmemd@*.service.d /run/vmemd "$memory_of_services"
}
