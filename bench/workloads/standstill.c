/*
 * Note when no processor of this machine ran: a thread on each of them, before all others, sleeps
 * two milliseconds again and again, and writes down when it woke late.
 *
 *   standstill
 *
 * Such a thread (SCHED_FIFO, the highest priority, bound to its processor) does not wait behind any
 * program. So who wakes late was kept by the kernel itself, or by the machine that this one is a
 * guest of; where all of them are late at once it is the latter, for it happens to all at once.
 *
 * It says "ready" and its number of processors, or why it cannot be; and answers each line of
 * standard input, at whose end it ends, by what was seen since the last one:
 *
 *   late PROCESSOR FROM UNTIL     ...     end LOST
 *
 * FROM is when it should have run, and UNTIL when it did, in nanoseconds of CLOCK_MONOTONIC, which
 * the harness shares. It was kept for up to PERIOD longer. LOST is how many did not fit in here.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define PERIOD 2000000ull
#define LATE 1000000ull /* what is less is not noted */
#define MOST 64         /* processors */
#define ROOM 4096       /* times that a processor was late */

struct span {
	uint64_t from, until;
};

static struct watch {
	pthread_t thread;
	int processor;
	atomic_uint noted; /* by its thread, after the span is there */
	atomic_uint lost;
	unsigned told;
	struct span late[ROOM];
} watches[MOST];

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static void *watch(void *argument)
{
	struct watch *one = argument;
	uint64_t next = now();

	for (;;) {
		next += PERIOD;
		struct timespec until = { next / 1000000000, next % 1000000000 };

		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
		uint64_t woke = now();

		if (woke < next + LATE)
			continue;
		unsigned place = atomic_load(&one->noted);

		if (place < ROOM) {
			one->late[place] = (struct span){ next, woke };
			atomic_store(&one->noted, place + 1);
		} else {
			atomic_fetch_add(&one->lost, 1);
		}
		next = woke; /* what was missed is not slept again */
	}
	return NULL;
}

/* Start a thread that is first on its processor from its beginning; returns an error number. */
static int start(struct watch *one)
{
	struct sched_param first = { .sched_priority = sched_get_priority_max(SCHED_FIFO) };
	pthread_attr_t how;
	cpu_set_t there;
	int error;

	CPU_ZERO(&there);
	CPU_SET(one->processor, &there);
	pthread_attr_init(&how);
	pthread_attr_setaffinity_np(&how, sizeof there, &there);
	pthread_attr_setinheritsched(&how, PTHREAD_EXPLICIT_SCHED);
	pthread_attr_setschedpolicy(&how, SCHED_FIFO);
	pthread_attr_setschedparam(&how, &first);
	error = pthread_create(&one->thread, &how, watch, one);
	pthread_attr_destroy(&how);
	return error;
}

int main(void)
{
	char order[64];
	unsigned count = 0;
	cpu_set_t ours;

	/* A page of its own that it had to wait for would be taken for a standstill. */
	if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0)
		return printf("no memory can be locked: %s\n", strerror(errno)), 1;
	if (sched_getaffinity(0, sizeof ours, &ours) < 0)
		return printf("processors: %s\n", strerror(errno)), 1;
	for (int processor = 0; processor < CPU_SETSIZE; processor++) {
		if (!CPU_ISSET(processor, &ours))
			continue;
		if (count == MOST)
			return printf("there are more than %d processors\n", MOST), 1;
		watches[count++].processor = processor;
	}
	for (unsigned i = 0; i < count; i++) {
		int error = start(&watches[i]);

		if (error)
			return printf("no real-time thread can be had: %s\n", strerror(error)), 1;
	}
	printf("ready %u\n", count);
	fflush(stdout);
	while (fgets(order, sizeof order, stdin)) {
		unsigned lost = 0;

		for (unsigned i = 0; i < count; i++) {
			struct watch *one = &watches[i];

			for (unsigned end = atomic_load(&one->noted); one->told < end; one->told++)
				printf("late %d %llu %llu\n", one->processor,
				       (unsigned long long)one->late[one->told].from,
				       (unsigned long long)one->late[one->told].until);
			lost += atomic_load(&one->lost);
		}
		printf("end %u\n", lost);
		fflush(stdout);
	}
	return 0;
}
