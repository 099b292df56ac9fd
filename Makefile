# SPDX-License-Identifier: GPL-2.0
#
# The front end. Kbuild describes the module; tools/Cargo.toml the userspace; what needs a Debian 13 or a virtual machine
# makes it by itself (tools/testing/README.md).

KDIR	?= /lib/modules/$(shell uname -r)/build
DESTDIR	?=
PREFIX	?= /usr/local

TOP	:= $(CURDIR)
BUILD	:= $(TOP)/build
# A command inside the build root; in the virtual machine.
ROOT	:= tools/testing/root/run
VM	:= tools/testing/vm/run
# The stock kernel's build tree, as the root sees it.
VMKDIR	:= /usr/src/vmem-kdir

.PHONY: module
module:			## vmem.ko for this machine's kernel (KDIR=... for another), in build/host
	@tools/testing/module $(KDIR) $(BUILD)/host
	@echo "vmem: built build/host/vmem.ko"

.PHONY: sign
sign: module		## signs it for Secure Boot (KEY=... CERT=..., otherwise with the key of dkms), and says how the firmware gets to know the key
	@KEY="$(KEY)" CERT="$(CERT)" packaging/sign $(KDIR) $(BUILD)/host/vmem.ko

.PHONY: demo
demo: build		## what vmem is for, shown in a virtual machine
	@$(VM) --name demo --timeout 600 -- tools/testing/demo/run

.PHONY: demo-vm demo-checkpoint
demo-vm: build		## a running guest moves to another host; then the same by QEMU's own ways, side by side
	@tools/testing/migration/demo
demo-checkpoint: build	## a running guest is kept in S3 every few seconds, its host fails, and it goes on on another host
	@tools/testing/migration/demo checkpoint

.PHONY: test
test: build		## unit, functional and migration tests, those under systemd, and those of the virtual machine's runner
	@tools/testing/test unit vm functional hibernation migration systemd

.PHONY: unit
unit: build		## the tests that need no kernel
	@tools/testing/test unit

.PHONY: functional
functional: build	## the tests in the virtual machine (FILTER=... for some)
	@tools/testing/test functional

.PHONY: migration test-migration
migration: build	## the short tests that move guests (FILTER=... for some of all)
	@tools/testing/test migration
test-migration: build	## all tests that move guests, for an hour or more (FILTER=..., VMEM_SEED=..., VMEM_DRAWS=..., VMEM_MOVES=...)
	@tools/testing/test migrations

.PHONY: migration-qemu
migration-qemu: build	## guests that move between the QEMU of Debian 13 and that of its backports
	@tools/testing/root/qemu
	@tools/testing/test qemu

.PHONY: systemd
systemd: build		## the tests of vmemctl on a host that systemd runs (FILTER=... for some)
	@tools/testing/test systemd

.PHONY: deb test-packages
deb: setup		## Debian packages (vmem-dkms, vmem-tools, python3-vmem, vmem-doc), in build/deb; lintian looks at them
	@$(ROOT) packaging/programs $(BUILD)/deb-target
	@tools/testing/root/packaging run packaging/deb $(BUILD)/deb-target/release $(BUILD)/deb
test-packages: build	## installs, uses, upgrades and purges these packages, in a virtual machine
	@tools/testing/test packages

.PHONY: test-kernels
test-kernels: build	## vmem-kernel-rust and dkms build the module for the kernels of Debian's archive, some of which then run tests (FILTER=... for some lines of the list)
	@tools/testing/test kernels

.PHONY: hibernation
hibernation: build	## the functional tests whose virtual machine hibernates
	@tools/testing/test hibernation

.PHONY: arm64 test-arm64
arm64: setup		## vmem.ko, the programs and the samples for arm64, in build/arm64 and build/target/aarch64-unknown-linux-gnu
	@tools/testing/root/arm64
	@echo "vmem: building for arm64"
	@tools/testing/root/arm64 run tools/testing/cross
test-arm64: arm64	## the functional tests in an emulated arm64 machine (FILTER=... for some)
	@tools/testing/test arm64

.PHONY: death
death: build		## everybody dies a thousand times, with faults pending (VMEM_ROUNDS=..., VMEM_SEED=...)
	@tools/testing/test death

.PHONY: stress
stress: build		## everything at once, at random (SECONDS=600, SEED=...)
	@VMEM_STRESS_SECONDS=$(or $(SECONDS),600) VMEM_STRESS_SEED=$(or $(SEED),$(VMEM_STRESS_SEED),0) tools/testing/test stress

.PHONY: files-suites
files-suites: build	## what of pjdfstest and xfstests fits the file system of regions (PJDFSTEST=DIR XFSTESTS=DIR: checkouts of these)
	@PJDFSTEST="$(PJDFSTEST)" XFSTESTS="$(XFSTESTS)" tools/testing/files/suites

.PHONY: test-debug test-kcsan
test-debug: build	## functional tests, failures on demand and stress on a debug kernel (KASAN, lockdep, kmemleak), which is built first
	@tools/testing/test debug
test-kcsan: build	## functional tests and stress on a kernel that looks for races (KCSAN), which is built first
	@tools/testing/test kcsan

.PHONY: test-mutants
test-mutants: build	## breaks the module on purpose, in many ways, and sees that the tests find each
	@tools/testing/test mutants

.PHONY: bench
bench: build		## how fast it is, against userfaultfd and plain memory (PUBLISH=1 puts it into the documentation)
	@tools/vmem-bench/bench

