# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash disable=SC2154 # $work and `it` are those of selftest/run
#
# What the package vmem-dkms runs on a machine: vmem-kernel-rust, the guard of dkms, and what its removal does. /usr is one of each test's own, with
# programs that answer as dpkg, dkms, rustc and the recipe of the build tree do. Sourced by selftest/run.

kernel=7.3.0-test
mkdir -p "$work/fakes"
fake() { cat >"$work/fakes/$1" && chmod +x "$work/fakes/$1"; }
# /tmp/machine is what the machine of a test has: versions of packages, and how dkms and the recipe end.
fake dpkg-query <<'END'
#!/bin/sh
for package; do :; done
version=$(cat "/usr/machine/version/$package" 2>/dev/null) || case $package in
	linux-headers-* | vmem-dkms) exit 1 ;;
	gcc-16) [ ! -e /usr/machine/lacks-gcc ] || exit 1; version=1 ;;
	linux-source-*) version=$(cat /usr/machine/version/linux-headers-7.3.0-test) ;;
	*) version=1 ;;
esac
case $3 in *Status*) echo "installed $version" ;; *) printf '%s' "$version" ;; esac
END
fake dkms <<'END'
#!/bin/sh
echo "dkms $*" >>/usr/machine/dkms
exit "$(cat /usr/machine/dkms-status 2>/dev/null || echo 0)"
END
fake rustc <<'END'
#!/bin/sh
echo "rustc 1.85.0"
END
# The outputs are there long before the end.
fake kdir <<'END'
#!/bin/sh
tree=${VMEM_LINUX_TREE:-/usr/src/vmem-linux-$2}
case $1 in
unpack) rm -rf "$tree" && mkdir -p "$tree/rust" ;;
prepare) : >"$tree/rust/libkernel.rmeta" && [ ! -e /usr/machine/recipe-fails ] && : >"$tree/whole" ;;
esac
END

# Runs in a mount namespace: see machine.
machine_setup() {
	local library=/usr/lib/vmem-dkms program
	mkdir -p "$work/usr"
	mount -t tmpfs tmpfs "$work/usr"
	mkdir "$work/usr/upper" "$work/usr/work"
	mount -t overlay -o "lowerdir=/usr,upperdir=$work/usr/upper,workdir=$work/usr/work" machine /usr
	mkdir -p /usr/machine/version "$library/tools/testing/root" "/usr/lib/modules/$kernel/build"
	rm -rf /usr/src
	mkdir /usr/src
	for program in dpkg-query dkms rustc; do cp "$work/fakes/$program" /usr/local/bin; done
	cp "$work/fakes/kdir" "$library/tools/testing/root"
	[ ! -e "$VMEM_TOP/packaging/dkms/tree" ] || cp "$VMEM_TOP/packaging/dkms/tree" "$library"
	printf 'CONFIG_RUST=y\nCONFIG_PAGE_SIZE_4KB=y\nCONFIG_RUSTC_VERSION_TEXT="rustc 1.85.0"\n' >"/usr/lib/modules/$kernel/build/.config"
	echo 7.3-1 >"/usr/machine/version/linux-headers-$kernel"
	echo 0.1.0 >/usr/machine/version/vmem-dkms
}
kernel_rust() { "$VMEM_TOP/packaging/dkms/vmem-kernel-rust" "$kernel"; }
made=/usr/src/vmem-linux-$kernel
# Whether dkms builds for the kernel.
is_built_by_dkms() {
	(
		# shellcheck disable=SC2034 # the guard reads it
		kernelver=$kernel kernel_source_dir=/lib/modules/$kernel/build
		unset BUILD_EXCLUSIVE_KERNEL
		. "$VMEM_TOP/packaging/debian/vmem-dkms.dkms"
		[ -z "${BUILD_EXCLUSIVE_KERNEL:-}" ]
	)
}
fails() { if "$@"; then return 1; fi; }
# exits STATUS COMMAND...
exits() {
	local status=0
	"${@:2}" || status=$?
	[ "$status" = "$1" ]
}

