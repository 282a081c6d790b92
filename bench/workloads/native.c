/*
 * What a processor, the memory, a disk and the loopback network give, measured by the program itself.
 *
 *   native cpu        arithmetic that stays in the first cache
 *   native memory     copies of 64 MiB, and a walk of dependent reads over them
 *   native disk FILE  write 128 MiB, fsync, read them back past the cache
 *   native stream     512 MiB over one TCP connection of 127.0.0.1
 *   native turns      20000 questions and answers of one byte over it
 *   native calls      a million calls of getppid(2)
 *   native hold FILE  map FILE, read every page, print "holding", and stay
 *
 * All but the last do it TIMES, on one processor, and print one line: of the quickest, the seconds of
 * CLOCK_MONOTONIC and of processor time. The first meets pages that a virtual machine's host may
 * have to find, and whatever disturbs the machine seldom meets all.
 */

#define _GNU_SOURCE

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)
#define TIMES 5

static volatile uint64_t sink;

static void must(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

/* Of us and of our child that has ended: waiting for a processor that others use is not in it. */
static double used(void)
{
	double sum = 0;
	struct rusage usage;

	for (int who = RUSAGE_CHILDREN; who <= RUSAGE_SELF; who++) {
		getrusage(who, &usage);
		sum += usage.ru_utime.tv_sec + usage.ru_utime.tv_usec / 1e6;
		sum += usage.ru_stime.tv_sec + usage.ru_stime.tv_usec / 1e6;
	}
	return sum;
}

static void cpu(void)
{
	uint64_t value = 88172645463325252u;
	double sum = 0;

	for (long i = 0; i < 100000000; i++) {
		value ^= value << 13;
		value ^= value >> 7;
		value ^= value << 17;
		sum += (double)(value & 0xff) * 0.5;
	}
	sink = value + (uint64_t)sum;
}

static void memory(void)
{
	/* Of every time the same pages: where they lie is luck, and it counts. */
	static char *from, *to;
	size_t size = 64 * MIB, count = size / sizeof(size_t), at = 0, *chain;

	if (!from) {
		from = malloc(size);
		to = malloc(size);
		must(from && to, "malloc");
	}
	chain = (size_t *)from;
	memset(from, 1, size);
	for (int i = 0; i < 8; i++)
		memcpy(to, from, size);
	/* A stride that is odd visits every element once, and no prefetcher follows it. */
	for (size_t i = 0; i < count; i++)
		chain[i] = (i + 5000011) % count;
	for (size_t i = 0; i < count / 4; i++)
		at = chain[at];
	sink = at + to[size - 1];
}

static void disk(const char *path)
{
	static char *block;
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

	must(fd >= 0, path);
	must(block || posix_memalign((void **)&block, 4096, MIB) == 0, "posix_memalign");
	memset(block, 7, MIB);
	for (int i = 0; i < 128; i++)
		must(write(fd, block, MIB) == (ssize_t)MIB, "write");
	must(fsync(fd) == 0, "fsync");
	must(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0, "posix_fadvise");
	must(lseek(fd, 0, SEEK_SET) == 0, "lseek");
	for (int i = 0; i < 128; i++)
		must(read(fd, block, MIB) == (ssize_t)MIB, "read");
	must(close(fd) == 0 && unlink(path) == 0, "unlink");
}

/* Fork one end of a connection of 127.0.0.1; both return their descriptor. */
static int connected(int *child)
{
	struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof(where);
	int one = 1, fd, listener = socket(AF_INET, SOCK_STREAM, 0);

	must(bind(listener, (struct sockaddr *)&where, sizeof(where)) == 0, "bind");
	must(listen(listener, 1) == 0, "listen");
	must(getsockname(listener, (struct sockaddr *)&where, &length) == 0, "getsockname");
	*child = fork();
	must(*child >= 0, "fork");
	if (*child == 0) {
		fd = socket(AF_INET, SOCK_STREAM, 0);
		must(connect(fd, (struct sockaddr *)&where, sizeof(where)) == 0, "connect");
	} else {
		fd = accept(listener, NULL, NULL);
		must(fd >= 0, "accept");
	}
	must(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) == 0, "setsockopt");
	close(listener);
	return fd;
}

static void finish(int child, int fd)
{
	if (!child)
		_exit(0);
	close(fd);
	must(waitpid(child, NULL, 0) == child, "waitpid");
}

static void stream(void)
{
	static char block[64 * 1024];
	int child, fd = connected(&child);
	size_t left = 512 * MIB;
	ssize_t done;

	while (left) {
		done = child ? read(fd, block, sizeof(block)) : write(fd, block, sizeof(block));
		must(done > 0, "stream");
		left -= done;
	}
	finish(child, fd);
}

static void turns(void)
{
	int child, fd = connected(&child);
	char byte = 1;

	for (int i = 0; i < 20000; i++) {
		must(!child || write(fd, &byte, 1) == 1, "ask");
		must(read(fd, &byte, 1) == 1, "read");
		must(child || write(fd, &byte, 1) == 1, "answer");
	}
	finish(child, fd);
}

static void calls(void)
{
	for (int i = 0; i < 1000000; i++)
		syscall(SYS_getppid);
}

static void hold(const char *path)
{
	struct stat status;
	int fd = open(path, O_RDONLY);
	const char *bytes;

	must(fd >= 0 && fstat(fd, &status) == 0, path);
	bytes = mmap(NULL, status.st_size, PROT_READ, MAP_SHARED, fd, 0);
	must(bytes != MAP_FAILED, "mmap");
	for (off_t i = 0; i < status.st_size; i += 4096)
		sink += bytes[i];
	puts("holding");
	fflush(stdout);
	for (;;)
		pause();
}

/* The last processor that we may use: what two processes share does not hang on who ran where. */
static void stay(void)
{
	cpu_set_t set;
	int last = CPU_SETSIZE - 1;

	must(sched_getaffinity(0, sizeof(set), &set) == 0, "sched_getaffinity");
	while (!CPU_ISSET(last, &set))
		last--;
	CPU_ZERO(&set);
	CPU_SET(last, &set);
	must(sched_setaffinity(0, sizeof(set), &set) == 0, "sched_setaffinity");
}

static int work(const char *what, const char *file)
{
	if (!strcmp(what, "cpu"))
		cpu();
	else if (!strcmp(what, "memory"))
		memory();
	else if (!strcmp(what, "disk"))
		disk(file);
	else if (!strcmp(what, "stream"))
		stream();
	else if (!strcmp(what, "turns"))
		turns();
	else if (!strcmp(what, "calls"))
		calls();
	else if (!strcmp(what, "hold"))
		hold(file);
	else
		return 0;
	return 1;
}

int main(int count, char **words)
{
	const char *what = count > 1 ? words[1] : "", *file = count > 2 ? words[2] : "file";
	double wall = 1e9, processor = 1e9;

	stay();
	for (int i = 0; i < TIMES; i++) {
		double began = now(), before = used();

		if (!work(what, file))
			return 2;
		began = now() - began;
		before = used() - before;
		wall = began < wall ? began : wall;
		processor = before < processor ? before : processor;
	}
	printf("%.6f %.6f\n", wall, processor);
	return 0;
}
