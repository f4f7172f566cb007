// The least that a program can do for an exit: KVM_RUN, and again. One vCPU in long mode executes one instruction over
// and over; what one exit takes is printed, in nanoseconds.
//
//   exit_loop pio-read|pio-write|mmio-read|mmio-write COUNT
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

enum { RAM_BYTES = 64 << 20, PML4 = 0x1000, PDPT = 0x2000, DIRECTORIES = 0x3000, CODE = 0x100000, REGISTER = 0xd0000000 };

struct operation {
  const char *name;
  int reason;
  uint8_t code[2]; // the instruction; RDX is a port, RSI the register
};

static const struct operation operations[] = {
  {"pio-read", KVM_EXIT_IO, {0xec, 0x90}},     // in al, dx
  {"pio-write", KVM_EXIT_IO, {0xee, 0x90}},    // out dx, al
  {"mmio-read", KVM_EXIT_MMIO, {0x8b, 0x06}},  // mov eax, [rsi]
  {"mmio-write", KVM_EXIT_MMIO, {0x89, 0x06}}, // mov [rsi], eax
};

static int try(int result, const char *what) {
  if (result < 0)
    err(1, "%s", what);
  return result;
}

static void enter_long_mode(int vcpu, uint8_t *ram) {
  struct kvm_sregs sregs;
  struct kvm_regs regs = {.rip = CODE, .rflags = 2, .rdx = 0x520, .rsi = REGISTER};
  struct kvm_segment data = {.limit = ~0u, .selector = 0x18, .type = 3, .present = 1, .s = 1, .g = 1};
  struct kvm_segment code = data;
  // An identity map of 4 GiB, in pages of 2 MiB.
  *(uint64_t *)(ram + PML4) = PDPT | 3;
  for (uint64_t gib = 0; gib < 4; gib++)
    ((uint64_t *)(ram + PDPT))[gib] = (DIRECTORIES + gib * 4096) | 3;
  for (uint64_t page = 0; page < 2048; page++)
    ((uint64_t *)(ram + DIRECTORIES))[page] = page << 21 | 0x83;
  try(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
  code.selector = 0x10, code.type = 11, code.l = 1;
  sregs.cs = code;
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
  sregs.cr3 = PML4, sregs.cr4 = 0x20, sregs.cr0 = 0x80000011, sregs.efer = 0x500;
  try(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
  try(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

static double now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1e9 + time.tv_nsec;
}

int main(int argc, char **argv) {
  const struct operation *operation = operations;
  const struct operation *end = operations + sizeof operations / sizeof *operations;
  if (argc != 3)
    errx(2, "usage: exit_loop OPERATION COUNT");
  while (operation < end && strcmp(operation->name, argv[1]))
    operation++;
  if (operation == end)
    errx(2, "unknown operation %s", argv[1]);
  long count = atol(argv[2]);

  int kvm = try(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
  int vm = try(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
  try(ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000), "KVM_SET_TSS_ADDR");
  try(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
  uint8_t *ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct kvm_userspace_memory_region region = {.memory_size = RAM_BYTES, .userspace_addr = (uint64_t)ram};
  try(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
  memcpy(ram + CODE, operation->code, sizeof operation->code);
  memcpy(ram + CODE + 2, "\xeb\xfc", 2); // jmp back
  int vcpu = try(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
  int run_bytes = try(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
  struct kvm_run *run = mmap(NULL, run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  static struct { struct kvm_cpuid2 list; struct kvm_cpuid_entry2 entries[256]; } cpuid = {.list.nent = 256};
  try(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
  try(ioctl(vcpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
  enter_long_mode(vcpu, ram);

  double start = 0;
  for (long exits = -100; exits < count; exits++) { // the first ones are not measured
    if (exits == 0)
      start = now_ns();
    try(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
    if ((int)run->exit_reason != operation->reason)
      errx(1, "exit reason %u", run->exit_reason);
  }
  printf("%.1f\n", (now_ns() - start) / count);
}
