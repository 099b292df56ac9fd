// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The guest of the tests with libvirt: a multiboot kernel that knows each word of a part of its memory. QEMU emulates it in a machine that may be
 * emulated itself, where a Linux guest boots for minutes.
 *
 * In each round it checks and rewrites all its pages, and says on its serial port what it has found: "round 1 wrong 0". What a word must be follows
 * from the page and the round, so a page that is lost, old or zero is wrong in the next round.
 */

typedef unsigned int u32;

#define MAGIC	0x1badb002
#define WORDS	1024
#define PAGES	4096
/* Odd: it walks through all pages, and not in their order. */
#define STRIDE	677

static const u32 header[] __attribute__((section(".multiboot"), used)) = { MAGIC, 0, -MAGIC };

/* At 2 MiB: what QEMU has read from the kernel's file is below that. */
static volatile u32 (*const pages)[WORDS] = (void *)0x200000;

static u32 first_word(u32 page, u32 round)
{
	return (page << 16 ^ round) * 2654435769u | 1;
}

static u32 next_word(u32 word)
{
	return word * 1664525 + 1013904223;
}

static void fill(u32 page, u32 round)
{
	u32 i, word = first_word(page, round);

	for (i = 0; i < WORDS; i++, word = next_word(word))
		pages[page][i] = word;
}

static u32 is_wrong(u32 page, u32 round)
{
	u32 i, word = first_word(page, round);

	for (i = 0; i < WORDS; i++, word = next_word(word))
		if (pages[page][i] != word)
			return 1;
	return 0;
}

static unsigned char in(unsigned short port)
{
	unsigned char value;

	asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static void put(char c)
{
	while (!(in(0x3fd) & 0x20))
		;
	asm volatile("outb %0, %1" : : "a"(c), "Nd"((unsigned short)0x3f8));
}

static void print(const char *text)
{
	while (*text)
		put(*text++);
}

static void print_number(u32 number)
{
	if (number >= 10)
		print_number(number / 10);
	put('0' + number % 10);
}

static void run(void)
{
	u32 i, page, wrong, round;

	for (page = 0; page < PAGES; page++)
		fill(page, 0);
	for (round = 0;; round++) {
		wrong = 0;
		for (i = 0; i < PAGES; i++) {
			page = i * STRIDE % PAGES;
			wrong += is_wrong(page, round);
			fill(page, round + 1);
		}
		print("round ");
		print_number(round + 1);
		print(" wrong ");
		print_number(wrong);
		print("\n");
	}
}

static char stack[4096] __attribute__((aligned(16), used));

__attribute__((naked, used)) void _start(void)
{
	asm volatile("mov $stack + 4096, %%esp\n\tcall %P0" : : "i"(run));
}
