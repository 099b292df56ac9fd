# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# A private apt: own lists and own sources, but this machine's ways to the archive (proxies, time-outs, credentials,
# certificates). Sourced by root/setup.

VMEM_APT=$VMEM_BUILD/setup/apt

# What the machine's apt is told about fetching, as configuration lines. Left out: which indexes it fetches, and whether
# it looks at the age of Release files (that is found out here, not believed).
host_acquire() {
	apt-config dump --no-empty 2>/dev/null | grep '^Acquire::' |
		grep -vE '^Acquire::(IndexTargets|Changelogs|CompressionTypes|Languages|GzipIndexes|Check-Valid-Until|Check-Date|By-Hash)'
	printf 'Dir::Etc::netrc "/etc/apt/auth.conf";\n'
	printf 'Dir::Etc::netrcparts "/etc/apt/auth.conf.d";\n'
}

# apt_sources MIRROR SUITE...: what the private apt reads from now on. VMEM_APT_ARCHITECTURE: another architecture than this machine's.
apt_sources() {
	local mirror=$1 suite key=/usr/share/keyrings/debian-archive-keyring.gpg
	shift
	rm -rf "$VMEM_APT"
	mkdir -p "$VMEM_APT"/{lists/partial,cache/archives/partial}
	for suite; do
		if [ -e "$key" ]; then
			printf 'deb [signed-by=%s] %s %s main\n' "$key" "$mirror" "$suite"
		else
			printf 'deb %s %s main\n' "$mirror" "$suite"
		fi
	done >"$VMEM_APT/sources.list"
	host_acquire >"$VMEM_APT/acquire.conf"
	{
		cat "$VMEM_APT/acquire.conf"
		cat <<-CONF
			Dir::Etc::main "/dev/null";
			Dir::Etc::parts "/dev/null";
			Dir::Etc::sourcelist "$VMEM_APT/sources.list";
			Dir::Etc::sourceparts "/dev/null";
			Dir::Etc::preferences "/dev/null";
			Dir::Etc::preferencesparts "/dev/null";
			Dir::State::lists "$VMEM_APT/lists";
			Dir::Cache "$VMEM_APT/cache";
			Acquire::Languages "none";
			APT::Sandbox::User "root";
		CONF
		[ -z "${VMEM_APT_ARCHITECTURE:-}" ] ||
			printf 'APT::Architecture "%s";\nAPT::Architectures { "%s"; };\n' "$VMEM_APT_ARCHITECTURE" "$VMEM_APT_ARCHITECTURE"
	} >"$VMEM_APT/apt.conf"
}

private_apt() { APT_CONFIG=$VMEM_APT/apt.conf LC_ALL=C "$@"; }

# apt_update: fetches the lists. An archive whose Release files are past their date (a frozen or slow mirror) is taken, with
# the check off, and VMEM_EXPIRED says so; nothing else is forgiven.
apt_update() {
	local log=$VMEM_LOGS/index.log
	VMEM_EXPIRED=
	if private_apt apt-get update --error-on=any >"$log" 2>&1; then
		return 0
	fi
	grep -qE 'Release file for .* is (expired|not valid anymore)' "$log" || return 1
	# shellcheck disable=SC2034 # root/setup reads it
	VMEM_EXPIRED=yes
	printf 'Acquire::Check-Valid-Until "false";\n' | tee -a "$VMEM_APT/apt.conf" >>"$VMEM_APT/acquire.conf"
	private_apt apt-get update --error-on=any >"$log" 2>&1
}

# explain LOG: one line that says what was wrong with a download or an installation.
explain() {
	local log=$1 line
	line=$(grep -aE '^(E|W|Err)[:0-9]|error:|No space left|E: ' "$log" | tail -n 1 | cut -c 1-200)
	if grep -qaE 'No space left on device' "$log"; then
		echo "the disk is full"
	elif grep -qaE 'Temporary failure resolving|Could not resolve|Name or service not known' "$log"; then
		echo "no network: a host name cannot be resolved"
	elif grep -qaE 'Network is unreachable|Could not connect|Unable to connect|Connection refused|Connection timed out|connection timed out' "$log"; then
		echo "no network: the archive does not answer"
	elif grep -qaE '407 +Proxy' "$log"; then
		echo "the proxy refuses (407)"
	elif grep -qaE 'is not valid yet' "$log"; then
		echo "the archive is from the future: this machine's clock is behind"
	elif grep -qaE 'NO_PUBKEY|not signed|KEYEXPIRED|EXPKEYSIG|BADSIG' "$log"; then
		echo "the archive's signature cannot be checked: update the package debian-archive-keyring"
	elif grep -qaiE 'certificate' "$log"; then
		echo "the archive's TLS certificate is refused: $line"
	elif grep -qaE 'Unable to locate package|was not found' "$log"; then
		echo "the mirror lacks a package: $(grep -aoE "Unable to locate package .*|Version '.*' for '.*' was not found" "$log" | head -n 1)"
	elif grep -qaE '404 +Not Found' "$log"; then
		echo "the mirror lacks a file: $(grep -aoE 'https?://[^ ]+' "$log" | tail -n 1)"
	elif [ -n "$line" ]; then
		echo "$line"
	else
		last_line "$log"
	fi
}
