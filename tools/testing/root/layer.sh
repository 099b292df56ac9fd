# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash disable=SC2154 # $layer, $packages and $stamps
#
# Layers over the root: packages that only one purpose wants. The root itself stays as it is. The layer is build/NAME/layer. It is made once for each
# root; then it takes no time and needs no network.
#
# Sourced by the script root/NAME; needs lib.sh, and $layer (that name), $packages (an array) and $stamps (see step.sh). The script runs
# "root/NAME in-layer COMMAND..." and "root/NAME install" in namespaces: layer_inner is for these.

layers=$VMEM_BUILD/$layer

# over UPPER: mounts the root at build/NAME/root, with the layer over it, and what is written into UPPER. In a mount namespace of its own.
over() {
	local lower=$VMEM_ROOT
	[ "$1" = "$layers/layer.new/upper" ] || lower=$layers/layer:$lower
	mkdir -p "$1" "$1.work" "$layers/root"
	mount -t overlay -o "lowerdir=$lower,upperdir=$1,workdir=$1.work" "vmem-$layer" "$layers/root"
}

# layer_inner ARGUMENT...: the second half of run_in_layer and of make_layer; returns if the arguments are for neither.
layer_inner() {
	case ${1:-} in
	in-layer)
		shift
		# Only what was written is kept, and what is written now is not.
		mount -t tmpfs tmpfs "$layers/scratch"
		over "$layers/scratch/upper"
		exec env "VMEM_ROOT=$layers/root" "$@"
		;;
	install)
		over "$layers/layer.new/upper"
		# No service is to be started, and none of the root's files is left out of the index of manual pages.
		# shellcheck disable=SC2016 # expanded in there
		exec env "VMEM_ROOT=$layers/root" "$VMEM_TOP/tools/testing/root/run" bash -c \
			'printf "#!/bin/sh\nexit 101\n" >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d &&
			DEBIAN_FRONTEND=noninteractive dpkg --force-unsafe-io -i build/"$1"/archives/*.deb && rm /usr/sbin/policy-rc.d' bash "$layer"
		;;
	esac
}

# The root's own stamp: a new root has no such layer.
layer_stamp() { { cat "$stamps/root.done" && echo "${packages[@]}" && declare -f make_layer; } | stamp_of; }

make_layer() {
	apt_sources "$(cat "$stamps/mirror")" trixie trixie-updates
	apt_update || return
	remove "$layers/layer.new"
	remove "$layers/layer.new.work"
	remove "$layers/archives"
	# The root's packages are there; nothing of them is changed.
	private_apt apt-get install -y --download-only --no-install-recommends -o "Dir::State::status=$VMEM_ROOT/var/lib/dpkg/status" \
		-o Debug::NoLocking=1 "${packages[@]}" &&
		mkdir -p "$layers/archives" && mv "$VMEM_APT"/cache/archives/*.deb "$layers/archives" &&
		unshare --mount --propagation private "$VMEM_TOP/tools/testing/root/$layer" install &&
		remove "$layers/layer" && mv "$layers/layer.new/upper" "$layers/layer" && remove "$layers/layer.new" &&
		remove "$layers/archives"
}

# run_in_layer COMMAND...: COMMAND of this machine, with VMEM_ROOT leading to the root with the layer.
run_in_layer() {
	mkdir -p "$layers/scratch"
	guarded KILL unshare --mount --propagation private "$VMEM_TOP/tools/testing/root/$layer" in-layer "$@"
}
