# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash disable=SC2154 # $receive_log
#
# Login sessions: a message bus, systemd-logind with KillUserProcesses=yes, and a session as su(1) opens it. Sourced by run.

# in_this_machine UNIT...: they start without the targets that this machine has not reached.
in_this_machine() {
	local unit dropins
	for unit; do
		dropins=/run/systemd/system/$unit.d
		mkdir -p "$dropins"
		printf '[Unit]\nDefaultDependencies=no\n' >"$dropins/machine.conf"
	done
}

# start_logind: the distribution's units, without a place on this machine's read-only root.
start_logind() {
	in_this_machine dbus.socket dbus.service systemd-logind.service user-runtime-dir@.service
	printf '[Service]\nStateDirectory=\n' >>/run/systemd/system/systemd-logind.service.d/machine.conf
	mkdir -p /run/systemd/logind.conf.d
	# root is excluded unless there is a list of others.
	printf '[Login]\nKillUserProcesses=yes\nKillExcludeUsers=nobody\n' >/run/systemd/logind.conf.d/kill.conf
	# A session of this class wants no service manager of the user.
	cat >/run/su-l <<-END
		auth sufficient pam_rootok.so
		account required pam_permit.so
		session required pam_systemd.so class=background-light
	END
	mount --bind /run/su-l /etc/pam.d/su-l
	systemctl daemon-reload
	systemctl start dbus.socket systemd-logind.service
}

# in_session COMMAND...: runs it in the background of a login session, which lasts until log_out.
in_session() {
	: >"$receive_log"
	rm -f /run/logout
	mkfifo /run/logout
	su -l root -c "$(printf '%q ' "$@") & read -r _ </run/logout" >>"$receive_log" 2>&1 &
}

# log_out SESSION: and waits until nothing is left of the session. Its processes are killed by systemd-logind.
log_out() {
	echo >/run/logout
	wait_for "session $1 is over" session_is_over "$1"
}
session_is_over() { ! loginctl show-session "$1" >/dev/null 2>&1; }

# session_of PROGRAM: of which one process runs.
session_of() {
	local group
	group=$(sed -n 's/^0:://p' "/proc/$(pgrep -x "$1")/cgroup")
	echo "$1 is in $group" >&2
	[[ $group =~ ^/user.slice/user-0.slice/session-([a-z0-9]+).scope$ ]]
	echo "${BASH_REMATCH[1]}"
}
