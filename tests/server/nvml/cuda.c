// A stand-in for libcuda.so.1 that shows devices and cannot compute: what the driver is asked before libtorch. The UUIDs, without
// "GPU-" and by ordinal, are the lines of the file beside it, named as the library with ".state" at the end.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

enum { SUCCESS = 0, NO_DEVICE = 100, INVALID_DEVICE = 101 };

static FILE* state(void) {
  Dl_info self;
  char path[4096];
  if (!dladdr((void*)state, &self)) return NULL;
  snprintf(path, sizeof path, "%s.state", self.dli_fname);
  return fopen(path, "r");
}

int cuInit(unsigned flags) { return flags == 0 ? SUCCESS : NO_DEVICE; }

int cuDeviceGetCount(int* count) {
  char line[128];
  FILE* file = state();
  *count = 0;
  if (!file) return NO_DEVICE;
  while (fgets(line, sizeof line, file)) ++*count;
  fclose(file);
  return SUCCESS;
}

int cuDeviceGetUuid_v2(unsigned char* uuid, int ordinal) {
  char line[128];
  FILE* file = state();
  if (!file) return INVALID_DEVICE;
  int found = 0;
  while (!found && fgets(line, sizeof line, file)) found = ordinal-- == 0;
  fclose(file);
  if (!found) return INVALID_DEVICE;
  int byte = 0;
  for (const char* at = line; byte < 16 && *at; at++) {
    unsigned value;
    if (*at == '-') continue;
    if (sscanf(at++, "%2x", &value) != 1) return INVALID_DEVICE;
    uuid[byte++] = (unsigned char)value;
  }
  return byte == 16 ? SUCCESS : INVALID_DEVICE;
}
