# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash disable=SC2154 # $work and `it` are those of selftest/run
#
# `make sign`, with the kernel's own sign-file and keys that are made here. Sourced by selftest/run.

kdir=/usr/src/vmem-kdir
# new_key NAME: NAME.key and NAME.der, of a subject NAME.
new_key() {
	openssl req -new -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=$1" -keyout "$work/$1.key" -outform DER -out "$work/$1.der" 2>/dev/null
}
# sign ARGUMENT...: no key of this machine is used.
sign() { DKMS=$work/dkms "$VMEM_TOP/packaging/sign" "$@" >"$work/said" 2>&1; }
signer() { modinfo -F signer "$work/sign.ko"; }
# says TEXT COMMAND...: COMMAND fails, with this text.
says() { ! "${@:2}" && grep -qF -- "$1" "$work/said" && grep -q "^vmem: error: " "$work/said"; }

signs() {
	KEY=$work/one.key CERT=$work/one.der sign "$kdir" "$work/sign.ko" && [ "$(signer)" = one ]
}
# As large as with one signature, and the module is as it was in front of it.
signs_again() {
	local before
	before=$(stat -c %s "$work/sign.ko")
	KEY=$work/two.key CERT=$work/two.der sign "$kdir" "$work/sign.ko" && [ "$(signer)" = two ] || return
	[ "$(stat -c %s "$work/sign.ko")" = "$before" ] && cmp -n "$(stat -c %s "$work/unsigned.ko")" "$work/unsigned.ko" "$work/sign.ko"
}
takes_the_key_of_dkms() {
	mkdir -p "$work/dkms"
	cp "$work/one.key" "$work/dkms/mok.key" && cp "$work/one.der" "$work/dkms/mok.pub" || return
	sign "$kdir" "$work/sign.ko" && [ "$(signer)" = one ] && rm -r "$work/dkms"
}
leaves_a_module_that_it_cannot_sign() {
	cp "$work/sign.ko" "$work/before.ko"
	KEY=$work/one.key CERT=$work/two.der says "do $work/one.key and $work/two.der fit?" sign "$kdir" "$work/sign.ko" || return
	cmp "$work/before.ko" "$work/sign.ko" && [ -z "$(find "$work" -name 'sign.ko.*')" ]
}

new_key one
new_key two
cp "$VMEM_BUILD/module/vmem.ko" "$work/sign.ko"
cp "$work/sign.ko" "$work/unsigned.ko"
it sign_signs signs
it sign_replaces_a_signature signs_again
it sign_takes_the_key_of_dkms takes_the_key_of_dkms
it sign_leaves_a_module_that_it_cannot_sign leaves_a_module_that_it_cannot_sign
it sign_names_the_key_that_is_needed says "openssl req" sign "$kdir" "$work/sign.ko"
KEY=$work/none CERT=$work/one.der it sign_names_a_key_that_is_not_there says "the key $work/none cannot be read" sign "$kdir" "$work/sign.ko"
it sign_names_a_missing_module says "there is no $work/none.ko" sign "$kdir" "$work/none.ko"
it sign_names_a_tree_without_the_tool says "there is no $work/scripts/sign-file" sign "$work" "$work/sign.ko"
