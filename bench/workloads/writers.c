/*
 * Write to random pages of a Redis over several connections, and note when each write is answered.
 *
 *   writers HOST PORT CONNECTIONS RATE MIB
 *
 * The Redis holds the values of tests/lab/clients.py redis-fill: MIB * 16 of 64 KiB each. RATE is of
 * all connections together, in writes a second; a connection sends its next write when its time has
 * come and the last one was answered, and does not catch up after a gap. A write is a number of its
 * own into a random page of a random value; each connection has values that are only its own.
 * Orders come as lines on standard input:
 *
 *   report     all answers since the last report   ->  answer SENT ANSWERED CONNECTION ...  end DROPPED
 *   verify     write no more, and read back what was acknowledged      ->  verified COUNT LOST
 *
 * Times are nanoseconds of CLOCK_MONOTONIC, which the harness shares. It says "ready" when the first
 * write of each connection was answered, never connects twice, and ends when standard input does.
 */

#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST 64        /* connections */
#define SLOTS 16       /* pages of a value */
#define RECORD 16      /* bytes of a number, as text */
#define BATCH 64       /* questions on their way when reading back */
#define PATIENCE 60000 /* milliseconds for the last answers */

struct connection {
	int socket;
	int open;
	uint64_t due, sent; /* when the next write is to go; when the last one went, 0 if answered */
	uint64_t number, place;
	size_t held;
	char buffer[4096];
};

struct answer {
	uint64_t sent, answered;
	unsigned connection;
};

static struct connection connections[MOST];
static unsigned count, dropped;
static uint64_t period, values;
static uint64_t *acknowledged; /* by place: the number that was written there last */
static struct answer *answers;
static size_t answered, room;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static uint64_t random_number(void)
{
	static uint64_t state = 88172645463325252ull;

	state ^= state << 13;
	state ^= state >> 7;
	return state ^= state << 17;
}

static void drop(struct connection *one)
{
	close(one->socket);
	one->open = 0;
	dropped++;
}

static void put(struct connection *one, const char *text, size_t length)
{
	while (one->open && length) {
		ssize_t done = send(one->socket, text, length, MSG_NOSIGNAL);

		if (done < 0)
			return drop(one);
		text += done;
		length -= done;
	}
}

static uint64_t key_of(uint64_t place)
{
	return place / SLOTS;
}

static unsigned offset_of(uint64_t place)
{
	return place % SLOTS * 4096 + 64;
}

static void write_one(struct connection *one, unsigned which)
{
	char message[256], key[32], offset[16];
	uint64_t own = (values - which + count - 1) / count;

	one->place = (random_number() % own * count + which) * SLOTS + random_number() % SLOTS;
	one->number++;
	int key_length = snprintf(key, sizeof key, "filled:%lu", key_of(one->place));
	int offset_length = snprintf(offset, sizeof offset, "%u", offset_of(one->place));
	int length = snprintf(message, sizeof message,
		"*4\r\n$8\r\nSETRANGE\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n$%d\r\n%016lu\r\n",
		key_length, key, offset_length, offset, RECORD, one->number);

	one->sent = now();
	put(one, message, length);
}

static void note(struct connection *one, unsigned which)
{
	if (answered == room) {
		room = room ? room * 2 : 1 << 16;
		answers = realloc(answers, room * sizeof *answers);
		if (!answers)
			fail("realloc");
	}
	uint64_t at = now();

	answers[answered++] = (struct answer){ one->sent, at, which };
	acknowledged[one->place] = one->number;
	one->due = one->due + period > at ? one->due + period : at;
	one->sent = 0;
}

static void read_some(struct connection *one)
{
	ssize_t got = recv(one->socket, one->buffer + one->held, sizeof one->buffer - one->held, 0);

	if (got <= 0)
		return drop(one);
	one->held += got;
}

static void hear(struct connection *one, unsigned which)
{
	read_some(one);
	if (!one->open || !memchr(one->buffer, '\n', one->held))
		return;
	if (one->buffer[0] != ':') {
		fprintf(stderr, "Redis said %.*s\n", (int)one->held, one->buffer);
		exit(1);
	}
	one->held = 0;
	note(one, which);
}

