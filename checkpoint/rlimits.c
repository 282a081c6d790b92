/* Tell CRIU the limits of other users' processes where root lacks CAP_SYS_RESOURCE.
 *
 * Preloaded into CRIU for a dump (rlimits.py says why). It stands in for libc's syscall(), by which
 * CRIU calls prlimit64: where the kernel refuses to tell the limits of another process, they are
 * read from /proc/PID/limits, which anybody may. All other calls are passed on.
 *
 * Freestanding, so that it needs no headers, and works with any libc that CRIU is linked to:
 *     tcc -shared -nostdlib -o rlimits.so rlimits.c
 */

enum { EPERM_ = 1, EINVAL_ = 22 };
enum { LINE = 80, SOFT_AT = 26, HARD_AT = 47, LIMITS = 16 }; /* fs/proc/base.c, proc_pid_limits() */

#if defined(__x86_64__)
enum { READ = 0, CLOSE = 3, OPENAT = 257, PRLIMIT64 = 302 };
__asm__(".globl kernel\n"
        "kernel:\n"
        "mov %rdi, %rax\n"
        "mov %rsi, %rdi\n"
        "mov %rdx, %rsi\n"
        "mov %rcx, %rdx\n"
        "mov %r8, %r10\n"
        "mov %r9, %r8\n"
        "mov 8(%rsp), %r9\n"
        "syscall\n"
        "ret\n");
#elif defined(__aarch64__)
enum { READ = 63, CLOSE = 57, OPENAT = 56, PRLIMIT64 = 261 };
__asm__(".globl kernel\n"
        "kernel:\n"
        "mov x8, x0\n"
        "mov x0, x1\n"
        "mov x1, x2\n"
        "mov x2, x3\n"
        "mov x3, x4\n"
        "mov x4, x5\n"
        "mov x5, x6\n"
        "svc #0\n"
        "ret\n");
#else
#error "the system call convention of this architecture is not written here"
#endif

extern long kernel(long number, long a, long b, long c, long d, long e, long f);
extern int *__errno_location(void);

struct limit {
    unsigned long soft, hard;
};

/* Write a positive number at the end of `text` of so many characters; return its first one. */
static char *decimal(long number, char *end)
{
    do
        *--end = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    return end;
}

/* Read "unlimited" or a number; the file pads both with spaces. */
static unsigned long value(const char *text)
{
    unsigned long read = 0;

    if (*text == 'u')
        return ~0UL;
    for (; *text >= '0' && *text <= '9'; text++)
        read = read * 10 + (unsigned long)(*text - '0');
    return read;
}

/* Open /proc/PID/limits; the path is written from its end. */
static long open_limits(long pid)
{
    static const char before[] = "/proc/", after[] = "/limits";
    char path[40], *at = path + sizeof path;
    int i;

    for (i = sizeof after - 1; i >= 0; i--)
        *--at = after[i];
    at = decimal(pid, at);
    for (i = sizeof before - 2; i >= 0; i--)
        *--at = before[i];
    return kernel(OPENAT, -100 /* AT_FDCWD */, (long)at, 02000000 /* O_CLOEXEC */, 0, 0, 0);
}

/* Read one limit of a process from /proc: line `resource` after the heading. */
static long from_proc(long pid, long resource, struct limit *into)
{
    char text[LINE * (LIMITS + 2)];
    long file = open_limits(pid), size, line = 0, at;

    if (file < 0)
        return file;
    size = kernel(READ, file, (long)text, sizeof text - 1, 0, 0, 0);
    kernel(CLOSE, file, 0, 0, 0, 0, 0);
    if (size < 0)
        return size;
    text[size] = 0;
    for (at = 0; at < size && line <= resource; at++)
        line += text[at] == '\n';
    if (resource < 0 || resource >= LIMITS || at + HARD_AT >= size)
        return -EINVAL_;
    into->soft = value(text + at + SOFT_AT);
    into->hard = value(text + at + HARD_AT);
    return 0;
}

long syscall(long number, long a, long b, long c, long d, long e, long f)
{
    long result = kernel(number, a, b, c, d, e, f);

    if (number == PRLIMIT64 && result == -EPERM_ && a > 0 && c == 0 && d != 0)
        result = from_proc(a, b, (struct limit *)d);
    if ((unsigned long)result > -4096UL) {
        *__errno_location() = (int)-result;
        return -1;
    }
    return result;
}