failed_run_is_made_anew() {
	touch /usr/machine/recipe-fails
	exits 1 kernel_rust
	fails is_built_by_dkms
	[ ! -e /usr/machine/dkms ]
	rm /usr/machine/recipe-fails
	kernel_rust
	[ -e "$made/whole" ]
	[ ! -e "$made.new" ]
	is_built_by_dkms
}
killed_run_is_made_anew() {
	# What is left when power fails in the middle.
	mkdir -p "$made/rust"
	: >"$made/rust/libkernel.rmeta"
	fails is_built_by_dkms
	kernel_rust
	[ -e "$made/whole" ]
}
second_run_makes_nothing() {
	kernel_rust
	touch /usr/machine/recipe-fails
	kernel_rust | grep -q "has them already"
}
other_version_is_made_anew() {
	kernel_rust
	rm "$made/whole"
	echo 7.3-2 >"/usr/machine/version/linux-headers-$kernel"
	fails is_built_by_dkms
	kernel_rust
	[ -e "$made/whole" ]
	is_built_by_dkms
	grep -q "dkms build vmem/0.1.0 -k $kernel --force" /usr/machine/dkms
}
kernel_of_other_rustc_is_passed_over() {
	kernel_rust
	is_built_by_dkms
	sed -i s/1.85.0/1.90.0/ "/usr/lib/modules/$kernel/build/.config"
	fails is_built_by_dkms
	exits 1 kernel_rust
}
old_kernel_is_refused_before_anything_is_made() {
	local said
	kernel=7.2.12-test
	mkdir -p "/usr/lib/modules/$kernel/build"
	printf 'CONFIG_RUST=y\nCONFIG_RUSTC_VERSION_TEXT="rustc 1.85.0"\n' >"/usr/lib/modules/$kernel/build/.config"
	echo 7.2-1 >"/usr/machine/version/linux-headers-$kernel"
	said=$(exits 1 kernel_rust 2>&1)
	[ "$said" = "vmem-kernel-rust: kernel $kernel is too old: vmem needs 7.3 or later" ]
	[ -z "$(ls /usr/src)" ]
}
compiler_of_the_kernel_is_asked_for() {
	local said
	echo 'CONFIG_CC_VERSION_TEXT="x86_64-linux-gnu-gcc-16 (Debian 16.2.0-4) 16.2.0"' >>"/usr/lib/modules/$kernel/build/.config"
	touch /usr/machine/lacks-gcc
	said=$(exits 1 kernel_rust 2>&1)
	[ "$said" = "vmem-kernel-rust: packages are missing; type: apt install gcc-16" ]
}
only_vmem_is_built() {
	kernel_rust
	printf 'dkms %s vmem/0.1.0 -k %s --force\n' build "$kernel" install "$kernel" | diff - /usr/machine/dkms
}
failures_of_dkms_are_1() {
	local status
	for status in 10 77; do
		echo "$status" >/usr/machine/dkms-status
		exits 1 kernel_rust
	done
}
trees_of_removed_kernels_are_dropped() {
	mkdir /usr/src/vmem-linux-7.2.0-old{,.new} /usr/src/vmem-linux-7.4.0-other
	touch /usr/src/vmem-linux-7.2.0-old.log
	echo 7.4-1 >/usr/machine/version/linux-headers-7.4.0-other
	kernel_rust
	[ "$(cd /usr/src && echo ./*)" = "./vmem-linux-7.3.0-test ./vmem-linux-7.3.0-test.log ./vmem-linux-7.4.0-other" ] || { ls /usr/src && return 1; }
}
purge_removes_every_tree() {
	mkdir /usr/src/vmem-linux-7.2.0-old{,.new} /usr/src/kept
	touch /usr/src/vmem-linux-7.2.0-old.log
	sh "$VMEM_TOP/packaging/debian/vmem-dkms.postrm" remove
	[ -e /usr/src/vmem-linux-7.2.0-old ]
	sh "$VMEM_TOP/packaging/debian/vmem-dkms.postrm" purge
	[ "$(ls /usr/src)" = kept ]
}
build_says_why_it_cannot() {
	local said
	said=$(exits 1 "$VMEM_TOP/packaging/dkms/build" "$kernel" "/lib/modules/$kernel/build" 0.1.0 2>&1)
	[ "$said" = "vmem: error: the headers of kernel $kernel lack the outputs of its Rust build; to make them and the module, type: vmem-kernel-rust $kernel" ]
}

uninstall_runs_depmod_for_each_release() {
	printf '#!/bin/sh\necho "$*" >>/usr/machine/depmod\n' >/usr/local/sbin/depmod
	chmod +x /usr/local/sbin/depmod
	mkdir -p /usr/local/lib/vmem /usr/lib/modules/{7.3.0,7.4.0}-test/updates
	for release in 7.3.0-test 7.4.0-test; do
		touch "/usr/lib/modules/$release/updates/vmem.ko" "/usr/lib/modules/$release/updates/vmem.ko.xz"
		printf 'f /lib/modules/%s/updates/%s\n' "$release" vmem.ko "$release" vmem.ko.xz >>/usr/local/lib/vmem/installed
	done
	env -u DESTDIR -u PREFIX "$VMEM_TOP/packaging/install" remove
	printf '%s\n' "-a 7.3.0-test" "-a 7.4.0-test" | diff - /usr/machine/depmod
}

# machine NAME: the test in a shell of its own, which ends at the first thing that is not so.
machine() {
	# shellcheck disable=SC2016 # expanded by that shell
	unshare --mount --propagation unchanged bash -c '
		set -euo pipefail
		. "$1/tools/testing/selftest/packaging.sh"
		machine_setup
		"$2"' machine "$VMEM_TOP" "$1"
}
if [ "${0##*/}" = run ]; then
	export VMEM_TOP work kernel
	for name in failed_run_is_made_anew killed_run_is_made_anew second_run_makes_nothing other_version_is_made_anew kernel_of_other_rustc_is_passed_over \
		old_kernel_is_refused_before_anything_is_made compiler_of_the_kernel_is_asked_for only_vmem_is_built failures_of_dkms_are_1 trees_of_removed_kernels_are_dropped purge_removes_every_tree build_says_why_it_cannot; do
		it "kernel_rust_$name" machine "$name"
	done
	it uninstall_runs_depmod_for_each_release machine uninstall_runs_depmod_for_each_release
fi
