// A stand-in for libnvidia-ml.so.1 with the parts of NVML's ABI that gpu-server uses (nvml.h, version 12). What it plays stands
// in the file beside it, named as the library with ".state" at the end, and is read anew at each call:
//
//   device GPU-... bus=00000000:01:00.0 total=85899345920 used=1024 temp=41 cc=9.0 mig=0 parent=- lost=0 ecc=0 util=7 power=70000
//     name=NVIDIA H100              (on the same line)
//   xid 1 79          the first event: Xid 79, on the first device
//
// A line with a parent is a MIG device of that GPU. A file with ".watched" at the end appears once events are waited for.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TIMEOUT = 10, LOST = 15, MOST = 16 };

typedef unsigned long long u64;

typedef struct {
  char uuid[96], bus[32], parent[96], name[96];
  u64 total, used, ecc;
  unsigned temp, major, minor, mig, lost, util, power;
} Device;

typedef struct {
  Device devices[MOST];
  int count;
  u64 xid_number, xid;
} State;

// A handle is a device's place in the file, plus one.
typedef struct Handle* handle;

static u64 told;

static FILE* beside(const char* suffix, const char* mode) {
  Dl_info self;
  char path[4096];
  if (!dladdr((void*)beside, &self)) return NULL;
  snprintf(path, sizeof path, "%s%s", self.dli_fname, suffix);
  return fopen(path, mode);
}

static State now(void) {
  State state = {0};
  char line[1024];
  FILE* file = beside(".state", "r");
  if (!file) return state;
  while (fgets(line, sizeof line, file)) {
    if (state.count < MOST && strncmp(line, "device ", 7) == 0) {
      Device* d = &state.devices[state.count++];
      sscanf(
          line,
          "device %95s bus=%31s total=%llu used=%llu temp=%u cc=%u.%u mig=%u parent=%95s lost=%u ecc=%llu "
          "util=%u power=%u name=%95[^\n]",
          d->uuid, d->bus, &d->total, &d->used, &d->temp, &d->major, &d->minor, &d->mig, d->parent, &d->lost, &d->ecc,
          &d->util, &d->power, d->name);
    }
    sscanf(line, "xid %llu %llu", &state.xid_number, &state.xid);
  }
  fclose(file);
  return state;
}

static int is_part(const Device* device) { return strncmp(device->uuid, "MIG-", 4) == 0; }

// The device behind a handle, in `found`.
static int get(handle device, Device* found) {
  State state = now();
  size_t place = (size_t)device;
  if (place == 0 || place > (size_t)state.count) return INVALID;
  *found = state.devices[place - 1];
  return found->lost ? LOST : SUCCESS;
}

int nvmlInit_v2(void) {
  told = now().xid_number;
  return SUCCESS;
}

int nvmlShutdown(void) { return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned* count) {
  State state = now();
  *count = 0;
  for (int i = 0; i < state.count; i++) *count += !is_part(&state.devices[i]);
  return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, handle* device) {
  State state = now();
  for (int i = 0; i < state.count; i++) {
    if (is_part(&state.devices[i])) continue;
    if (index-- == 0) {
      *device = (handle)(size_t)(i + 1);
      return state.devices[i].lost ? LOST : SUCCESS;
    }
  }
  return INVALID;
}

int nvmlDeviceGetHandleByUUID(const char* uuid, handle* device) {
  State state = now();
  for (int i = 0; i < state.count; i++) {
    if (strcmp(state.devices[i].uuid, uuid) != 0) continue;
    *device = (handle)(size_t)(i + 1);
    return state.devices[i].lost ? LOST : SUCCESS;
  }
  return NOT_FOUND;
}

int nvmlDeviceGetName(handle device, char* name, unsigned length) {
  Device d;
  int code = get(device, &d);
  snprintf(name, length, "%s", d.name);
  return code;
}

int nvmlDeviceGetUUID(handle device, char* uuid, unsigned length) {
  Device d;
  int code = get(device, &d);
  snprintf(uuid, length, "%s", d.uuid);
  return code;
}

typedef struct {
  unsigned version;
  u64 total, reserved, free, used;
} Memory;

int nvmlDeviceGetMemoryInfo_v2(handle device, Memory* memory) {
  Device d;
  int code = get(device, &d);
  memory->total = d.total;
  memory->used = d.used;
  memory->free = d.total - d.used;
  return code;
}

