/*
 * Lets the guest's kernel run on processors with AMX; preloaded into linux.uml by tests/uml/umlrun.
 *
 * The guest's kernel saves and restores the vector registers of its processes with PTRACE_GETREGSET and
 * PTRACE_SETREGSET, in a buffer of fixed size. The host refuses to restore (EFAULT) unless it is given the whole
 * XSAVE area, and AMX makes that area larger than the buffer: the guest then dies with its first process
 * ("ptrace set fp regs failed"). Here a short buffer is completed to the size the host wants. What lies past its
 * end is AMX's state; it is marked as unused, which is true, since the guest grants no process the use of it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

/* Of the XSAVE area: where its bitmap of used components is, and the first component that AMX brought. */
enum { USED_OFFSET = 512, FIRST_AMX_COMPONENT = 17 };

typedef long (*ptrace_fn)(enum __ptrace_request, pid_t, void *, void *);

long ptrace(enum __ptrace_request request, ...) {
    /* Static, because a kernel stack of the guest is small; the guest's kernel has one thread only. */
    static char area[65536] __attribute__((aligned(64)));
    static ptrace_fn real;
    if (!real)
        real = (ptrace_fn)dlsym(RTLD_NEXT, "ptrace");

    va_list arguments;
    va_start(arguments, request);
    pid_t pid = va_arg(arguments, pid_t);
    void *addr = va_arg(arguments, void *), *data = va_arg(arguments, void *);
    va_end(arguments);

    if (request != PTRACE_SETREGSET || (intptr_t)addr != NT_X86_XSTATE)
        return real(request, pid, addr, data);
    struct iovec *given = data, whole = {area, sizeof area};
    if (real(PTRACE_GETREGSET, pid, addr, &whole) != 0 || given->iov_len >= whole.iov_len)
        return real(request, pid, addr, data);
    memcpy(area, given->iov_base, given->iov_len);
    uint64_t used;
    memcpy(&used, area + USED_OFFSET, sizeof used);
    used &= (UINT64_C(1) << FIRST_AMX_COMPONENT) - 1;
    memcpy(area + USED_OFFSET, &used, sizeof used);
    return real(request, pid, addr, &whole);
}
