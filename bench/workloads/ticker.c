/*
 * Ask a server once a millisecond and report the times at which it answered, as a client sees it.
 *
 *   ticker HOST PORT [OTHER-HOST]
 *
 * Sends a datagram of 't' and a number to the server of memory.c each millisecond, whether or not
 * the last one was answered; to both hosts, if the server has another address after its move.
 * Orders come as lines on standard input, each answered by one line:
 *
 *   reset      forget all gaps, here and in the server                 ->  reset
 *   await      wait for an answer to a question that is asked from now on   ->  answered MONOTONIC
 *   report     ->  gap SECONDS BEGAN LARGEST-OWN-GAP ANSWERS
 *   moved      ->  moved TIMES BLACKOUT LONGEST-GAP-SINCE, of answers from another network
 *                  namespace than those before: the gap at the last such change, and those since
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
	uint64_t place;
};

enum { STDIN, FIRST, HOSTS = 2 };

static struct {
	double longest, began, last, blackout, after;
	uint64_t own_gap, answers, place, moves;
} seen;
static struct pollfd ready[FIRST + HOSTS];
static int hosts;
static uint64_t asked;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void ask(char kind)
{
	struct question question = { .kind = kind, .number = ++asked };

	/* A server that is not there makes the kernel say so; that is no news to us. */
	for (int i = FIRST; i < FIRST + hosts; i++)
		if (send(ready[i].fd, &question, sizeof(question), MSG_DONTWAIT) < 0)
			continue;
}

/* Note the time since the last answer by where this one comes from. */
static void place(uint64_t where, double gap)
{
	if (seen.place && where != seen.place) {
		seen.moves++;
		seen.blackout = gap;
		seen.after = 0;
	} else if (gap > seen.after) {
		seen.after = gap;
	}
	seen.place = where;
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
		place(answer->place, seen.last > 0 ? time - seen.last : 0);
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

static void answered(const struct answer *answer)
{
	if (answer->question.kind == 'v') {
		printf("damaged %llu\n", (unsigned long long)answer->damaged);
	} else {
		memset(&seen, 0, sizeof(seen));
		puts("reset");
	}
}

int main(int argc, char **argv)
{
	char order[64];
	size_t length = 0;
	uint64_t awaited = 0, special = 0;
	double next_tick = now();

	if (argc != 3 && argc != 4)
		return fprintf(stderr, "usage: ticker ADDRESS PORT [OTHER-ADDRESS]\n"), 2;
	ready[STDIN] = (struct pollfd){ .fd = 0, .events = POLLIN };
	hosts = argc - 2;
	for (int i = 0; i < hosts; i++) {
		struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[2])) };
		int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

		if (inet_pton(AF_INET, argv[i ? 3 : 1], &to.sin_addr) != 1)
			return fprintf(stderr, "no address: %s\n", argv[i ? 3 : 1]), 2;
		if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0)
			return perror("UDP"), 1;
		ready[FIRST + i] = (struct pollfd){ .fd = fd, .events = POLLIN };
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (;;) {
		struct answer answer;
		double wait = next_tick - now();
		struct timespec rest = { .tv_nsec = wait > 0 ? (long)(wait * 1e9) : 0 };

		if (ppoll(ready, FIRST + hosts, &rest, NULL) < 0 && errno != EINTR)
			return perror("ppoll"), 1;
		for (int i = FIRST; i < FIRST + hosts; i++) {
			while (take(ready[i].fd, &answer) == 0) {
				if (awaited && answer.question.number >= awaited) {
					printf("answered %.6f\n", seen.last);
					awaited = 0;
				}
				if (special && answer.question.number == special) {
					special = 0;
					answered(&answer);
				}
			}
		}
		if (ready[STDIN].revents) {
			ssize_t got = read(0, order + length, sizeof(order) - 1 - length);

			if (got <= 0)
				return 0;
			order[length += got] = 0;
			ready[STDIN].revents = 0;
			if (!strchr(order, '\n'))
				continue;
			length = 0;
			if (!strcmp(order, "await\n")) {
				awaited = asked + 1;
			} else if (!strcmp(order, "report\n")) {
				printf("gap %.6f %.6f %.6f %llu\n", seen.longest, seen.began,
				       seen.own_gap / 1e9, (unsigned long long)seen.answers);
			} else if (!strcmp(order, "moved\n")) {
				/* A gap that has not ended yet counts as far as it has come. */
				double open = seen.last > 0 ? now() - seen.last : 0;

				printf("moved %llu %.6f %.6f\n", (unsigned long long)seen.moves,
				       seen.blackout, open > seen.after ? open : seen.after);
			} else if (!strcmp(order, "verify\n") || !strcmp(order, "reset\n")) {
				ask(order[0]);
				special = asked;
			} else {
				return fprintf(stderr, "unknown order: %s", order), 2;
			}
		}
		if (now() >= next_tick) {
			ask('t');
			next_tick += 0.001;
			if (next_tick < now() - 0.001)
				next_tick = now(); /* what was missed is not asked for later */
		}
	}
}
