// A stand-in for libcuda.so.1, the driver's library, with what MegEngine asks it before it computes:
//     gcc -shared -fPIC -o FOLDER/libcuda.so.1 fake_cuda.c
//     LD_LIBRARY_PATH=FOLDER FAKE_CUDA_CAPABILITY=7.5 python train.py --ngpus 2
// It keeps the driver's rule that a process forked from one that has called cuInit cannot use CUDA,
// and notes each cuInit in the file $FAKE_CUDA_LOG as "PROCESS RESULT".
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_INITIALIZED = 3, NO_DEVICE = 100, NOT_FOUND = 500 };
static int initialized; // the process that has called cuInit

static int state(void) { return initialized == getpid() ? SUCCESS : NOT_INITIALIZED; }

int cuInit(unsigned flags) {
    int result = SUCCESS;
    const char *log = getenv("FAKE_CUDA_LOG"), *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (visible && !*visible) result = NO_DEVICE;
    else if (initialized && initialized != getpid()) result = NOT_INITIALIZED;
    else initialized = getpid();
    FILE *file = log ? fopen(log, "a") : NULL;
    if (file) {
        fprintf(file, "%d %d\n", getpid(), result);
        fclose(file);
    }
    return result;
}

int cuDeviceGetCount(int *count) { *count = 2; return state(); }
int cuDeviceGet(int *device, int number) { *device = number; return state(); }
int cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 16ul << 30; return state(); }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = *total = 16ul << 30; return state(); }
int cuGetErrorString(int error, const char **text);
int cuGetErrorName(int error, const char **name) { return cuGetErrorString(error, name); }
int cuGetExportTable(const void **table, const void *id) { *table = NULL; return NOT_FOUND; }

int cuDeviceGetName(char *name, int size, int device) {
    snprintf(name, size, "Fake GPU");
    return state();
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    const char *capability = getenv("FAKE_CUDA_CAPABILITY");
    int major = 9, minor = 0;
    if (capability) sscanf(capability, "%d.%d", &major, &minor);
    *value = attribute == 75 ? major : attribute == 76 ? minor : 1;
    return state();
}

int cuGetErrorString(int error, const char **text) {
    *text = error == SUCCESS ? "no error" : error == NOT_INITIALIZED ? "initialization error" : "error";
    return SUCCESS;
}
