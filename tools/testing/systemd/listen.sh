# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash disable=SC2154 # $vmemctl, $receive_log
#
# vmemctl listen, as its units start it: guests come over TLS, from this host. Sourced by run.

guest_size_of_listen=16M

# prepare_listen [OPTION...]: certificates, a template and the units, with these options for the service's vmemctl.
prepare_listen() {
	local guest_size=$guest_size_of_listen service=/run/systemd/system/vmem-listen.service.d/machine.conf
	"$vmemctl" tls init /run/authority
	"$vmemctl" tls add-host /run/authority host0 127.0.0.1
	"$vmemctl" tls add-host /run/authority stranger 127.0.0.1
	mkdir -p /run/templates
	{
		printf '%s\n' '# Any guest.' --qmp '/run/{guest}.qmp' --
		qemu_words '{qmp}' '{memory:ram}' '{guest}'
		printf '%s\n' -incoming defer
	} >/run/templates/default
	install -D -m 644 -t /run/systemd/system "$VMEM_TOP"/tools/vmemctl/systemd/vmem-listen.{socket,service}
	in_this_machine vmem-listen.socket vmem-listen.service
	# This machine has no /etc of its own.
	printf 'ConditionPathExists=\n' >>/run/systemd/system/vmem-listen.socket.d/machine.conf
	cat >>"$service" <<-END
		[Service]
		ExecStart=
		ExecStart=$vmemctl --state /run/destination --tls /run/authority/host0 --allow-name host0 listen --template /run/templates $*
		StandardOutput=append:$receive_log
		StandardError=append:$receive_log
	END
	: >"$receive_log"
	systemctl daemon-reload
	systemctl start vmem-listen.socket
}

# start_guests NAME...: as start_source.
start_guests() {
	local guest_size=$guest_size_of_listen guest words
	for guest; do
		head -c "$guest_size" /dev/urandom >"/dev/shm/$guest"
		mapfile -t words < <(qemu_words "/run/$guest.source.qmp" "/dev/shm/$guest" "$guest")
		"${words[@]}" >>/run/source.log 2>&1 &
	done
	for guest; do wait_for "the source's QEMU of $guest runs" runs "/run/$guest.source.qmp"; done
}

# move GUEST [OPTION...]: to this host, by the certificate of $as.
as=host0
move() {
	"$vmemctl" --state /run/source --tls "/run/authority/$as" migrate --qmp "/run/$1.source.qmp" --to 127.0.0.1 --mode postcopy "${@:2}" \
		>"/run/migrate.$1.log" 2>&1
}

# has_come GUEST: it runs here. Its QMP socket is vmemctl's until all of its memory is here.
has_come() { said "guest=$1 .*the guest runs at the destination"; }

# is_refused GUEST WHY: its move fails, the guest runs on, and its source has been told why.
is_refused() {
	if move "$1"; then return 1; fi
	grep -- "$2" "/run/migrate.$1.log"
	runs "/run/$1.source.qmp"
}

listen_receives_guests_at_once_and_may_be_stopped() {
	local first second
	prepare_listen
	[ "$(systemctl show -P ActiveState vmem-listen.service)" = inactive ]
	start_guests guest0 guest1
	tc qdisc replace dev lo root tbf rate 10mbit burst 256kb latency 400ms
	move guest0 &
	first=$!
	move guest1 &
	second=$!
	for guest in guest0 guest1; do wait_for "$guest runs at the destination" has_come "$guest"; done
	# Both are on their way still.
	kill -0 "$first" "$second"
	systemctl stop vmem-listen.socket vmem-listen.service
	kill -0 "$first" "$second"
	tc qdisc del dev lo root
	wait "$first"
	wait "$second"
	echo "QEMU are in $(group_of_qemu)"
	[ "$(group_of_qemu | grep -c '^/machine.slice/vmem-qemu-')" = 2 ]
	wait_for "the places are free" places_are_free
	systemctl start vmem-listen.socket
	start_guests guest2
	move guest2
	runs /run/guest2.qmp
}
places_are_free() { [ -z "$(ls /run/destination/listen)" ]; }