.PHONY: bench-migration
bench-migration: build	## the ways to move a guest, side by side (ROUNDS=, WAYS=, LOADS=, RATE=, CONTINUE=1; PUBLISH=1 puts tables and plots into the documentation)
	@tools/testing/migration/bench

.PHONY: bench-checkpoint
bench-checkpoint: build	## checkpoints beside what QEMU and userfaultfd do (ROUNDS=, PARTS=, CONTINUE=1; PUBLISH=1 puts tables and a plot into the documentation)
	@tools/testing/migration/bench-checkpoint

.PHONY: bench-deaths
bench-deaths: build	## how many moved guests and machines die, in each way of moving (DEATHS_SECONDS=..., CONFIGURATIONS=...)
	@tools/testing/migration/endure $(CONFIGURATIONS)

.PHONY: trial-firecracker trial-cloud-hypervisor
trial-firecracker: build	## snapshots and clones of Firecracker on files of regions (FIRECRACKER=PATH of a binary that you have)
	@tools/testing/clients/firecracker
trial-cloud-hypervisor: build	## a guest of Cloud Hypervisor on files of regions (CLOUD_HYPERVISOR=PATH of a binary that you have)
	@tools/testing/clients/cloud-hypervisor

.PHONY: check
check: setup		## formatting, lints, licences, generated files, the module on the next kernel series
	@tools/testing/test check

.PHONY: docs
docs: setup		## the documents as a site, in build/docs/html, and the crates' in build/target/doc
	@$(ROOT) tools/testing/docs
	@echo "vmem: the documents are build/docs/html/index.html"

.PHONY: setup
setup:			## the build root and the kernel's Rust outputs (again only when something changed)
	@tools/testing/root/setup
	@[ -z "$${VMEM_QEMU:-}$${VMEM_MACHINE_QEMU:-}" ] || tools/testing/root/qemu

.PHONY: build
build: module-vm tools samples guest	## everything for the virtual machine

.PHONY: module-vm
module-vm: setup	## vmem.ko for the stock kernel of the virtual machine, in build/module
	@echo "vmem: building the module"
	@$(ROOT) tools/testing/module $(VMKDIR) $(BUILD)/module

.PHONY: tools
tools: setup		## vmemd, vmemctl, their libraries, the functional tests, in build/target/release
	@echo "vmem: building the programs"
	@$(ROOT) tools/testing/cargo build --release --workspace

.PHONY: samples
samples: setup tools	## the samples; those in C go to build/samples
	@[ ! -e samples/Makefile ] || $(ROOT) $(MAKE) -s --no-print-directory -C samples O=$(BUILD)/samples

.PHONY: guest
guest: tools		## the guest of the migration tests, in build/guest
	@$(ROOT) tools/testing/guest/image $(BUILD)/guest

.PHONY: bindings schemas
bindings: setup		## writes the generated bindings anew
	@tools/testing/check/bindings --write
schemas: setup		## writes the JSON Schemas of what the programs print anew
	@$(ROOT) tools/testing/schemas

.PHONY: fmt
fmt: setup		## formats all Rust
	@tools/testing/check/rustfmt --write

.PHONY: shell vm-shell
shell: setup		## a shell in the build root
	@$(ROOT) bash
vm-shell: build		## a shell in the virtual machine
	@$(VM) --name shell --interactive --timeout 0 -- bash -i

# The module for this machine's kernel, the programs built by this machine's cargo.
.PHONY: install uninstall
install: module		## module, programs, man pages and completions for this machine (DESTDIR, PREFIX)
	@command -v cargo >/dev/null || { echo "vmem: error: no cargo here: it builds the programs" >&2; exit 1; }
	@cargo build --release --locked --manifest-path tools/Cargo.toml --target-dir $(BUILD)/host-target -p vmemd -p vmemctl
	@packaging/notices >$(BUILD)/host-target/release/NOTICES
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" packaging/install module $(KDIR) $(BUILD)/host
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" packaging/install files $(BUILD)/host-target/release
.PHONY: install-python
install-python:		## the Python module for this machine's Python (DESTDIR, PREFIX, PYTHONDIR)
	@cargo build --release --locked --manifest-path tools/Cargo.toml --target-dir $(BUILD)/host-target -p vmem-python
	@packaging/notices >$(BUILD)/host-target/release/NOTICES
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" PYTHONDIR="$(PYTHONDIR)" packaging/install python $(BUILD)/host-target/release
uninstall:		## removes what `make install` has put there (DESTDIR, PREFIX)
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" packaging/install remove

.PHONY: clean distclean
clean:			## what was built; the build root stays
	rm -rf $(BUILD)/host $(BUILD)/arm64/module $(BUILD)/arm64/samples $(BUILD)/guest $(BUILD)/host-target $(BUILD)/module $(BUILD)/module-* $(BUILD)/mutants $(BUILD)/samples $(BUILD)/target \
		$(BUILD)/vm $(BUILD)/results $(BUILD)/deb $(BUILD)/deb-target $(BUILD)/docs $(BUILD)/hibernation $(BUILD)/kernels $(BUILD)/libvirt
distclean:		## everything
	rm -rf --one-file-system $(BUILD)

.PHONY: help
help:			## this
	@sed -n 's/^\([a-z][a-z0-9 -]*\):[^#]*## \(.*\)/\1\t\2/p' Makefile | awk -F'\t' '{ printf "  %-12s %s\n", $$1, $$2 }'

# One thing after the other: the steps use all processors themselves.
.NOTPARALLEL:
