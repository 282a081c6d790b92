/*
 * Hold MIB of memory in a realistic mix and answer datagrams on a UDP port.
 *
 *   memory PORT MIB [mix|random [FILE]]
 *
 * With a FILE, write that memory there instead, and end. The mix, in runs of 16 pages: 15 % zero pages (touched, so they are there), 20 % random,
 * 25 % like text, 40 % like a heap of small objects. Its content depends on the page's number
 * only, so it can be verified after a restore, and is the same in every run and for every peer.
 *
 * A datagram starts with a byte that says what is wanted: 't' tick, 'v' verify all of the memory,
 * 'r' forget the longest gap; the rest comes back as it is, followed by the number of damaged
 * pages (of 'v', else 0), the longest time in nanoseconds, on the wall clock, in which this
 * program did not run (it wakes up at least once a millisecond), and the cookie of its socket's
 * network namespace, which tells before a move from after it; 0 before Linux 5.14. All are
 * 64 bits, host order.
 */

#define _GNU_SOURCE

#include <arpa/inet.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

enum { PAGE = 4096, RUN = 16, LARGEST = 64 };

static const char WORDS[][12] = {
	"the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "was", "on", "with", "as",
	"be", "at", "by", "this", "from", "or", "an", "are", "not", "which", "request", "session",
	"error", "index.html", "GET", "POST", "200", "404", "127.0.0.1", "localhost", "\"id\":",
	"\"name\":", "\"value\":", "null", "true", "false", "{", "}", "[", "]", "Mozilla", "select",
	"where", "customer", "2024-05-17", "UTC", "timeout", "connection", "container", "process",
	"memory", "page", "kernel", "thread", "started", "finished", "warning", "info", "debug", "\n",
};

static uint64_t next(uint64_t *state)
{
	uint64_t x = *state; /* xorshift64*, Vigna 2016 */

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	*state = x;
	return x * 0x2545F4914F6CDD1DULL;
}

static void make_random(uint64_t *page, uint64_t *state)
{
	for (int i = 0; i < PAGE / 8; i++)
		page[i] = next(state);
}

static void make_text(char *page, uint64_t *state)
{
	int at = 0;

	while (at < PAGE) {
		uint64_t dice = next(state);
		unsigned first = dice & 63, second = dice >> 8 & 63;
		/* The lower of two is used: some words are much more frequent, as in any text. */
		const char *word = WORDS[first < second ? first : second];

		while (*word && at < PAGE)
			page[at++] = *word++;
		if (at < PAGE)
			page[at++] = ' ';
		if ((dice >> 16 & 31) == 0)
			at += snprintf(page + at, PAGE - at, "%u ", (unsigned)(dice >> 40));
	}
}

/* Objects of 64 bytes: type, count, two pointers, length and flags, a hash, a short string. */
static void make_heap(uint64_t *page, uint64_t *state)
{
	for (int i = 0; i < PAGE / 8; i += 8) {
		uint64_t dice = next(state), place = next(state);

		page[i] = 0x00007f3a5c000000ULL + (dice & 15) * 0x1a0;
		page[i + 1] = 1 + (dice >> 4 & 3);
		page[i + 2] = 0x00007f3a40000000ULL + (place & 0x3ffffff) * 64 % 0x20000000;
		page[i + 3] = dice >> 8 & 3 ? 0 : 0x00007f3a40000000ULL + (place >> 26 & 0x7fffff) * 64;
		page[i + 4] = (dice >> 10 & 31) | (dice >> 15 & 1) << 32;
		page[i + 5] = place;
		memcpy(&page[i + 6], WORDS[dice >> 20 & 63], 12);
		page[i + 7] &= 0xffffffff;
	}
}

static int all_random;

static void make_page(void *page, uint64_t number)
{
	uint64_t state = (number + 1) * 0x9E3779B97F4A7C15ULL;
	unsigned kind = number / RUN % 20;

	if (all_random)
		make_random(page, &state);
	else if (kind < 3)
		memset(page, 0, PAGE);
	else if (kind < 7)
		make_random(page, &state);
	else if (kind < 12)
		make_text(page, &state);
	else
		make_heap(page, &state);
}

static uint64_t damaged(const char *memory, uint64_t pages)
{
	static uint64_t expected[PAGE / 8 + 8];
	uint64_t count = 0;

	for (uint64_t i = 0; i < pages; i++) {
		make_page(expected, i);
		count += memcmp(memory + i * PAGE, expected, PAGE) != 0;
	}
	return count;
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_REALTIME, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

static int fail(const char *what)
{
	perror(what);
	return 1;
}

static int write_file(const char *path, const char *memory, uint64_t size)
{
	FILE *file = fopen(path, "w");

	if (!file || fwrite(memory, 1, size, file) != size || fclose(file))
		return fail(path);
	return 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_in any = { .sin_family = AF_INET };
	struct timespec tick = { .tv_nsec = 1000000 };
	uint64_t pages, last, longest = 0;
	struct pollfd ready = { .events = POLLIN };
	char *memory;

	if (argc < 3 || argc > 5)
		return fprintf(stderr, "usage: memory PORT MIB [mix|random [FILE]]\n"), 2;
	all_random = argc > 3 && strcmp(argv[3], "random") == 0;
	pages = strtoull(argv[2], NULL, 10) * 256;
	memory = mmap(NULL, (pages + 1) * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return fail("mmap");
	for (uint64_t i = 0; i < pages; i++)
		make_page(memory + i * PAGE, i);
	if (argc == 5)
		return write_file(argv[4], memory, pages * PAGE);
	any.sin_port = htons(atoi(argv[1]));
	ready.fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (ready.fd < 0 || bind(ready.fd, (struct sockaddr *)&any, sizeof(any)) < 0)
		return fail("the UDP port");
	last = now();
	for (;;) {
		char data[LARGEST + 24];
		struct sockaddr_in from;
		socklen_t size = sizeof(from), width = sizeof(uint64_t);
		ssize_t length;
		uint64_t time, answer[3] = { 0, 0, 0 };

		ppoll(&ready, 1, &tick, NULL);
		time = now();
		if (time > last && time - last > longest)
			longest = time - last;
		last = time;
		length = recvfrom(ready.fd, data, LARGEST, 0, (struct sockaddr *)&from, &size);
		if (length < 1)
			continue;
		answer[1] = longest;
		getsockopt(ready.fd, SOL_SOCKET, SO_NETNS_COOKIE, &answer[2], &width);
		if (data[0] == 'v')
			answer[0] = damaged(memory, pages);
		if (data[0] == 'v' || data[0] == 'r')
			longest = 0, last = now();
		memcpy(data + length, answer, sizeof(answer));
		sendto(ready.fd, data, length + sizeof(answer), MSG_DONTWAIT,
		       (struct sockaddr *)&from, size);
	}
}
