# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# Makes the file system of a small machine from what the build root has. Sourced inside the build root.

# initramfs_begin DIR INIT APPLET...: a new tree, $tree, which is removed at the end, with INIT as its first process and these applets of busybox.
initramfs_begin() {
	local dir=$1 init=$2 applet
	shift 2
	tree=$(mktemp -d "$dir/tree.XXXXXX")
	trap 'rm -rf "$tree"' EXIT
	mkdir -p "$tree"/{bin,dev,modules,proc,sys,lib64}
	cp "$init" "$tree/init"
	cp "$(command -v busybox)" "$tree/bin/busybox"
	for applet; do
		ln -s busybox "$tree/bin/$applet"
	done
}

# initramfs_program FILE: with its libraries, where it looks for them.
initramfs_program() {
	strip -o "$tree/bin/${1##*/}" "$1"
	ldd "$1" | grep -o '/[^ ]*' | while read -r library; do
		install -D "$library" "$tree$library"
	done
}

# initramfs_modules UNAME MODULE...: with those that they want, each once; modules/order says in which order.
initramfs_modules() {
	local uname=$1 module file name
	shift
	for module; do
		modprobe --set-version "$uname" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
	done | awk '!seen[$0]++' | while read -r file; do
		name=$(basename "$file" .xz)
		xz -dc "$file" >"$tree/modules/$name"
		echo "$name" >>"$tree/modules/order"
	done
}

# initramfs_pack FILE: not compressed, since unpacking takes longer in an emulated machine than reading.
initramfs_pack() {
	(cd "$tree" && find . | sort | busybox cpio -o -H newc -R 0:0 2>/dev/null) >"$1.new"
	mv "$1.new" "$1"
}