typedef struct {
  char legacy[16];
  unsigned domain, bus, device, id, subsystem;
  char bus_id[32];
} Pci;

int nvmlDeviceGetPciInfo_v3(handle device, Pci* pci) {
  Device d;
  int code = get(device, &d);
  snprintf(pci->bus_id, sizeof pci->bus_id, "%s", d.bus);
  return is_part(&d) ? NOT_SUPPORTED : code;
}

int nvmlDeviceGetTemperature(handle device, int sensor, unsigned* celsius) {
  Device d;
  int code = get(device, &d);
  *celsius = d.temp;
  return sensor != 0 ? INVALID : is_part(&d) ? NOT_SUPPORTED : code;
}

int nvmlDeviceGetTemperatureThreshold(handle device, int kind, unsigned* celsius) {
  Device d;
  int code = get(device, &d);
  *celsius = kind == 0 ? 95 : 90;
  return code;
}

int nvmlDeviceGetCudaComputeCapability(handle device, int* major, int* minor) {
  Device d;
  int code = get(device, &d);
  *major = (int)d.major;
  *minor = (int)d.minor;
  return is_part(&d) ? NOT_SUPPORTED : code;
}

int nvmlDeviceGetMigMode(handle device, unsigned* current, unsigned* pending) {
  Device d;
  int code = get(device, &d);
  *current = *pending = d.mig;
  return is_part(&d) ? NOT_SUPPORTED : code;
}

int nvmlDeviceGetMaxMigDeviceCount(handle device, unsigned* count) {
  Device d;
  *count = 7;
  return get(device, &d);
}

int nvmlDeviceGetMigDeviceHandleByIndex(handle device, unsigned index, handle* part) {
  State state = now();
  Device whole;
  int code = get(device, &whole);
  if (code) return code;
  for (int i = 0; i < state.count; i++) {
    if (strcmp(state.devices[i].parent, whole.uuid) != 0 || index-- != 0) continue;
    *part = (handle)(size_t)(i + 1);
    return SUCCESS;
  }
  return NOT_FOUND;
}

int nvmlSystemGetDriverVersion(char* version, unsigned length) {
  snprintf(version, length, "580.65.06");
  return SUCCESS;
}

typedef struct {
  unsigned gpu, memory;
} Utilization;

int nvmlDeviceGetUtilizationRates(handle device, Utilization* rates) {
  Device d;
  int code = get(device, &d);
  *rates = (Utilization){d.util, 0};
  return is_part(&d) ? NOT_SUPPORTED : code;
}

int nvmlDeviceGetPowerUsage(handle device, unsigned* milliwatts) {
  Device d;
  int code = get(device, &d);
  *milliwatts = d.power;
  return is_part(&d) ? NOT_SUPPORTED : code;
}

int nvmlDeviceGetTotalEccErrors(handle device, int type, int counter, u64* count) {
  Device d;
  int code = get(device, &d);
  *count = type == 1 && counter == 0 ? d.ecc : 0;
  return code;
}

enum { XID_CRITICAL = 8 };

int nvmlDeviceGetSupportedEventTypes(handle device, u64* types) {
  Device d;
  *types = XID_CRITICAL;
  return get(device, &d);
}

int nvmlEventSetCreate(handle* set) {
  *set = (handle)(size_t)1;
  return SUCCESS;
}

int nvmlEventSetFree(handle set) {
  (void)set;
  return SUCCESS;
}

int nvmlDeviceRegisterEvents(handle device, u64 types, handle set) {
  Device d;
  (void)set;
  if (types & ~(u64)XID_CRITICAL) return NOT_SUPPORTED;
  FILE* watched = beside(".watched", "w");
  if (watched) fclose(watched);
  return get(device, &d);
}

typedef struct {
  handle device;
  u64 type, data;
  unsigned gpu_instance, compute_instance;
} Event;

int nvmlEventSetWait_v2(handle set, Event* event, unsigned milliseconds) {
  (void)set;
  for (unsigned waited = 0;; waited += 10) {
    State state = now();
    if (state.xid_number > told) {
      told = state.xid_number;
      *event = (Event){(handle)(size_t)1, XID_CRITICAL, state.xid, ~0u, ~0u};
      return SUCCESS;
    }
    if (waited >= milliseconds) return TIMEOUT;
    nanosleep(&(struct timespec){0, 10000000}, NULL);
  }
}