listen_refuses_guests_that_it_may_not_take() {
	local as first
	prepare_listen --most 1
	start_guests guest0 guest1
	as=stranger is_refused guest1 'closed\|refused'
	said 'stranger'
	as=host0
	tc qdisc replace dev lo root tbf rate 10mbit burst 256kb latency 400ms
	move guest0 &
	first=$!
	wait_for "guest0 runs at the destination" has_come guest0
	is_refused guest1 'no more than 1 guests may be on their way here at a time'
	tc qdisc del dev lo root
	wait "$first"
	# Its QEMU at the source has ended, and here is another guest that calls itself so.
	start_guests guest0
	# A QEMU that has a client lets only few others wait.
	socat -T 100 EXEC:'sleep 100' UNIX-CONNECT:/run/guest0.qmp &
	for _ in 1 2 3 4; do is_refused guest0 'a guest of the name guest0 is here'; done
	mv /run/templates/default /run/templates/guest2
	is_refused guest1 'there is no template for guest guest1'
}

strangers_keep_no_guest_out_of_listen() {
	local stranger
	prepare_listen
	start_guests guest0
	# shellcheck disable=SC2034 # the connections stay open until this shell ends
	for _ in $(seq 50); do exec {stranger}<>/dev/tcp/127.0.0.1/8637; done
	move guest0
	runs /run/guest0.qmp
	wait_for "the first strangers are cut" said 'is refused: '
	echo "lines about strangers: $(grep -c 'is refused: ' "$receive_log")"
	[ "$(grep -c 'is refused: ' "$receive_log")" -le 20 ]
}

# move_until_it_runs_here GUEST: its vmemctl is process $source.
move_until_it_runs_here() {
	tc qdisc replace dev lo root tbf rate 2mbit burst 256kb latency 400ms
	move "$1" &
	source=$!
	wait_for "$1 runs at the destination" has_come "$1"
}

# Its process here dies: the source connects again, and listen goes on with the guest.
listen_goes_on_with_a_guest_whose_process_has_died() {
	local source
	prepare_listen
	start_guests guest0
	move_until_it_runs_here guest0
	pkill -KILL -f -- '--conversation$'
	tc qdisc del dev lo root
	wait "$source"
	said 'continues the move of guest guest0, whose process has ended here'
	runs /run/guest0.qmp
}

# All vmemctl die, those of both hosts and the one that listens, which systemd starts again.
moves_through_listen_are_recovered() {
	local source
	prepare_listen
	start_guests guest0
	move_until_it_runs_here guest0
	pkill -KILL -x vmemctl
	if wait "$source"; then return 1; fi
	tc qdisc del dev lo root
	"$vmemctl" --state /run/source --tls /run/authority/host0 recover >/run/migrate.log 2>&1
	said 'continues the move of guest guest0, whose process has ended here'
	runs /run/guest0.qmp
	[[ $(group_of_qemu) == /machine.slice/vmem-qemu-* ]]
}

# listen has its address.
receive_resume_takes_the_connections_of_listen() {
	local source
	prepare_listen
	start_guests guest0
	move_until_it_runs_here guest0
	: >"$receive_log"
	pkill -KILL -x vmemctl
	if wait "$source"; then return 1; fi
	wait_for "listen is there again" said 'listening on .*8637'
	in_unit "$vmemctl" --state /run/destination --tls /run/authority/host0 receive --qmp /run/guest0.qmp --resume
	wait_for "the move is resumed" has_come guest0
	tc qdisc del dev lo root
	"$vmemctl" --state /run/source --tls /run/authority/host0 recover >/run/migrate.log 2>&1
	ends_well
	runs /run/guest0.qmp
}

clean_up_listen() {
	systemctl stop vmem-listen.socket vmem-listen.service 2>/dev/null || true
	systemctl reset-failed vmem-listen.socket vmem-listen.service 2>/dev/null || true
	rm -rf /run/authority /run/templates /run/migrate.*.log /dev/shm/guest*
}
