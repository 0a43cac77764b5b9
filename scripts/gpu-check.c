// Counts the copies between the memory of a host and that of a CUDA card, for scripts/gpu-check:
//
//     cc -shared -fPIC -O2 -o copies.so scripts/gpu-check.c -ldl
//     LD_PRELOAD=./copies.so KVGATE_COPIES=copies.txt kvgate measure …
//
// When the program ends, a line for each direction is added to the file: its name, the number of copies, and their bytes.
//
// kvgate is linked with the driver's library dynamically, so the functions below stand before the driver's own, which they
// call. A program that asks dlsym for the driver's functions would pass them by. That would leave the file empty, which
// scripts/gpu-check takes for a failure. What cuBLAS does in the driver by itself is not counted.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

typedef int Result;
typedef unsigned long long DevicePointer;
typedef void *Stream;

enum { TO_DEVICE, TO_HOST, ON_DEVICE, UNKNOWN, DIRECTIONS };

static const char *const NAMES[DIRECTIONS] = {"to-device", "to-host", "on-device", "unknown"};
static atomic_ullong calls[DIRECTIONS], bytes[DIRECTIONS];

static void count(int direction, size_t size) {
    atomic_fetch_add(&calls[direction], 1);
    atomic_fetch_add(&bytes[direction], size);
}

static void *driver(const char *name) {
    void *function = dlsym(RTLD_NEXT, name);
    if (!function) {
        fprintf(stderr, "copies.so: the driver has no %s\n", name);
        abort();
    }
    return function;
}

#define COPY(direction, name, parameters, arguments)                                                                   \
    Result name parameters {                                                                                           \
        static _Atomic(void *) found;                                                                                  \
        void *function = atomic_load(&found);                                                                          \
        if (!function) {                                                                                               \
            function = driver(#name);                                                                                  \
            atomic_store(&found, function);                                                                            \
        }                                                                                                              \
        count(direction, size);                                                                                        \
        return ((Result(*) parameters)function)arguments;                                                              \
    }

COPY(TO_DEVICE, cuMemcpyHtoD_v2, (DevicePointer to, const void *from, size_t size), (to, from, size))
COPY(TO_DEVICE, cuMemcpyHtoDAsync_v2, (DevicePointer to, const void *from, size_t size, Stream stream),
     (to, from, size, stream))
COPY(TO_HOST, cuMemcpyDtoH_v2, (void *to, DevicePointer from, size_t size), (to, from, size))
COPY(TO_HOST, cuMemcpyDtoHAsync_v2, (void *to, DevicePointer from, size_t size, Stream stream), (to, from, size, stream))
COPY(ON_DEVICE, cuMemcpyDtoD_v2, (DevicePointer to, DevicePointer from, size_t size), (to, from, size))
COPY(ON_DEVICE, cuMemcpyDtoDAsync_v2, (DevicePointer to, DevicePointer from, size_t size, Stream stream),
     (to, from, size, stream))
COPY(UNKNOWN, cuMemcpy, (DevicePointer to, DevicePointer from, size_t size), (to, from, size))
COPY(UNKNOWN, cuMemcpyAsync, (DevicePointer to, DevicePointer from, size_t size, Stream stream), (to, from, size, stream))

__attribute__((destructor)) static void report(void) {
    const char *path = getenv("KVGATE_COPIES");
    unsigned long long all = 0;
    for (int i = 0; i < DIRECTIONS; i++) {
        all += calls[i];
    }
    FILE *file = path && all > 0 ? fopen(path, "a") : NULL;
    if (!file) {
        return;
    }
    for (int i = 0; i < DIRECTIONS; i++) {
        fprintf(file, "%s %llu %llu\n", NAMES[i], (unsigned long long)calls[i], (unsigned long long)bytes[i]);
    }
    fclose(file);
}
