/*
 * Lets user-mode Linux 6.1 run on a processor with AMX: loaded before libc (LD_PRELOAD) by scripts/lib/machine.sh.
 *
 * The host's kernel sets the extended registers of a traced process only from a buffer of all that the processor has, and AMX made that
 * longer than the buffer in user-mode Linux ("ptrace set fp regs failed"). This ptrace() reads all of them first, puts what
 * user-mode Linux gives over their beginning, and sets the whole. Its guests see no AMX, so what lies behind is never theirs.
 */
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* User-mode Linux traces from one thread of the host. */
static char whole[64 << 10];

/* As the system call, but that PEEK requests return the word. */
static long plain(enum __ptrace_request request, pid_t pid, void *addr, void *data)
{
    long word, result;

    if (request != PTRACE_PEEKTEXT && request != PTRACE_PEEKDATA && request != PTRACE_PEEKUSER)
        return syscall(SYS_ptrace, request, pid, addr, data);
    result = syscall(SYS_ptrace, request, pid, addr, &word);
    if (result < 0)
        return result;
    errno = 0;
    return word;
}

long ptrace(enum __ptrace_request request, ...)
{
    struct iovec all = { whole, sizeof whole };
    struct iovec *given;
    va_list rest;
    pid_t pid;
    void *addr, *data;

    va_start(rest, request);
    pid = va_arg(rest, pid_t);
    addr = va_arg(rest, void *);
    data = va_arg(rest, void *);
    va_end(rest);
    if (request != PTRACE_SETREGSET || (long)addr != NT_X86_XSTATE)
        return plain(request, pid, addr, data);
    given = data;
    if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, addr, &all) < 0 || all.iov_len <= given->iov_len)
        return plain(request, pid, addr, data);
    memcpy(whole, given->iov_base, given->iov_len);
    return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, addr, &all);
}
