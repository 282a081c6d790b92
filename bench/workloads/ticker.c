/*
 * Ask a server once a millisecond and report the times at which it answered, as a client sees it.
 *
 *   ticker HOST PORT
 *
 * Sends a datagram of 't' and a number to the server of memory.c each millisecond, whether or not
 * the last one was answered. Orders come as lines on standard input, each answered by one line:
 *
 *   reset      forget all gaps, here and in the server                 ->  reset
 *   await      wait for an answer to a question that is asked from now on   ->  answered MONOTONIC
 *   report     ->  gap SECONDS BEGAN LARGEST-OWN-GAP ANSWERS
 *   verify     ->  damaged PAGES
 *
 * Times are of CLOCK_MONOTONIC, which the harness shares. It ends when standard input does.
 */

#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct question {
	char kind;
	char padding[7];
	uint64_t number;
};

struct answer {
	struct question question;
	uint64_t damaged;
	uint64_t own_gap;
};

static struct {
	double longest, began, last;
	uint64_t own_gap, answers;
} seen;
static uint64_t asked;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void ask(int server, char kind)
{
	struct question question = { .kind = kind, .number = ++asked };

	/* A server that is not there makes the kernel say so; that is no news to us. */
	if (send(server, &question, sizeof(question), MSG_DONTWAIT) < 0)
		return;
}

/* Take all answers that are there; -1 if there are none. */
static int take(int server, struct answer *answer)
{
	int result = -1;

	while (recv(server, answer, sizeof(*answer), MSG_DONTWAIT) == sizeof(*answer)) {
		double time = now();

		if (seen.last > 0 && time - seen.last > seen.longest) {
			seen.longest = time - seen.last;
			seen.began = seen.last;
		}
		seen.last = time;
		seen.answers++;
		if (answer->own_gap > seen.own_gap)
			seen.own_gap = answer->own_gap;
		result = 0;
		if (answer->question.kind != 't')
			return result; /* its sender waits for this very one */
	}
	return result;
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	struct pollfd ready[2] = { { .fd = 0, .events = POLLIN }, { .events = POLLIN } };
	char order[64];
	size_t length = 0;
	uint64_t awaited = 0, special = 0;
	double next_tick = now();

	if (argc != 3 || inet_pton(AF_INET, argv[1], &to.sin_addr) != 1)
		return fprintf(stderr, "usage: ticker ADDRESS PORT\n"), 2;
	to.sin_port = htons(atoi(argv[2]));
	ready[1].fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (ready[1].fd < 0 || connect(ready[1].fd, (struct sockaddr *)&to, sizeof(to)) < 0)
		return perror("UDP"), 1;
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (;;) {
		struct answer answer;
		double wait = next_tick - now();
		struct timespec rest = { .tv_nsec = wait > 0 ? (long)(wait * 1e9) : 0 };

		if (ppoll(ready, 2, &rest, NULL) < 0 && errno != EINTR)
			return perror("ppoll"), 1;
		while (take(ready[1].fd, &answer) == 0) {
			if (awaited && answer.question.number >= awaited) {
				printf("answered %.6f\n", seen.last);
				awaited = 0;
			}
			if (special && answer.question.number == special) {
				special = 0;
				if (answer.question.kind == 'v') {
					printf("damaged %llu\n", (unsigned long long)answer.damaged);
				} else {
					memset(&seen, 0, sizeof(seen));
					puts("reset");
				}
			}
		}
		if (ready[0].revents) {
			ssize_t got = read(0, order + length, sizeof(order) - 1 - length);

			if (got <= 0)
				return 0;
			order[length += got] = 0;
			ready[0].revents = 0;
			if (!strchr(order, '\n'))
				continue;
			length = 0;
			if (!strcmp(order, "await\n")) {
				awaited = asked + 1;
			} else if (!strcmp(order, "report\n")) {
				printf("gap %.6f %.6f %.6f %llu\n", seen.longest, seen.began,
				       seen.own_gap / 1e9, (unsigned long long)seen.answers);
			} else if (!strcmp(order, "verify\n") || !strcmp(order, "reset\n")) {
				ask(ready[1].fd, order[0]);
				special = asked;
			} else {
				return fprintf(stderr, "unknown order: %s", order), 2;
			}
		}
		if (now() >= next_tick) {
			ask(ready[1].fd, 't');
			next_tick += 0.001;
			if (next_tick < now() - 0.001)
				next_tick = now(); /* what was missed is not asked for later */
		}
	}
}
