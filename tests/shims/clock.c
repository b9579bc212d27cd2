/*
 * Lets one process see other clocks, for tests: preload it, and name a file of two 64-bit numbers
 * in MUSTER_TEST_CLOCK. The first is added to the wall clock, the second is taken from the
 * monotonic clock (the time that the machine was "asleep"); both in nanoseconds. They may be
 * changed at any time. CLOCK_BOOTTIME is left alone: it goes on while a machine sleeps.
 *
 * Only calls through libc are reached. That is all of Rust's standard library, and with it tokio
 * and rustls; who asks the kernel by itself sees the true clocks.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offsets;

__attribute__((constructor)) static void open_offsets(void) {
    const char *path = getenv("MUSTER_TEST_CLOCK");
    if (path == NULL)
        return;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return;
    void *mapped = mmap(NULL, 2 * sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED)
        offsets = mapped;
}

static void shift(struct timespec *time, int64_t nanos) {
    int64_t sum = (int64_t)time->tv_nsec + nanos % 1000000000;
    time->tv_sec += nanos / 1000000000;
    if (sum < 0) {
        sum += 1000000000;
        time->tv_sec -= 1;
    } else if (sum >= 1000000000) {
        sum -= 1000000000;
        time->tv_sec += 1;
    }
    time->tv_nsec = sum;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = (int)syscall(SYS_clock_gettime, clock, time);
    if (result != 0 || offsets == NULL)
        return result;
    switch (clock) {
    case CLOCK_REALTIME:
    case CLOCK_REALTIME_COARSE:
        shift(time, offsets[0]);
        break;
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_COARSE:
    case CLOCK_MONOTONIC_RAW:
        shift(time, -offsets[1]);
        break;
    default:
        break;
    }
    return 0;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    (void)zone;
    struct timespec now;
    int result = clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return result;
}

time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where != NULL)
        *where = now.tv_sec;
    return now.tv_sec;
}
