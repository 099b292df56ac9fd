// SPDX-License-Identifier: GPL-2.0-or-later
//! The beginning and the end of migration streams, for tests: also of crates that use this one.

/// What QEMU 10.0.13 (Debian 1:10.0.13+ds-0+deb13u1, `qemu-system-x86_64 -accel tcg -S -m 16M -machine none`) has written after
/// `migrate-continue`, with the capabilities `x-ignore-shared`, `pause-before-switchover` and `return-path`. The description of the devices has
/// 1024 bytes.
pub const END: &[u8] = b"~\0\0\0\x01\x08\0\x0b\0\0\x03\0\0\0\x01\0\0\0\0\0\0\0\x10~\0\0\0\x01\x04\0\0\0\0\x05timer\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\
      \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0~\0\0\0\0\x04\0\0\0\x03\x0bglobalstate\0\0\0\0\0\0\0\x01\0\0\0\x0aprelaunch\0\0\0\0\0\0\0\0\0\0\
      \0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
      \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0~\0\0\0\x03\0\x06\0\0\x04\0{\"configuration\": {\"vmsd_name\": \"configuration\", \"\
      version\": 1, \"fields\": [{\"name\": \"len\", \"type\": \"uint32\", \"size\": 4}, {\"name\": \"name\", \"type\": \"buffer\"\
      , \"size\": 4}], \"subsections\": [{\"vmsd_name\": \"configuration/capabilities\", \"version\": 1, \"fields\": [{\"name\": \"\
      caps_count\", \"type\": \"uint32\", \"size\": 4}, {\"name\": \"capabilities\", \"type\": \"capability\", \"size\": 16}]}]}, \
      \"page_size\": 4096, \"devices\": [{\"name\": \"timer\", \"instance_id\": 0, \"vmsd_name\": \"timer\", \"version\": 2, \"fie\
      lds\": [{\"name\": \"cpu_ticks_offset\", \"type\": \"int64\", \"size\": 8}, {\"name\": \"unused\", \"type\": \"unused_buffer\
      \", \"size\": 8}, {\"name\": \"cpu_clock_offset\", \"type\": \"int64\", \"size\": 8}]}, {\"name\": \"globalstate\", \"instan\
      ce_id\": 0, \"vmsd_name\": \"globalstate\", \"version\": 1, \"fields\": [{\"name\": \"size\", \"type\": \"uint32\", \"size\"\
      : 4}, {\"name\": \"runstate\", \"type\": \"buffer\", \"size\": 32}, {\"name\": \"has_vm_was_suspended\", \"type\": \"uint8\"\
      , \"size\": 1}, {\"name\": \"vm_was_suspended\", \"type\": \"uint8\", \"size\": 1}, {\"name\": \"unused\", \"type\": \"buffe\
      r\", \"size\": 66}]}]}";

/// What the same QEMU (`-accel tcg -m 32M -nodefaults -vga std -machine pc`, with a memory backend `ram` in a shared file) has written before the
/// first page, with the capability `x-ignore-shared`: up to the footer of the beginning of section `ram`.
pub const BEGIN: &[u8] = b"QEVM\0\0\0\x03\x07\0\0\0\x0epc-i440fx-10.0\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x01\x0fx-ignore-shared\x01\0\
      \0\0\x01\x03ram\0\0\0\0\0\0\0\x04\0\0\0\0\x03\x09 \x04\x03ram\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\x150000:00:02.0/vga.vram\0\0\0\0\x01\0\0\0\0\0\
      \0\0\xfd\0\0\0\x14/rom@etc/acpi/tables\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\x07pc.bios\0\0\0\0\0\x04\0\0\0\0\0\0\xff\xfc\0\0\x06pc.rom\0\0\0\0\0\
      \x02\0\0\0\0\0\0\0\x0c\0\0\x140000:00:02.0/vga.rom\0\0\0\0\0\x01\0\0\0\0\0\0\xfe\xbe\0\0\x15/rom@etc/table-loader\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\
      \0\0\x12/rom@etc/acpi/rsdp\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10~\0\0\0\x01";
