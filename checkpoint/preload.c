/* Stand between CRIU and the kernel for a dump, in two places; preload.py says why.
 *
 * Limits. Where root lacks CAP_SYS_RESOURCE, the kernel does not tell the limits of other users'
 * processes. They are read from /proc/PID/limits then, which anybody may. CRIU asks by syscall().
 *
 * Hidden memory. Areas that are in a table (hidden_memory.py) seem to have no pages. CRIU asks by
 * the ioctl PAGEMAP_SCAN, before Linux 6.7 by pread() of /proc/PID/pagemap. Only what is asked just
 * as CRIU asks it, about just one area of the table, is answered here.
 *
 * All else is passed on. Freestanding, so that it needs no headers, and works with any libc that
 * CRIU is linked to:
 *     tcc -shared -nostdlib -o preload.so preload.c
 */

enum { EPERM_ = 1, EINVAL_ = 22 };
enum { LINE = 80, SOFT_AT = 26, HARD_AT = 47, LIMITS = 16 }; /* fs/proc/base.c, proc_pid_limits() */
enum { PATH = 40 };

#if defined(__x86_64__)
enum { READ = 0, CLOSE = 3, IOCTL = 16, PREAD64 = 17, OPENAT = 257, READLINKAT = 267,
       PRLIMIT64 = 302 };
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
enum { IOCTL = 29, OPENAT = 56, CLOSE = 57, READ = 63, PREAD64 = 67, READLINKAT = 78,
       PRLIMIT64 = 261 };
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
extern char *getenv(const char *name);

enum { AT_FDCWD = -100, O_CLOEXEC = 02000000 };

/* Return what the kernel said as libc does. */
static long told(long result)
{
    if ((unsigned long)result > -4096UL) {
        *__errno_location() = (int)-result;
        return -1;
    }
    return result;
}

/* Write a positive number before `end`; return where it begins. */
static char *decimal(long number, char *end)
{
    do
        *--end = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    return end;
}

/* Write a text before `end`; return where it begins. */
static char *written(const char *text, char *end)
{
    long size = 0;

    while (text[size])
        size++;
    while (size > 0)
        *--end = text[--size];
    return end;
}

/* Write a path with a number in it before `end`; return where it begins. */
static char *path_with(const char *before, long number, const char *after, char *end)
{
    *--end = 0;
    return written(before, decimal(number, written(after, end)));
}

/* The limits */

struct limit {
    unsigned long soft, hard;
};

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

/* Read one limit of a process from /proc: line `resource` after the heading. */
static long from_proc(long pid, long resource, struct limit *into)
{
    char text[LINE * (LIMITS + 2)], path[PATH];
    long file, size, line = 0, at;

    file = kernel(OPENAT, AT_FDCWD, (long)path_with("/proc/", pid, "/limits", path + PATH), O_CLOEXEC,
                  0, 0, 0);
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
    return told(result);
}

/* Hidden memory */

typedef unsigned long word;

struct area { /* a row of the table, which are in ascending order; the first has MAGIC and a count */
    word pid, start, end;
};

struct scan { /* include/uapi/linux/fs.h, struct pm_scan_arg */
    word size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, all_of, any_of, told;
};

static const word MAGIC = 0x6e6564646968UL; /* "hidden" */
static const word PAGEMAP_SCAN = 0xc0606610UL;

/* CRIU: pmc_fill in criu/pagemap-cache.c asks for what is present or swapped, and neither a page of
 * zeros nor of a file. It also asks where guard pages are: that is not for us. */
enum { SWAPPED_OR_PRESENT = 1 << 3 | 1 << 4, ZEROS_OR_FILE = 1 << 5 | 1 << 2 };
enum { PAGE_ = 4096, ENTRY = 8, LEAST = 2 << 20 }; /* an entry of a pagemap */

/* Say of which process a descriptor is the pagemap; 0 if it is none. */
static word process_of(long file)
{
    static const char after[] = "/pagemap";
    char path[PATH], link[80];
    long at, i;
    word pid = 0, place = 1;

    at = kernel(READLINKAT, AT_FDCWD, (long)path_with("/proc/self/fd/", file, "", path + PATH),
                (long)link, sizeof link, 0, 0);
    for (i = sizeof after - 2; i >= 0; i--)
        if (--at < 0 || link[at] != after[i])
            return 0;
    for (; --at >= 0 && link[at] >= '0' && link[at] <= '9'; place *= 10)
        pid += (word)(link[at] - '0') * place;
    return at >= 0 && link[at] == '/' ? pid : 0;
}

static int read_row(long table, word number, struct area *into)
{
    return kernel(PREAD64, table, (long)into, sizeof *into, (long)(number * sizeof *into), 0, 0)
           == sizeof *into;
}

static int is_before(const struct area *one, const struct area *other)
{
    if (one->pid != other->pid)
        return one->pid < other->pid;
    return one->start < other->start;
}

/* Say whether just this is an area of the table. */
static int is_hidden(long file, word start, word end)
{
    const char *name = getenv("PYMIGRATE_HIDDEN");
    struct area row, wanted;
    word low = 1, high, middle;
    long table;

    if (name == 0 || *name < '0' || *name > '9' || end < start || end - start < LEAST)
        return 0;
    table = (long)value(name);
    if (!read_row(table, 0, &row) || row.pid != MAGIC)
        return 0;
    high = row.start + 1;
    wanted.start = start;
    wanted.pid = process_of(file);
    if (wanted.pid == 0)
        return 0;
    while (low < high) {
        middle = low + (high - low) / 2;
        if (!read_row(table, middle, &row))
            return 0;
        if (is_before(&row, &wanted))
            low = middle + 1;
        else
            high = middle;
    }
    return read_row(table, low, &row) && row.pid == wanted.pid && row.start == start
           && row.end == end;
}

int ioctl(int file, unsigned long request, void *argument)
{
    struct scan *scan = argument;

    if (request == PAGEMAP_SCAN && scan->size == sizeof *scan && scan->flags == 0
        && scan->max_pages == 0 && scan->inverted == ZEROS_OR_FILE && scan->all_of == ZEROS_OR_FILE
        && scan->any_of == SWAPPED_OR_PRESENT && is_hidden(file, scan->start, scan->end)) {
        scan->walk_end = scan->end;
        return 0;
    }
    return (int)told(kernel(IOCTL, file, (long)request, (long)argument, 0, 0, 0));
}

long pread64(int file, void *into, unsigned long size, long offset)
{
    char *at = into;

    if (offset >= 0 && offset % ENTRY == 0 && size % ENTRY == 0 && size >= LEAST / PAGE_ * ENTRY
        && is_hidden(file, (word)offset / ENTRY * PAGE_, ((word)offset + size) / ENTRY * PAGE_)) {
        while (at < (char *)into + size)
            *at++ = 0;
        return (long)size;
    }
    return told(kernel(PREAD64, file, (long)into, (long)size, offset, 0, 0));
}