/* Let those write whose time has come, and take what is answered, until there is an order. */
static void work(int until_answered)
{
	uint64_t deadline = now() + PATIENCE * 1000000ull;

	for (;;) {
		struct pollfd waited[MOST + 1] = { { .fd = until_answered ? -1 : 0, .events = POLLIN } };
		uint64_t at = now(), next = at + 100000000;
		unsigned waiting = 0;

		for (unsigned i = 0; i < count; i++) {
			struct connection *one = &connections[i];

			if (!until_answered && one->open && !one->sent && one->due <= at)
				write_one(one, i);
			if (!until_answered && one->open && !one->sent && one->due < next)
				next = one->due;
			waiting += one->open && one->sent;
			waited[i + 1] = (struct pollfd){ .fd = one->open ? one->socket : -1, .events = POLLIN };
		}
		if (until_answered && (!waiting || at > deadline))
			return;
		uint64_t wait = next > at ? next - at : 0;
		struct timespec time = { wait / 1000000000, wait % 1000000000 };

		if (ppoll(waited, count + 1, &time, NULL) < 0 && errno != EINTR)
			fail("ppoll");
		for (unsigned i = 0; i < count; i++)
			if (waited[i + 1].revents && connections[i].open)
				hear(&connections[i], i);
		if (waited[0].revents)
			return;
	}
}

static void report(void)
{
	for (size_t i = 0; i < answered; i++)
		printf("answer %lu %lu %u\n", answers[i].sent, answers[i].answered, answers[i].connection);
	answered = 0;
	printf("end %u\n", dropped);
	fflush(stdout);
}

/* Take one bulk string of RECORD bytes; what is shorter or missing counts as nothing. */
static uint64_t take(struct connection *one)
{
	const size_t whole = 5 + RECORD + 2; /* $16\r\n ... \r\n */
	char text[RECORD + 1] = "";

	while (one->open && one->held < whole)
		read_some(one);
	if (!one->open || memcmp(one->buffer, "$16\r\n", 5))
		return 0;
	memcpy(text, one->buffer + 5, RECORD);
	one->held -= whole;
	memmove(one->buffer, one->buffer + whole, one->held);
	return strtoull(text, NULL, 10);
}

static void verify(void)
{
	uint64_t checked = 0, lost = 0, places = values * SLOTS;

	work(1);
	for (unsigned i = 0; i < count; i++) {
		struct connection *one = &connections[i];
		uint64_t asked[BATCH];
		unsigned pending = 0;

		for (uint64_t place = 0; place <= places; place++) {
			int ours = place < places && acknowledged[place] && key_of(place) % count == i;

			if (ours) {
				char message[256], key[32], from[16], to[16];
				int k = snprintf(key, sizeof key, "filled:%lu", key_of(place));
				int f = snprintf(from, sizeof from, "%u", offset_of(place));
				int t = snprintf(to, sizeof to, "%u", offset_of(place) + RECORD - 1);
				int length = snprintf(message, sizeof message,
					"*4\r\n$8\r\nGETRANGE\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n",
					k, key, f, from, t, to);

				put(one, message, length);
				asked[pending++] = place;
			}
			if (pending == BATCH || place == places) {
				for (unsigned j = 0; j < pending; j++, checked++)
					lost += take(one) < acknowledged[asked[j]];
				pending = 0;
			}
		}
	}
	printf("verified %lu %lu\n", checked, lost);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	char order[64];

	if (argc != 6 || (count = atoi(argv[3])) == 0 || count > MOST) {
		fprintf(stderr, "usage: writers HOST PORT CONNECTIONS RATE MIB\n");
		return 2;
	}
	period = 1000000000ull * count / atoi(argv[4]);
	values = strtoull(argv[5], NULL, 10) * 16;
	acknowledged = calloc(values * SLOTS, sizeof *acknowledged);
	if (!acknowledged)
		fail("calloc");
	for (unsigned i = 0; i < count; i++) {
		struct sockaddr_in there = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[2])) };
		struct connection *one = &connections[i];
		int on = 1;

		inet_pton(AF_INET, argv[1], &there.sin_addr);
		one->socket = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(one->socket, (struct sockaddr *)&there, sizeof there))
			fail("connect");
		setsockopt(one->socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
		one->open = 1;
		write_one(one, i);
		one->due = one->sent + period * i / count; /* not all at once */
	}
	work(1);
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		work(0);
		if (!fgets(order, sizeof order, stdin))
			return 0;
		if (!strcmp(order, "report\n"))
			report();
		else if (!strcmp(order, "verify\n"))
			verify();
	}
}
