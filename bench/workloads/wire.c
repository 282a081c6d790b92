/*
 * A cable with a rate and a delay, between two network devices that it makes.
 *
 *   wire NEAR FAR BITS-PER-SECOND DELAY-IN-MICROSECONDS
 *
 * What is sent into NEAR comes out of FAR: as if put on a line of that rate frame after frame (a
 * frame waits until those before it are on the line), and after the delay. What is sent into FAR
 * comes out of NEAR at once. That is what tc's netem does, for kernels that do not have it.
 *
 * Both are TAP devices (kernel: networking/tuntap.rst) that take whole TCP segments of 64 KiB with
 * their checksums undone, as between virtual machines: the line costs little of the CPUs that are
 * measured. It says "ready" when both are there, and ends, with them, when standard input does.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define LARGEST (10 + 14 + 65535 + 256) /* of a frame with its virtio header */
#define FRAMES 4096 /* on the line at once: 1 Gbit/s for 1 ms are two of 64 KiB, or 86 of 1500 */
#define BACKLOG 50000000 /* nanoseconds of sending that may wait for the line; more is dropped */

struct frame {
	uint64_t due;
	size_t size;
	unsigned char *bytes;
};

static struct frame line[FRAMES];
static size_t first, count;
static uint64_t free_at; /* when the line has taken all that is on it */

static void fail(const char *what)
{
	fprintf(stderr, "wire: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static int open_tap(const char *name)
{
	struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		fail("/dev/net/tun");
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	if (ioctl(fd, TUNSETIFF, &request) < 0)
		fail(name);
	if (ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) < 0)
		fail("TUNSETOFFLOAD");
	return fd;
}

/* A device that is down, or whose queue is full, loses the frame, as a cable would. */
static void put(int fd, const unsigned char *bytes, size_t size)
{
	if (write(fd, bytes, size) < 0 && errno != EIO && errno != EAGAIN && errno != ENOBUFS)
		fail("write");
}

static void take(int fd, double rate, uint64_t delay)
{
	struct frame *frame = &line[(first + count) % FRAMES];
	ssize_t size;

	if (frame->bytes == NULL && (frame->bytes = malloc(LARGEST)) == NULL)
		fail("malloc");
	while ((size = read(fd, frame->bytes, LARGEST)) > 0) {
		uint64_t time = now();

		if (free_at < time)
			free_at = time;
		if (free_at - time > BACKLOG || count == FRAMES - 1)
			continue;
		free_at += (uint64_t)(size * 8 * 1e9 / rate);
		frame->due = free_at + delay;
		frame->size = size;
		count++;
		frame = &line[(first + count) % FRAMES];
		if (frame->bytes == NULL && (frame->bytes = malloc(LARGEST)) == NULL)
			fail("malloc");
	}
	if (size < 0 && errno != EAGAIN && errno != EIO)
		fail("read");
}

static void pass(int from, int to)
{
	static unsigned char bytes[LARGEST];
	ssize_t size;

	while ((size = read(from, bytes, sizeof(bytes))) > 0)
		put(to, bytes, size);
	if (size < 0 && errno != EAGAIN && errno != EIO)
		fail("read");
}

int main(int argc, char **argv)
{
	struct pollfd waits[3];
	uint64_t delay;
	double rate;
	int near, far;

	if (argc != 5) {
		fprintf(stderr, "usage: wire NEAR FAR BITS-PER-SECOND DELAY-IN-MICROSECONDS\n");
		return 2;
	}
	rate = atof(argv[3]);
	delay = strtoull(argv[4], NULL, 10) * 1000;
	if (rate <= 0) {
		fprintf(stderr, "wire: a rate of %s\n", argv[3]);
		return 2;
	}
	/* A cable does not wait for a processor, as far as that can be had. */
	if (setpriority(PRIO_PROCESS, 0, -20) < 0)
		fail("setpriority");
	near = open_tap(argv[1]);
	far = open_tap(argv[2]);
	puts("ready");
	fflush(stdout);
	waits[0] = (struct pollfd){ .fd = 0, .events = POLLIN };
	waits[1] = (struct pollfd){ .fd = near, .events = POLLIN };
	waits[2] = (struct pollfd){ .fd = far, .events = POLLIN };
	for (;;) {
		struct timespec left = { 0, 0 };
		uint64_t time = now();

		while (count && line[first].due <= time) {
			put(far, line[first].bytes, line[first].size);
			first = (first + 1) % FRAMES;
			count--;
		}
		if (count) {
			uint64_t wait = line[first].due - time;

			left.tv_sec = wait / 1000000000;
			left.tv_nsec = wait % 1000000000;
		}
		if (ppoll(waits, 3, count ? &left : NULL, NULL) < 0 && errno != EINTR)
			fail("ppoll");
		if (waits[0].revents)
			return 0;
		take(near, rate, delay);
		pass(far, near);
	}
}
